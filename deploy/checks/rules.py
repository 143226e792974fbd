"""What no schema says: that the manifests agree with each other, with README.md and with the binaries."""

import json
import operator
import re
import urllib.parse

import yaml

from files import DEPLOY, admin_port, amount, binaries, dockerfile, is_old_rabbitmq, seconds, settings

# Brought by whoever deploys; deploy/kubernetes/README.md says what is in them.
BROUGHT_SECRETS = {
    "ingest": {"AMQP_URL"},
    "worker": {"AMQP_URL", "MONGO_URI", "VIP_MONGO_URI"},
    "keda": {"username", "password"},
    "rabbitmq-penstock": {"username", "password"},
}
WORKLOADS = ("StatefulSet", "Deployment", "Job")
OURS = ("ingest", "worker", "drain", "rebuild")
# What each may open connections to, but for a collector of traces: DNS, RabbitMQ, MongoDB.
REACHES = {"ingest": {53, 5671, 5672}, "worker": {53, 5671, 5672, 27017}}


class Build:
    """All resources of one overlay."""

    def __init__(self, resources):
        self.resources = resources

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

    def pod_labels(self):
        """Those of RabbitMQ are its operator's."""
        operators = [{"app.kubernetes.io/name": c["metadata"]["name"]} for c in self.of("RabbitmqCluster")]
        return operators + [w["spec"]["template"]["metadata"]["labels"] for w in self.of(*WORKLOADS)]

    def environment(self, container):
        """Name → value of all that the container is given; None where the value is a Secret that is brought."""
        given = {}
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                given.update((self.named("ConfigMap", source["configMapRef"]["name"]) or {}).get("data", {}))
            else:
                name = source["secretRef"]["name"]
                secret = self.named("Secret", name)
                given.update(secret["stringData"] if secret else dict.fromkeys(BROUGHT_SECRETS.get(name, ())))
        given.update((entry["name"], entry.get("value")) for entry in container.get("env", []))
        return given


def problems(build):
    for rule in (names, grace, budget, spool, references, secrets, probes, runbook, selectors, network, ports, locked, images, work_queues, scaling, rabbitmq, users):
        for problem in rule(build):
            yield f"{rule.__name__}: {problem}"


def binary(container):
    return "worker" if container["name"] in ("worker", "rebuild") else "ingest"


def names(build):
    for workload, _, container in build.ours():
        given = build.environment(container)
        tenants = (given.get("TENANTS") or "").split(",")
        for name in given:
            if binary(container) not in binaries(name, tenants):
                yield f"{name} is no setting of {binary(container)}"
        if workload["kind"] != "Job" and given.get("ADMIN_HOST") != "0.0.0.0":
            yield f"ADMIN_HOST of {container['name']}: probes come from elsewhere"


def grace(build):
    for workload, pod, container in build.ours():
        if workload["kind"] == "Job":
            continue
        pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        told = seconds(build.environment(container).get("TERMINATION_GRACE") or "0s")
        if told != pod.get("terminationGracePeriodSeconds", 30) - pre_stop:
            yield f"TERMINATION_GRACE of {container['name']} is not what is left of terminationGracePeriodSeconds after preStop"


def budget(build):
    for workload, _, container in build.ours():
        if workload["kind"] == "StatefulSet":
            each = int(build.environment(container).get("REFUSAL_BUDGET") or settings()["REFUSAL_BUDGET"][0])
            if each * workload["spec"]["replicas"] >= 30:
                yield f"REFUSAL_BUDGET of {each} × {workload['spec']['replicas']} replicas is not below 30"


def spool(build):
    for workload, pod, container in build.ours():
        if binary(container) != "ingest":
            continue
        given = build.environment(container)
        folder = given.get("SPOOL_DIR") or dockerfile()["ingest"][0]["SPOOL_DIR"]
        mounts = [mount for mount in container["volumeMounts"] if folder.startswith(mount["mountPath"] + "/")]
        if not mounts or mounts[0].get("readOnly"):
            yield f"SPOOL_DIR {folder} is on no volume"
        if workload["kind"] != "StatefulSet":
            continue
        bound = int(given.get("SPOOL_MAX_BYTES") or settings()["SPOOL_MAX_BYTES"][0])
        claims = {claim["metadata"]["name"]: claim["spec"] for claim in workload["spec"]["volumeClaimTemplates"]}
        claim = claims.get(mounts[0]["name"]) if mounts else None
        if not claim or amount(claim["resources"]["requests"]["storage"]) < 2 * bound:
            yield f"the volume is smaller than twice SPOOL_MAX_BYTES ({bound})"
        if set(workload["spec"].get("persistentVolumeClaimRetentionPolicy", {}).values()) != {"Retain"}:
            yield "the spool's volume has to outlive its pod"


def references(build):
    for workload, pod, container in build.ours():
        if not build.named("ServiceAccount", pod["serviceAccountName"]) and workload["kind"] != "Job":
            yield f"no ServiceAccount {pod['serviceAccountName']}"
        for source in container.get("envFrom", []):
            config, secret = source.get("configMapRef", {}).get("name"), source.get("secretRef", {}).get("name")
            if config and not build.named("ConfigMap", config):
                yield f"no ConfigMap {config}"
            if secret and not build.named("Secret", secret) and secret not in BROUGHT_SECRETS:
                yield f"no Secret {secret}"
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
    for authentication in build.of("TriggerAuthentication"):
        for target in authentication["spec"]["secretTargetRef"]:
            if target["key"] not in BROUGHT_SECRETS.get(target["name"], ()):
                yield f"TriggerAuthentication: {target['key']} of the Secret {target['name']} is nobody's"


def probes(build):
    alerts = (DEPLOY / "helm/penstock/files/alerts.yaml").read_text()
    hosts = {rule["host"] for ingress in build.of("Ingress") for rule in ingress["spec"]["rules"]}
    for probe in build.of("Probe"):
        if f'probe_ssl_earliest_cert_expiry{{job="{probe["spec"].get("jobName")}"' not in alerts:
            yield f"no alert knows the job of {probe['metadata']['name']}"
        for target in probe["spec"]["targets"]["staticConfig"]["static"]:
            url = urllib.parse.urlsplit(target)
            if url.hostname not in hosts:
                yield f"{target} is not where webhooks arrive"
            if url.path.startswith("/webhook"):
                yield f"PenstockErrorReplies counts the answers to {target}"


def runbook(build):
    """Whoever is paged has to get there by a click."""
    for resource in build.of("PrometheusRule"):
        for alert in [alert for group in resource["spec"]["groups"] for alert in group["rules"]]:
            if not re.match("https?://", alert["annotations"]["runbook_url"]):
                yield f"{alert['alert']}: its runbook_url is no address"


def secrets(build):
    """README.md tells of each that has to be brought."""
    wanted = {tls["secretName"] for ingress in build.of("Ingress") for tls in ingress["spec"].get("tls", [])}
    wanted |= {user["spec"].get("importCredentialsSecret", {}).get("name") for user in build.of("User")} - {None}
    for _, _, container in build.ours():
        wanted |= {source["secretRef"]["name"] for source in container.get("envFrom", []) if "secretRef" in source}
    readme = (DEPLOY / "kubernetes/README.md").read_text()
    for name in sorted(wanted):
        if not build.named("Secret", name) and f"| `{name}` |" not in readme:
            yield f"deploy/kubernetes/README.md doesn't tell of the Secret {name}"


def matches(labels, wanted):
    return wanted.items() <= labels.items()


def wanted_labels(selector):
    """All sets of labels that a selector takes."""
    base = selector.get("matchLabels", {})
    choices = [choice for choice in selector.get("matchExpressions", []) if choice["operator"] == "In"]
    return [base | {choices[0]["key"]: value} for value in choices[0]["values"]] if choices else [base]


def selectors(build):
    pods = build.pod_labels()
    for resource in build.of("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        spec = resource["spec"]
        selector = spec.get("podSelector", spec.get("selector", {}))
        if resource["kind"] == "Service":
            selector = {"matchLabels": selector}
        if not any(matches(labels, wanted) for labels in pods for wanted in wanted_labels(selector)):
            yield f"{resource['kind']} {resource['metadata']['name']} selects nothing"
    for resource in build.of("ServiceMonitor"):
        if resource["metadata"]["name"] != "rabbitmq" and not monitored(build, resource):
            yield f"ServiceMonitor {resource['metadata']['name']} selects nothing"
    # What is for all pods is for none in particular.
    covered = [w for policy in build.of("NetworkPolicy") for w in wanted_labels(policy["spec"]["podSelector"]) if w]
    for workload, _, container in build.ours():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        if build.of("NetworkPolicy") and not any(matches(labels, wanted) for wanted in covered):
            yield f"no NetworkPolicy for {container['name']}"
        if workload["kind"] != "Job" and not has_budget(build, labels):
            yield f"no PodDisruptionBudget for {container['name']}"
    for cluster in build.of("RabbitmqCluster"):
        if not has_budget(build, {"app.kubernetes.io/name": cluster["metadata"]["name"]}):
            yield "no PodDisruptionBudget for RabbitMQ"


def has_budget(build, labels):
    return any(matches(labels, b["spec"]["selector"]["matchLabels"]) for b in build.of("PodDisruptionBudget"))


def monitored(build, monitor):
    wanted = monitor["spec"]["selector"]["matchLabels"]
    return [s for s in build.of("Service") if matches(s["metadata"].get("labels", {}), wanted)]


def network(build):
    for workload, _, container in build.ours():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        policies = [p for p in build.of("NetworkPolicy") if selects(p, labels)]
        open_ports = {port["port"] for p in policies for rule in p["spec"].get("egress", []) for port in rule["ports"]}
        if policies and not REACHES[binary(container)] <= open_ports:
            yield f"{container['name']} may not reach {sorted(REACHES[binary(container)] - open_ports)}"
    for name in ("rabbitmq", "mongodb"):
        if build.named("RabbitmqCluster", name) or build.named("StatefulSet", name):
            if not build.named("NetworkPolicy", name):
                yield f"anybody may talk to {name}"
    for policy in build.of("NetworkPolicy"):
        admitted = {port["port"] for rule in policy["spec"].get("ingress", []) for port in rule["ports"]}
        if policy["metadata"]["name"] == "rabbitmq" and build.of("RabbitmqCluster"):
            if missing := {5672, 4369, 25672, 15672, 15692} - admitted:
                yield f"RabbitMQ doesn't work without {sorted(missing)}"


def selects(policy, labels):
    return any(wanted and matches(labels, wanted) for wanted in wanted_labels(policy["spec"]["podSelector"]))


def ports(build):
    open_ports = {}
    for workload, _, container in build.ours():
        if workload["kind"] == "Job":
            continue
        mine = {port["name"]: port["containerPort"] for port in container["ports"]}
        open_ports.setdefault(container["name"], mine)
        given, right = build.environment(container), {"admin": admin_port(container["name"])}
        right["admin"] = int(given.get("ADMIN_PORT") or right["admin"])
        if container["name"] == "ingest":
            right["http"] = int(given.get("PORT") or settings()["PORT"][0])
        if mine != right:
            yield f"{container['name']} listens on {right}, not on {mine}"
        if "PORT" not in given and sorted(mine.values()) != sorted(dockerfile()[container["name"]][1]):
            yield f"EXPOSE of {container['name']} in the Dockerfile says otherwise"
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if container.get(probe, {}).get("httpGet", {}).get("port") != "admin":
                yield f"{probe} of {container['name']} is missing, or not for the admin port"
    every = {name for mine in open_ports.values() for name in mine}
    for service in build.of("Service"):
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if isinstance(target, str) and target not in every:
                yield f"Service {service['metadata']['name']}: no port {target}"
    for policy in build.of("NetworkPolicy"):
        for port in [port for rule in policy["spec"].get("ingress", []) for port in rule["ports"]]:
            if isinstance(port["port"], str) and port["port"] not in every:
                yield f"NetworkPolicy {policy['metadata']['name']}: no port {port['port']}"
    for monitor in build.of("ServiceMonitor", "PodMonitor"):
        offered = every
        if monitor["kind"] == "ServiceMonitor":
            offered = {port["name"] for service in monitored(build, monitor) for port in service["spec"]["ports"]}
        for end in monitor["spec"].get("endpoints", monitor["spec"].get("podMetricsEndpoints")):
            if monitor["metadata"]["name"] != "rabbitmq" and end["port"] not in offered:
                yield f"{monitor['kind']} {monitor['metadata']['name']}: no port {end['port']}"


def locked(build):
    for _, pod, container in build.ours():
        context, outer = container.get("securityContext", {}), pod.get("securityContext", {})
        if not (
            outer.get("runAsNonRoot")
            and outer.get("runAsUser")
            and outer.get("seccompProfile", {}).get("type") == "RuntimeDefault"
            and context.get("readOnlyRootFilesystem")
            and context.get("allowPrivilegeEscalation") is False
            and context.get("capabilities", {}).get("drop") == ["ALL"]
            and pod.get("automountServiceAccountToken") is False
            and pod.get("enableServiceLinks") is False
        ):
            yield f"{container['name']} may do more than it needs"
        if not {"cpu", "memory"} <= container["resources"]["requests"].keys():
            yield f"{container['name']} requests no resources"


def images(build):
    every = [container["image"] for w in build.of(*WORKLOADS) for container in w["spec"]["template"]["spec"]["containers"]]
    for image in every + [cluster["spec"]["image"] for cluster in build.of("RabbitmqCluster")]:
        if not re.search(r"(@sha256:|:(?!latest$)[\w.-]+$)", image):
            yield f"{image} is not pinned"
        if is_old_rabbitmq(image):
            yield f"{image} is too old for Penstock"


def work_queues(build):
    """How many a tenant has: both binaries agree, and no autoscaler makes more workers than that."""
    numbers = {
        int(build.environment(container).get("WEBHOOK_WORKERS") or settings()["WEBHOOK_WORKERS"][0])
        for workload, _, container in build.ours() if workload["kind"] != "Job"
    }
    if len(numbers) > 1:
        yield f"WEBHOOK_WORKERS is {sorted(numbers)}, and should be one number"
    for scaler in build.of("ScaledObject", "HorizontalPodAutoscaler"):
        most = scaler["spec"].get("maxReplicaCount", scaler["spec"].get("maxReplicas"))
        if most > min(numbers):
            yield f"{scaler['kind']}: of {most} workers, those beyond WEBHOOK_WORKERS ({min(numbers)}) have no queue"


def scaling(build):
    for scaler in build.of("ScaledObject", "HorizontalPodAutoscaler"):
        target = build.named(scaler["spec"]["scaleTargetRef"]["kind"], scaler["spec"]["scaleTargetRef"]["name"])
        if target and "replicas" in target["spec"]:
            yield f"replicas of {target['metadata']['name']} is set by two"
    if len(build.of("ScaledObject", "HorizontalPodAutoscaler")) > 1:
        yield "KEDA makes an autoscaler of its own: choose one"
    for scaler in build.of("ScaledObject"):
        triggers = scaler["spec"]["triggers"]
        queues = {trigger["metadata"]["queueName"] for trigger in triggers}
        _, _, worker = next(ours for ours in build.ours() if ours[2]["name"] == "worker")
        tenants = (build.environment(worker).get("TENANTS") or "").split(",")
        if queues != {rf"^webhooks\.{re.escape(tenant)}\." for tenant in tenants}:
            yield f"not one trigger for each tenant: {sorted(queues)}"
        if any(trigger["metadata"].get("useRegex") != "true" for trigger in triggers):
            yield "a tenant has several queues, and KEDA needs useRegex to see them"
        if any(trigger["metadata"].get("operation", "sum") != "sum" for trigger in triggers):
            yield "KEDA doesn't sum up the queues of a tenant"
        if any(trigger["metadata"].get("protocol") != "http" for trigger in triggers):
            yield "over AMQP, KEDA doesn't see what workers hold"
        namespace = scaler["metadata"].get("namespace")
        for host in {trigger["metadata"].get("host", "") for trigger in triggers}:
            name = (urllib.parse.urlsplit(host).hostname or "").split(".")
            if len(name) < 2 or name[2:3] == ["svc"] and namespace not in (None, name[1]):
                yield f"KEDA, in another namespace, doesn't find {host}"


def rabbitmq(build):
    if not build.of("Policy"):
        return
    by_name = operator.itemgetter("name")
    ours = []
    for policy in build.of("Policy"):
        spec = {key: value for key, value in policy["spec"].items() if key != "rabbitmqClusterReference"}
        spec["apply-to"] = spec.pop("applyTo")
        ours.append(spec)
    definitions = json.loads((DEPLOY / "rabbitmq/definitions.json").read_text())
    theirs = json.loads((DEPLOY / "rabbitmq/definitions.json").read_text())["policies"]
    if sorted(ours, key=by_name) != sorted(theirs, key=by_name):
        yield "the policies differ from deploy/rabbitmq/definitions.json"
    scrapes = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    asked = [scrape["params"] for scrape in scrapes if "params" in scrape]
    for monitor in build.of("ServiceMonitor"):
        if monitor["metadata"]["name"] == "rabbitmq":
            if [end["params"] for end in monitor["spec"]["endpoints"] if "params" in end] != asked:
                yield "deploy/prometheus/prometheus.yml asks for other families of metrics"


def users(build):
    for user in build.of("User"):
        secret = user["spec"].get("importCredentialsSecret", {}).get("name")
        if not {"username", "password"} <= BROUGHT_SECRETS.get(secret, set()):
            yield f"the credentials of {user['metadata']['name']} are nobody's"
    rights = {}
    for permission in build.of("Permission"):
        spec = permission["spec"]
        name = spec["userReference"]["name"]
        rights[name] = spec["permissions"]
        if not build.named("User", name):
            yield f"no User {name}"
        if spec["vhost"] not in [vhost["spec"]["name"] for vhost in build.of("Vhost")]:
            yield f"no Vhost {spec['vhost']}"
    if build.of("User") and rights.get("penstock") != dict.fromkeys(("configure", "write", "read"), ".*"):
        yield "Penstock declares its queues itself, and needs all rights"
    for scaler in build.of("ScaledObject"):
        keda = build.named("User", "keda")
        if build.of("User") and (not keda or "monitoring" not in keda["spec"].get("tags", []) or not rights.get("keda", {}).get("read")):
            yield f"{scaler['kind']}: KEDA may not see the queues"
