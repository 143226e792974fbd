"""main.py: checks what the chart makes of several values, the files of compose, and versions."""

import sys

import allowed
import chart
import compose
import rules
import schemas
import versions
from build import Build


def main():
    count = 0
    for case in chart.CASES:
        given = chart.values(case)
        count += report(case, chart.lint(given))
        build = Build(*chart.render(given))
        found = [*schemas.problems(build.resources)]
        # Rules rely on the shape.
        count += report(case, found or rules.problems(build))
    count += report("compose", compose.problems(compose.load()))
    count += report("versions", versions.problems())
    count += report("settings", allowed.problems())
    return 1 if count else 0


def report(what, found):
    count = 0
    for count, problem in enumerate(found, 1):
        print(f"{what}: {problem}", file=sys.stderr)
    return count


if __name__ == "__main__":
    sys.exit(main())
