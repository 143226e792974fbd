"""How many workers and queues there are."""

import re
import urllib.parse

from build import environment
from files import settings


def work_queues(build):
    """How many a tenant has: all agree, and no autoscaler makes more workers than that."""
    numbers = {
        int(environment(container).get("WEBHOOK_WORKERS") or settings()["WEBHOOK_WORKERS"][0])
        for _, _, container in build.ours()
    }
    if len(numbers) > 1:
        yield f"WEBHOOK_WORKERS is {sorted(numbers)}, and should be one number"
    for scaler in build.of("ScaledObject", "HorizontalPodAutoscaler"):
        most = scaler["spec"].get("maxReplicaCount", scaler["spec"].get("maxReplicas"))
        if most > min(numbers):
            yield f"{scaler['kind']}: of {most} workers, those beyond WEBHOOK_WORKERS ({min(numbers)}) have no queue"


def scaling(build):
    scalers = build.of("ScaledObject", "HorizontalPodAutoscaler")
    for scaler in scalers:
        target = build.named(scaler["spec"]["scaleTargetRef"]["kind"], scaler["spec"]["scaleTargetRef"]["name"])
        if target and "replicas" in target["spec"]:
            yield f"replicas of {target['metadata']['name']} is set by two"
    if len(scalers) > 1:
        yield "KEDA makes an autoscaler of its own: choose one"
    if not scalers and "replicas" not in build.named("Deployment", "worker")["spec"]:
        yield "nobody says how many workers there are"


def triggers(build):
    for scaler in build.of("ScaledObject"):
        every = [trigger["metadata"] for trigger in scaler["spec"]["triggers"]]
        queues = {trigger["queueName"] for trigger in every}
        if queues != {rf"^webhooks\.{tenant}\." for tenant in build.tenants()}:
            yield f"not one trigger for each tenant: {sorted(queues)}"
        if any(trigger.get("useRegex") != "true" for trigger in every):
            yield "a tenant has several queues, and KEDA needs useRegex to see them"
        if any(trigger.get("operation", "sum") != "sum" for trigger in every):
            yield "KEDA doesn't sum up the queues of a tenant"
        if any(trigger.get("protocol") != "http" for trigger in every):
            yield "over AMQP, KEDA doesn't see what workers hold"
        for host in {trigger.get("host", "") for trigger in every}:
            if not found_from_elsewhere(build, scaler["metadata"]["namespace"], host):
                yield f"KEDA, in another namespace, doesn't find {host}"


def found_from_elsewhere(build, namespace, host):
    name = (urllib.parse.urlsplit(host).hostname or "").split(".")
    ours = build.named("Service", "rabbitmq") or build.named("RabbitmqCluster", "rabbitmq")
    return name[:3] == ["rabbitmq", namespace, "svc"] if ours else bool(re.search(r"\w\.\w", host))
