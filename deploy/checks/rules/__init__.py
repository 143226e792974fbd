"""What no schema says: that what the chart makes agrees with itself, with the tables of settings, and with the binaries."""

from rules import monitoring, network, pods, rabbitmq, references, scaling

RULES = [
    pods.names, pods.grace, pods.budget, pods.spool, pods.ports, pods.locked, pods.images,
    references.references, references.secrets, references.webhooks,
    network.selectors, network.network,
    monitoring.monitors, monitoring.probes, monitoring.alerts, monitoring.dashboard,
    scaling.work_queues, scaling.scaling, scaling.triggers,
    rabbitmq.policies, rabbitmq.disk, rabbitmq.management, rabbitmq.kept, rabbitmq.users,
]


def problems(build):
    for rule in RULES:
        for problem in rule(build):
            yield f"{rule.__name__}: {problem}"
