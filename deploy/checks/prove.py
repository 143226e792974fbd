"""prove.py BINARIES BUILT: breaks what was built, and the files of compose, in one way after the other; each has to be found."""

import copy
import sys
from pathlib import Path

import compose
import rules
import schemas
import try_settings
from files import load_all


def main(binaries, path):
    good = load_all(path.read_text())
    missed = [what for what, kind, name, change in RESOURCES if not found(binaries, good, kind, name, change)]
    files = compose.load()
    missed += [what for what, change in FILES if not found_in_compose(files, change)]
    for what in missed:
        print(f"nobody notices {what}", file=sys.stderr)
    print(f"{len(RESOURCES) + len(FILES) - len(missed)} mistakes were found, {len(missed)} were not")
    return 1 if missed else 0


def found(binaries, good, kind, name, change):
    resources = copy.deepcopy(good)
    broken = next(r for r in resources if r["kind"] == kind and r["metadata"]["name"].split("-")[0] == name)
    if change is None:
        resources.remove(broken)
    else:
        change(broken)
        if list(schemas.problems([broken])):
            return True
    build = rules.Build(resources)
    return any(rules.problems(build)) or any(try_settings.problems(binaries, build))


def found_in_compose(good, change):
    files = copy.deepcopy(good)
    change(files)
    return any(compose.problems(files))


def put(path, value):
    """Sets what is at the path, or removes it if the value is None."""
    def change(into):
        *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in parents:
            into = into[key]
        if value is None:
            del into[last]
        else:
            into[last] = value
    return change


POD = "spec/template/spec"
BOX = f"{POD}/containers/0"
RESOURCES = [
    ("a field that doesn't exist", "Deployment", "worker", put("spec/replica", 2)),
    ("a number as text", "StatefulSet", "ingest", put("spec/replicas", "3")),
    ("an unknown kind", "Ingress", "ingest", put("kind", "Ingres")),
    ("a misspelled field of KEDA", "ScaledObject", "worker", put("spec/minReplicas", 2)),
    ("a number where KEDA wants text", "ScaledObject", "worker", put("spec/triggers/0/metadata/value", 5000)),
    ("KEDA over AMQP", "ScaledObject", "worker", put("spec/triggers/0/metadata/protocol", "amqp")),
    ("a host that KEDA can't find", "ScaledObject", "worker", put("spec/triggers/0/metadata/host", "http://rabbitmq:15672/penstock")),
    ("a host in another namespace", "ScaledObject", "worker", put("spec/triggers/0/metadata/host", "http://rabbitmq.other.svc:15672/penstock")),
    ("a tenant that doesn't scale", "ScaledObject", "worker", put("spec/triggers/1", None)),
    ("a trigger that can't log in", "TriggerAuthentication", "rabbitmq", None),
    ("a key that the Secret lacks", "TriggerAuthentication", "rabbitmq", put("spec/secretTargetRef/0/key", "URL")),
    ("a scaler of something else", "ScaledObject", "worker", put("spec/scaleTargetRef/name", "workers")),
    ("replicas set by two", "Deployment", "worker", put("spec/replicas", 2)),
    ("a misspelled field of a monitor", "PodMonitor", "worker", put("spec/endpoints", [])),
    ("a monitor of no port", "ServiceMonitor", "ingest", put("spec/endpoints/0/port", "metrics")),
    ("a monitor of nothing", "PodMonitor", "worker", put("spec/selector/matchLabels", {"app": "worker"})),
    ("a setting that doesn't exist", "ConfigMap", "worker", put("data/BATCHSIZE", "1")),
    ("a setting of the other binary", "ConfigMap", "worker", put("data/DRAIN_DELAY", "5s")),
    ("an admin port for this pod alone", "ConfigMap", "ingest", put("data/ADMIN_HOST", "127.0.0.1")),
    ("a grace that is too short", "StatefulSet", "ingest", put(f"{POD}/terminationGracePeriodSeconds", 30)),
    ("a longer DRAIN_DELAY", "ConfigMap", "ingest", put("data/DRAIN_DELAY", "60s")),
    ("a longer preStop", "StatefulSet", "ingest", put(f"{BOX}/lifecycle/preStop/sleep/seconds", 60)),
    ("a longer SHUTDOWN_GRACE", "ConfigMap", "worker", put("data/SHUTDOWN_GRACE", "1m")),
    ("too many refusals", "StatefulSet", "ingest", put("spec/replicas", 4)),
    ("a larger spool", "ConfigMap", "ingest", put("data/SPOOL_MAX_BYTES", "8589934592")),
    ("a spool beside the volume", "ConfigMap", "ingest", put("data/SPOOL_DIR", "/var/spool")),
    ("a spool that is deleted", "StatefulSet", "ingest", put("spec/persistentVolumeClaimRetentionPolicy/whenScaled", "Delete")),
    ("a port that nobody listens on", "StatefulSet", "ingest", put(f"{BOX}/ports/1/containerPort", 9101)),
    ("a Service of no port", "Service", "ingest", put("spec/ports/0/targetPort", "web")),
    ("a Service of nothing", "Service", "ingest", put("spec/selector", {"app": "ingest"})),
    ("a missing Service", "Service", "ingest", put("metadata/name", "other")),
    ("a missing probe", "Deployment", "worker", put(f"{BOX}/readinessProbe", None)),
    ("a missing budget", "PodDisruptionBudget", "worker", None),
    ("a missing NetworkPolicy", "NetworkPolicy", "worker", None),
    ("a NetworkPolicy for all but for nobody", "NetworkPolicy", "ingest", put("spec/podSelector", {})),
    ("a MongoDB that can't be reached", "NetworkPolicy", "worker", put("spec/egress/2", None)),
    ("a DNS that can't be reached", "NetworkPolicy", "ingest", put("spec/egress/0", None)),
    ("a RabbitMQ that is open to all", "NetworkPolicy", "rabbitmq", None),
    ("nodes that can't reach each other", "NetworkPolicy", "rabbitmq", put("spec/ingress/1", None)),
    ("a cluster that is emptied at once", "PodDisruptionBudget", "rabbitmq", None),
    ("a probe of something else", "Probe", "webhooks", put("spec/targets/staticConfig/static/0", "https://www.example.com/")),
    ("a probe that makes errors", "Probe", "webhooks", put("spec/targets/staticConfig/static/0", "https://webhooks.example.com/webhook/faster")),
    ("a probe that no alert knows", "Probe", "webhooks", put("spec/jobName", "blackbox")),
    ("a runbook that can't be clicked", "PrometheusRule", "penstock", put("spec/groups/0/rules/0/annotations/runbook_url", "deploy/RUNBOOK.md")),
    ("a Job that has no setting", "Job", "rebuild", put(f"{BOX}/env", [])),
    ("a Job that nobody lets through", "Job", "drain", put("spec/template/metadata/labels", {"app": "drain"})),
    ("a root file system that can be written", "Deployment", "worker", put(f"{BOX}/securityContext/readOnlyRootFilesystem", False)),
    ("root", "Deployment", "worker", put(f"{POD}/securityContext/runAsUser", 0)),
    ("a token", "Deployment", "worker", put(f"{POD}/automountServiceAccountToken", True)),
    ("an image that isn't pinned", "Deployment", "worker", put(f"{BOX}/image", "penstock/worker:latest")),
    ("a missing ConfigMap", "ConfigMap", "worker", None),
    ("a Secret that nobody brings", "Deployment", "worker", put(f"{BOX}/envFrom/1/secretRef/name", "secrets")),
    ("a policy that differs", "Policy", "webhooks", put("spec/definition/max-length-bytes", 1)),
    ("a policy that breaks a promise", "Policy", "webhooks", put("spec/definition/message-ttl", 1000)),
    ("other metrics than in compose", "ServiceMonitor", "rabbitmq", put("spec/endpoints/1/params/family", ["node_metrics"])),
    ("an even number of nodes", "RabbitmqCluster", "rabbitmq", put("spec/replicas", 4)),
    ("a user without a password", "User", "penstock", put("spec/importCredentialsSecret/name", "penstock")),
    ("rights of nobody", "User", "penstock", None),
    ("rights elsewhere", "Permission", "penstock", put("spec/vhost", "/")),
    ("too few rights", "Permission", "penstock", put("spec/permissions/configure", "")),
    ("a KEDA that sees nothing", "User", "keda", put("spec/tags", ["management"])),
    ("a KEDA that may read nothing", "Permission", "keda", None),
    ("a Secret that README.md doesn't tell of", "Ingress", "ingest", put("spec/tls/0/secretName", "certificate")),
    ("more workers than queues", "ScaledObject", "worker", put("spec/maxReplicaCount", 9)),
    ("another number of queues", "ConfigMap", "worker", put("data/WEBHOOK_WORKERS", "9")),
    ("one queue of several", "ScaledObject", "worker", put("spec/triggers/0/metadata/queueName", "webhooks.faster.0")),
    ("a pattern that is none", "ScaledObject", "worker", put("spec/triggers/0/metadata/useRegex", None)),
    ("the longest queue alone", "ScaledObject", "worker", put("spec/triggers/0/metadata/operation", "max")),
    ("an old RabbitMQ", "RabbitmqCluster", "rabbitmq", put("spec/image", "rabbitmq:3.13.7-management")),
]
SERVICE = "compose/services"
FILES = [
    ("an image that isn't pinned", put(f"{SERVICE}/mongodb/image", "mongo")),
    ("an old RabbitMQ", put(f"{SERVICE}/rabbitmq/image", "rabbitmq:3.13.7-management")),
    ("a target that isn't built", put(f"{SERVICE}/ingest/build/target", "gateway")),
    ("a port that is open to everybody", put(f"{SERVICE}/grafana/ports/0", "3000:3000")),
    ("a port that nobody listens on", put(f"{SERVICE}/ingest/ports/0", "127.0.0.1:8000:8080")),
    ("a file that isn't there", put(f"{SERVICE}/samples/volumes/0", "./samples:/samples:ro")),
    ("a volume that isn't declared", put("compose/volumes/spool", None)),
    ("a wait for ever", put(f"{SERVICE}/rabbitmq/healthcheck", None)),
    ("a setting that doesn't exist", put(f"{SERVICE}/worker/environment/MONGO_URL", "mongodb://mongodb")),
    ("a grace that is too short", put(f"{SERVICE}/worker/stop_grace_period", "10s")),
    ("a spool in the container", put(f"{SERVICE}/ingest/volumes/0", "spool:/spool")),
    ("a scrape of the wrong port", put("prometheus/scrape_configs/0/static_configs/0/targets/0", "ingest:9101")),
    ("one worker of several", put("prometheus/scrape_configs/1", {"job_name": "worker", "static_configs": [{"targets": ["worker:9101"]}]})),
    ("missing rules", put("prometheus/rule_files/0", "/etc/prometheus/rules.yaml")),
    ("a dashboard elsewhere", put("dashboards/providers/0/options/path", "/dashboards")),
    ("a datasource that thinks scrapes are closer", put("datasources/datasources/0/jsonData/timeInterval", "5s")),
    ("a datasource that doesn't answer", put("datasources/datasources/0/url", "http://localhost:9090")),
]

if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
