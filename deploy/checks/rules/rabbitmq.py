"""RabbitMQ by its operators: the same policies as elsewhere, and who may do what."""

import itertools
import json
import operator
import re

from build import environment
from files import DEPLOY, amount

# A queue holds some large bodies at least.
LEAST = 32 << 20


def policies(build):
    if not build.of("RabbitmqCluster"):
        return
    by_name = operator.itemgetter("name")
    ours = []
    for policy in build.of("Policy"):
        spec = {key: value for key, value in policy["spec"].items() if key != "rabbitmqClusterReference"}
        spec["apply-to"] = spec.pop("applyTo")
        ours.append(spec)
    theirs = json.loads((DEPLOY / "rabbitmq/definitions.json").read_text())["policies"]
    # On a small disk, the chart's bound is lower.
    for mine, other in itertools.product(ours, theirs):
        if mine["name"] == other["name"] == "penstock-webhooks" and LEAST <= bound(mine) < bound(other):
            mine["definition"] = mine["definition"] | {"max-length-bytes": bound(other)}
    if sorted(ours, key=by_name) != sorted(theirs, key=by_name):
        yield "the policies differ from deploy/rabbitmq/definitions.json"


def bound(policy):
    return policy["definition"].get("max-length-bytes", 0)


def disk(build):
    """The queues refuse before the disk alarm, which blocks all tenants: they fill four fifths of what the disk has for them."""
    for cluster in build.of("RabbitmqCluster"):
        limit = int(re.search(r"disk_free_limit.absolute = (\d+)GB", cluster["spec"]["rabbitmq"]["additionalConfig"])[1]) * 10**9
        room = (amount(cluster["spec"]["persistence"]["storage"]) - limit) * 4 // 5
        queues = len(build.tenants()) * (int(environment(next(build.ours())[2])["WEBHOOK_WORKERS"]) + 1)
        largest = sum(bound(policy["spec"]) for policy in build.of("Policy") if policy["spec"]["name"] == "penstock-webhooks")
        if queues * largest > room:
            yield f"{queues} queues of {largest} bytes don't fit into {room}"


def management(build):
    """Workers see policies that lose messages by the management API only."""
    for cluster in build.of("RabbitmqCluster"):
        name = cluster["metadata"]["name"]
        for _, _, container in build.ours():
            url = environment(container).get("AMQP_MANAGEMENT_URL")
            if container["name"] in ("worker", "console") and url != f"http://{name}:15672":
                yield f"{container['name']} doesn't know the management API of {name}"
        penstock = build.named("User", "penstock")
        if penstock and "monitoring" not in penstock["spec"].get("tags", []):
            yield "the management API answers Penstock's user with 401"


def kept(build):
    """Helm would delete the queues with the cluster or the virtual host, and lock Penstock out without its user."""
    for kind, name in [("RabbitmqCluster", "rabbitmq"), *((kind, "penstock") for kind in ("Vhost", "User", "Permission"))]:
        resource = build.named(kind, name)
        if resource and resource["metadata"].get("annotations", {}).get("helm.sh/resource-policy") != "keep":
            yield f"helm uninstall deletes the {kind} {name}"


def users(build):
    if not build.of("RabbitmqCluster"):
        return
    rights = {}
    for permission in build.of("Permission"):
        spec = permission["spec"]
        name = spec["userReference"]["name"]
        rights[name] = spec["permissions"]
        if not build.named("User", name):
            yield f"no User {name}"
        if spec["vhost"] not in [vhost["spec"]["name"] for vhost in build.of("Vhost")]:
            yield f"no Vhost {spec['vhost']}"
    if rights.get("penstock") != dict.fromkeys(("configure", "write", "read"), ".*"):
        yield "Penstock declares its queues itself, and needs all rights"
    for authentication in build.of("TriggerAuthentication"):
        keda = build.named("User", "keda")
        if not keda or "monitoring" not in keda["spec"].get("tags", []) or not rights.get("keda", {}).get("read"):
            yield "KEDA may not see the queues"
        elif {keda["spec"]["importCredentialsSecret"]["name"]} != {t["name"] for t in authentication["spec"]["secretTargetRef"]}:
            yield "KEDA logs in as somebody else"
