"""main.py BUILT...: checks what kustomize has built, a file each, and the files of compose."""

import sys
from pathlib import Path

import compose
import rules
import schemas
import versions
from files import load_all


def main(paths):
    count = 0
    for path in paths:
        resources = load_all(path.read_text())
        found = [*schemas.problems(resources)]
        # Rules rely on the shape.
        found = found or [*rules.problems(rules.Build(resources))]
        count += report(path.stem, found)
    count += report("compose", [*compose.problems(compose.load())])
    count += report("versions", [*versions.problems()])
    print(*versions.ended(), sep="\n")
    return 1 if count else 0


def report(what, found):
    for problem in found:
        print(f"{what}: {problem}", file=sys.stderr)
    return len(found)


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
