"""Settings, grace periods, volumes, ports and rights of our pods."""

import re

from build import WORKLOADS, binary, environment
from files import admin_port, amount, binaries, dockerfile, is_old_rabbitmq, seconds, settings


def names(build):
    for workload, _, container in build.ours():
        name = container["name"]
        given = [entry["name"] for entry in container["env"]]
        for twice in {setting for setting in given if given.count(setting) > 1}:
            yield f"{name} is given {twice} twice"
        for setting in given:
            # The console shows whether a webhook in quarantine is well signed.
            if name == "console" and setting.endswith("_SIGNING_KEYS"):
                continue
            if binary(container) not in binaries(setting, build.tenants()):
                yield f"{setting} is no setting of {name}"
        host = "CONSOLE_HOST" if name == "console" else "ADMIN_HOST"
        if workload["kind"] != "Job" and environment(container).get(host) != "0.0.0.0":
            yield f"{host} of {name}: probes come from elsewhere"


def grace(build):
    for _, pod, container in build.services():
        pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        # Kubernetes takes a sleep of 0 s since 1.33 only.
        if "lifecycle" in container and pre_stop < 1:
            yield f"Kubernetes 1.30 refuses the preStop of {container['name']}"
        told = seconds(environment(container).get("TERMINATION_GRACE") or "0s")
        if told != pod.get("terminationGracePeriodSeconds", 30) - pre_stop:
            yield f"TERMINATION_GRACE of {container['name']} is not what is left of terminationGracePeriodSeconds after preStop"


def budget(build):
    for workload, _, container in build.services():
        if workload["kind"] == "StatefulSet":
            each = int(environment(container).get("REFUSAL_BUDGET") or settings()["REFUSAL_BUDGET"][0])
            if not 0 < each * workload["spec"]["replicas"] < 30:
                yield f"REFUSAL_BUDGET of {each} × {workload['spec']['replicas']} replicas is not below 30"


def spool(build):
    for workload, _, container in build.ours():
        if binary(container) != "ingest":
            continue
        given = environment(container)
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


def ports(build):
    for _, _, container in build.services():
        name, given = container["name"], environment(container)
        mine = {port["name"]: port["containerPort"] for port in container["ports"]}
        right = {"admin": int(given.get("ADMIN_PORT") or admin_port(name))}
        if name == "ingest":
            right["http"] = int(given.get("PORT") or settings()["PORT"][0])
        if mine != right:
            yield f"{name} listens on {right}, not on {mine}"
        if "PORT" not in given and sorted(mine.values()) != sorted(dockerfile()[name][1]):
            yield f"EXPOSE of {name} in the Dockerfile says otherwise"
        yield from unprobed(container, ("startupProbe", "livenessProbe", "readinessProbe"), "admin")
    for _, _, container in build.ours():
        if container["name"] == "console":
            if [port["containerPort"] for port in container["ports"]] != [int(settings()["CONSOLE_PORT"][0])]:
                yield "the console listens on another port"
            yield from unprobed(container, ("livenessProbe", "readinessProbe"), "console")


def unprobed(container, probes, port):
    for probe in probes:
        if container.get(probe, {}).get("httpGet", {}).get("port") != port:
            yield f"{probe} of {container['name']} is missing, or not for the port {port}"


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
        if not re.search(r"(@sha256:[0-9a-f]{64}|:(?!latest$)[\w.-]+)$", image):
            yield f"{image} is not pinned"
        if is_old_rabbitmq(image):
            yield f"{image} is too old for Penstock"
