"""prove.py BINARIES: makes one mistake after the other, in the values, the chart, the files of compose, and versions.

Each has to be found, and each rule has to find one. What is no mistake has to pass.
"""

import copy
import datetime
import shutil
import sys
import tempfile
from pathlib import Path

import helm_python

import allowed
import chart
import compose
import rules
import schemas
import try_settings
import versions
from build import Build
from files import CHART
from mistakes import FILES, FINE, TEMPLATES, VALUES


def main(binaries):
    good = {case: chart.render(chart.values(case))[0] for case in chart.CASES}
    files = compose.load()
    in_chart = [(what, broken(binaries, good[case], case, *change)) for what, case, *change in TEMPLATES]
    mistakes = [
        *((what, is_refused(case, changes)) for what, case, changes in VALUES),
        *in_chart,
        *((what, found_in_compose(files, change)) for what, change in FILES),
        *others(),
    ]
    missed = [f"nobody notices {what}" for what, noticed in mistakes if not noticed]
    used = {problem.split(":")[0] for _, problems in in_chart for problem in problems}
    missed += [f"nothing shows that the rule {rule.__name__} works" for rule in rules.RULES if rule.__name__ not in used]
    for what, case, changes in FINE:
        missed += [f"{what}: {problem}" for problem in found(binaries, good[case], *chart.render(values_with(case, changes)))]
    for problem in missed:
        print(problem, file=sys.stderr)
    print(f"{len(mistakes)} mistakes, {len(missed)} of them not found")
    return 1 if missed else 0


def values_with(case, changes):
    given = chart.values(case)
    chart.merge(given, changes)
    return given


def is_refused(case, changes):
    """Whether Helm refuses values: by the schema, or by templates/validate.yaml."""
    try:
        chart.render(values_with(case, changes))
    except (helm_python.HelmValuesError, helm_python.HelmRenderError) as error:
        return "validate.yaml" in str(error) or isinstance(error, helm_python.HelmValuesError)
    return False


def broken(binaries, good, case, file, old, new):
    """What is found once the text in a file of the chart is another."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(CHART, Path(folder) / "penstock"))
        path = copied / file
        text = path.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{file} has {text.count(old)} times: {old}")
        path.write_text(text.replace(old, new))
        return found(binaries, good, *chart.render(chart.values(case), copied))


def found(binaries, good, resources, notes):
    # The rest is as good as before, and the versions between are much the same.
    changed = [resource for resource in resources if resource not in good]
    problems = [f"schema: {problem}" for problem in schemas.problems(changed, (schemas.VERSIONS[0], schemas.VERSIONS[-1]))]
    build = Build(resources, notes)
    # Rules rely on the shape.
    problems = problems or list(rules.problems(build))
    return problems or [f"settings: {problem}" for problem in try_settings.problems(binaries, build)]


def found_in_compose(good, change):
    files = copy.deepcopy(good)
    change(files)
    return any(compose.problems(files))


def others():
    """What is wrong elsewhere, and whether it is noticed."""
    day = datetime.date(2027, 8, 1)
    yield "a version that isn't that of Cargo.toml", any(versions.version_problems("0.0.1"))
    yield "a pin whose support has ended", versions.pin_problem("prom/prometheus:v3.13", day)
    yield "a series that nobody has looked up", versions.pin_problem("rabbitmq:4.30", day)
    yield "pins of another time", any(versions.problems(datetime.date(2099, 1, 1)))
    yield "a setting that the schema doesn't know", any(allowed.problems(without_setting()))


def without_setting():
    with helm_python.Chart.load(CHART) as loaded:
        schema = loaded.schema
    schema["properties"]["settings"]["propertyNames"]["enum"].remove("RUST_LOG")
    return schema


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
