"""The chart, rendered by Helm's own engine."""

import helm_python
import yaml

from files import CHART, DEPLOY

PRODUCTION = CHART / "values-production.yaml"
# What is rendered: the files of values, of which the later win.
CASES = {
    "defaults": [],
    "production": [PRODUCTION],
    "everything": [PRODUCTION, DEPLOY / "checks/values/everything.yaml"],
    "own-servers": [PRODUCTION, DEPLOY / "checks/values/own-servers.yaml"],
}


class Loader(yaml.CSafeLoader):
    """Refuses a key that is there twice, which Kubernetes does, too."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def values(case):
    merged = {}
    for path in CASES[case]:
        merge(merged, helm_python.values_from_yaml(path.read_text()))
    return merged


def merge(into, other):
    """As Helm does it with several files: maps are merged, all else is replaced."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def render(given, folder=CHART):
    """All resources, and what NOTES.txt says."""
    with helm_python.Chart.load(folder) as chart:
        files = chart.render(given, name="penstock", namespace="penstock")
    notes = files.pop("penstock/templates/NOTES.txt")
    documents = [document for text in files.values() for document in yaml.load_all(text, Loader)]
    return [document for document in documents if document], notes


def lint(given):
    """Problems that Helm itself sees. An icon is no use here."""
    report = helm_python.lint(CHART, given, strict=True, kube_version="v1.30.0")
    for message in report["messages"]:
        if message["severity"] >= 2:
            yield f"{message['path']}: {message['error']}"
