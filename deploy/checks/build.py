"""What the chart makes of some values, and how to look into it."""

WORKLOADS = ("StatefulSet", "Deployment", "Job")
# Container → binary.
OURS = {
    "ingest": "ingest", "drain": "ingest",
    "worker": "worker", "console": "worker", "rebuild": "worker", "backfill": "worker",
}


class Build:
    def __init__(self, resources, notes):
        self.resources = resources
        self.notes = notes

    def of(self, *kinds):
        return [resource for resource in self.resources if resource["kind"] in kinds]

    def named(self, kind, name):
        return next((r for r in self.of(kind) if r["metadata"]["name"] == name), None)

    def ours(self):
        """Workload, its pod, and its container, for those of Penstock."""
        for workload in self.of(*WORKLOADS):
            pod = workload["spec"]["template"]["spec"]
            container = pod["containers"][0]
            if container["name"] in OURS:
                yield workload, pod, container

    def services(self):
        """Those of them that run for good, and nobody can do without."""
        return [ours for ours in self.ours() if ours[2]["name"] in ("ingest", "worker")]

    def pod_labels(self):
        """Those of RabbitMQ are its operator's."""
        operators = [{"app.kubernetes.io/name": c["metadata"]["name"]} for c in self.of("RabbitmqCluster")]
        return operators + [labels(w) for w in self.of(*WORKLOADS)]

    def tenants(self):
        _, _, container = next(self.ours())
        return environment(container)["TENANTS"].split(",")


def environment(container):
    """Name → value of all that the container is given; None where a Secret has the value."""
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def binary(container):
    return OURS[container["name"]]


def labels(workload):
    return workload["spec"]["template"]["metadata"]["labels"]


def matches(found, wanted):
    return wanted.items() <= found.items()


def wanted_labels(selector):
    """All sets of labels that a selector takes."""
    base = selector.get("matchLabels", {})
    choices = [choice for choice in selector.get("matchExpressions", []) if choice["operator"] == "In"]
    return [base | {choices[0]["key"]: value} for value in choices[0]["values"]] if choices else [base]


def selects(policy, found):
    """An empty selector is for all pods, and so for none in particular."""
    return any(wanted and matches(found, wanted) for wanted in wanted_labels(policy["spec"]["podSelector"]))
