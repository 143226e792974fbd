"""Who selects which pods, and who may talk to whom."""

from build import binary, labels, matches, selects, wanted_labels

# What each may open connections to, but for a collector of traces: DNS, RabbitMQ, its management API, MongoDB;
# and backfill respond.io.
REACHES = {"ingest": {53, 5671, 5672}, "worker": {53, 5671, 5672, 15671, 15672, 27017}}
ALSO_REACHES = {"backfill": {443}}
# The node's own cache, and Cloud DNS of GKE.
DNS = {"169.254.20.10/32", "169.254.169.254/32"}


def selectors(build):
    pods = build.pod_labels()
    for resource in build.of("Service", "PodDisruptionBudget", "PodMonitor"):
        spec = resource["spec"]
        selector = {"matchLabels": spec["selector"]} if resource["kind"] == "Service" else spec["selector"]
        if not any(matches(found, wanted) for found in pods for wanted in wanted_labels(selector)):
            yield f"{resource['kind']} {resource['metadata']['name']} selects nothing"
    for policy in build.of("NetworkPolicy"):
        if policy["spec"]["podSelector"] and not any(matches(f, w) for f in pods for w in wanted_labels(policy["spec"]["podSelector"])):
            yield f"NetworkPolicy {policy['metadata']['name']} selects nothing"
    for workload, _, container in build.services():
        if not has_budget(build, labels(workload)):
            yield f"no PodDisruptionBudget for {container['name']}"
    for cluster in build.of("RabbitmqCluster"):
        if not has_budget(build, {"app.kubernetes.io/name": cluster["metadata"]["name"]}):
            yield "no PodDisruptionBudget for RabbitMQ"
    ports = {port["name"] for _, _, container in build.ours() for port in container.get("ports", [])}
    for service in build.of("Service"):
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if isinstance(target, str) and target not in ports:
                yield f"Service {service['metadata']['name']}: no port {target}"


def has_budget(build, found):
    return any(matches(found, b["spec"]["selector"]["matchLabels"]) for b in build.of("PodDisruptionBudget"))


def network(build):
    every = build.of("NetworkPolicy")
    if not every:
        return
    for workload, _, container in build.ours():
        name = container["name"]
        policies = [policy for policy in every if selects(policy, labels(workload))]
        if not policies:
            yield f"no NetworkPolicy for {name}"
        wanted = REACHES[binary(container)] | ALSO_REACHES.get(name, set())
        if missing := wanted - ports_of(policies, "egress"):
            yield f"{name} may not reach {sorted(missing)}"
        peers = [peer for p in policies for rule in p["spec"]["egress"] if 53 in ports_of_rule(rule) for peer in rule["to"]]
        if any("podSelector" in peer for peer in peers) and DNS - {peer.get("ipBlock", {}).get("cidr") for peer in peers}:
            yield f"{name} can't reach DNS that isn't a pod of the cluster"
        for port in container.get("ports", []):
            # Nobody has to be let in to the console: kubectl port-forward comes from the node.
            if name != "console" and port["name"] not in ports_of(policies, "ingress"):
                yield f"nobody may reach the port {port['name']} of {name}"
    for name in ("rabbitmq", "mongodb"):
        if build.named("RabbitmqCluster", name) or build.named("StatefulSet", name):
            if not build.named("NetworkPolicy", name):
                yield f"anybody may talk to {name}"
    if build.of("RabbitmqCluster"):
        admitted = ports_of([policy for policy in every if policy["metadata"]["name"] == "rabbitmq"], "ingress")
        if missing := {5672, 4369, 25672, 15672, 15692} - admitted:
            yield f"RabbitMQ doesn't work without {sorted(missing)}"
    if rabbitmq := build.named("NetworkPolicy", "rabbitmq"):
        for workload, _, container in build.ours():
            if container["name"] in ("worker", "console") and 15672 not in admitted_ports(rabbitmq, labels(workload)):
                yield f"RabbitMQ's management API lets {container['name']} in by no policy"
    # An empty list of peers is everybody.
    for policy in every:
        for rule in policy["spec"].get("ingress") or []:
            if not rule.get("from"):
                yield f"NetworkPolicy {policy['metadata']['name']} lets everybody in"


def admitted_ports(policy, found):
    """To which ports pods of the same namespace may connect."""
    return {
        port["port"] for rule in policy["spec"]["ingress"] for peer in rule["from"] for port in rule["ports"]
        if "namespaceSelector" not in peer and any(matches(found, w) for w in wanted_labels(peer.get("podSelector", {})))
    }


def ports_of(policies, direction):
    return {port for policy in policies for rule in policy["spec"].get(direction) or [] for port in ports_of_rule(rule)}


def ports_of_rule(rule):
    return {port["port"] for port in rule["ports"]}
