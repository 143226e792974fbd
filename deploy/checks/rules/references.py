"""What one resource says of another, or of what people bring."""

import re

from build import environment


def references(build):
    for _, pod, container in build.ours():
        if not build.named("ServiceAccount", pod["serviceAccountName"]):
            yield f"no ServiceAccount {pod['serviceAccountName']}"
        # Settings in a ConfigMap would roll no pods when they change.
        if "envFrom" in container:
            yield f"the settings of {container['name']} are elsewhere"
    for workload in build.of("StatefulSet"):
        service = build.named("Service", workload["spec"]["serviceName"])
        if not service or service["spec"].get("clusterIP") != "None":
            yield f"serviceName {workload['spec']['serviceName']} is no headless Service"
    for path in [p for i in build.of("Ingress") for rule in i["spec"]["rules"] for p in rule["http"]["paths"]]:
        backend = path["backend"]["service"]
        service = build.named("Service", backend["name"])
        if not service or backend["port"]["name"] not in [port["name"] for port in service["spec"]["ports"]]:
            yield f"Ingress: no Service {backend['name']} with the port {backend['port']['name']}"
    for scaler in build.of("ScaledObject", "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        if not build.named(target["kind"], target["name"]):
            yield f"{scaler['kind']}: no {target['kind']} {target['name']}"
    for trigger in [trigger for scaler in build.of("ScaledObject") for trigger in scaler["spec"]["triggers"]]:
        if not build.named("TriggerAuthentication", trigger["authenticationRef"]["name"]):
            yield f"no TriggerAuthentication {trigger['authenticationRef']['name']}"


def secrets(build):
    """The notes tell of each Secret that has to be brought, and of the keys in it."""
    told = {words[0]: words[1:] for words in map(str.split, build.notes.splitlines()) if words}
    for name, key in sorted(brought(build)):
        if key not in told.get(name, []):
            yield f"the notes don't tell of {key} in the Secret {name}"


def brought(build):
    entries = [entry for _, _, container in build.ours() for entry in container["env"] if "valueFrom" in entry]
    found = {(e["valueFrom"]["secretKeyRef"]["name"], e["valueFrom"]["secretKeyRef"]["key"]) for e in entries}
    for authentication in build.of("TriggerAuthentication"):
        found |= {(target["name"], target["key"]) for target in authentication["spec"]["secretTargetRef"]}
    for user in build.of("User"):
        found |= {(user["spec"]["importCredentialsSecret"]["name"], key) for key in ("username", "password")}
    for tls in [tls for ingress in build.of("Ingress") for tls in ingress["spec"]["tls"]]:
        found |= {(tls["secretName"], key) for key in ("tls.crt", "tls.key")}
    return found


def webhooks(build):
    """The notes have the address of each tenant's webhooks, and say so if it has no keys."""
    ingest = next(environment(container) for _, _, container in build.services() if container["name"] == "ingest")
    for tenant in build.tenants():
        lines = [line for line in build.notes.splitlines() if re.search(rf"https://\S+/webhook/{tenant}( |$)", line)]
        if not lines:
            yield f"the notes don't tell where webhooks of {tenant} go"
        elif ("anybody" in lines[0]) == (tenant.upper().replace("-", "_") + "_SIGNING_KEYS" in ingest):
            yield f"the notes are wrong about the keys of {tenant}"
