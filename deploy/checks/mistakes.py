"""The mistakes that prove.py makes, and changes that are none."""


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


FASTER = {"name": "faster", "database": "faster"}
# Values that Helm refuses: what is wrong, the values before, what changes in them.
VALUES = [
    ("a value that doesn't exist", "defaults", {"workQueus": 4}),
    ("a value that doesn't exist, further in", "defaults", {"ingest": {"replica": 2}}),
    ("a number as text", "defaults", {"ingest": {"replicas": "3"}}),
    ("no tenant", "defaults", {"tenants": []}),
    ("a tenant's name in capitals", "defaults", {"tenants": [FASTER | {"name": "Faster"}]}),
    ("a tenant who is there twice", "defaults", {"tenants": [FASTER, FASTER]}),
    ("two tenants whose variables are the same", "defaults", {"tenants": [FASTER | {"name": "a-b"}, FASTER | {"name": "a_b"}]}),
    ("a tenant without a MongoDB", "production", {"tenants": [FASTER]}),
    ("a password in the values", "production", {"rabbitmq": {"url": "amqp://user:password@rabbitmq"}}),
    ("half a reference", "defaults", {"tenants": [FASTER | {"mongoUri": {"secret": "penstock"}}]}),
    ("a setting that doesn't exist", "defaults", {"worker": {"settings": {"BATCHSIZE": "1"}}}),
    ("a setting of the other binary", "defaults", {"worker": {"settings": {"PUBLISH_TIMEOUT": "1s"}}}),
    ("a setting that follows from others", "defaults", {"ingest": {"settings": {"DRAIN_DELAY": "60s"}}}),
    ("a setting that is a number", "defaults", {"worker": {"settings": {"BATCH_SIZE": 100}}}),
    ("too many ingests for any refusal", "defaults", {"ingest": {"replicas": 30}}),
    ("a spool of no size", "defaults", {"ingest": {"spool": {"size": "10G"}}}),
    ("an image that isn't pinned", "defaults", {"worker": {"image": {"tag": "latest"}}}),
    ("a digest that is none", "defaults", {"worker": {"image": {"digest": "0.1.0"}}}),
    ("a RabbitMQ that isn't pinned", "defaults", {"rabbitmq": {"image": "rabbitmq"}}),
    ("no request for memory", "defaults", {"worker": {"resources": {"requests": {"memory": None}}}}),
    ("more workers than queues", "everything", {"autoscaling": {"maxReplicas": 9}}),
    ("more workers at least than at most", "everything", {"autoscaling": {"minReplicas": 7}}),
    ("fewer queues than workers", "everything", {"workQueues": 5}),
    ("KEDA without an address", "own-servers", {"autoscaling": {"by": "keda"}}),
    ("an autoscaler that there isn't", "defaults", {"autoscaling": {"by": "vpa"}}),
    ("an even number of nodes", "everything", {"rabbitmq": {"operator": {"replicas": 4}}}),
    ("two RabbitMQs", "production", {"trial": {"rabbitmq": True}}),
    ("no RabbitMQ", "defaults", {"trial": {"rabbitmq": False}}),
    ("a console that everybody can use", "production", {"console": {"token": {"key": None}}}),
    ("an Ingress for no host", "production", {"host": ""}),
    ("a host with a path", "production", {"host": "https://webhooks.example.com/webhook"}),
    ("a probe of no host", "defaults", {"monitoring": {"probe": True}}),
    ("alerts without a runbook", "production", {"monitoring": {"runbook": ""}}),
    ("a runbook that can't be clicked", "production", {"monitoring": {"runbook": "deploy/RUNBOOK.md"}}),
    ("a Job for nobody", "production", {"jobs": {"rebuild": [{"tenant": "acme"}]}}),
    ("a backfill without a token", "production", {"jobs": {"backfill": [{"tenant": "vip"}]}}),
    ("a peer that is none", "defaults", {"networkPolicy": {"from": {"prometheus": [{"namespace": "monitoring"}]}}}),
]

# Values that are fine: what follows from them follows.
FINE = [
    ("longer graces", "production", {"ingest": {"drainDelaySeconds": 60, "preStopSeconds": 90}, "worker": {"shutdownGraceSeconds": 600}}),
    ("more of everything", "production", {"ingest": {"replicas": 29, "spool": {"size": "1Ti"}}, "workQueues": 64}),
    ("one of everything", "production", {"ingest": {"replicas": 1, "spool": {"size": "100Mi"}}, "workQueues": 2}),
    ("another tenant", "defaults", {"tenants": [FASTER, {"name": "acme_uk-2", "database": "acme"}]}),
    ("nobody else is let in", "production", {"networkPolicy": {"from": {"operators": []}, "to": {"collector": []}}}),
    ("no monitors", "production", {"monitoring": {"monitors": False, "rules": False}}),
    ("KEDA and another RabbitMQ", "own-servers", {"autoscaling": {"by": "keda", "keda": {"managementUrl": "https://rabbitmq.example.com/penstock"}}}),
]

HELPERS, INGEST, WORKER, CONSOLE, JOBS, NETWORK, SCALING, RABBITMQ, MONITORING, INGRESS, TRIAL, NOTES = [
    f"templates/{name}" for name in (
        "_helpers.tpl", "ingest.yaml", "worker.yaml", "console.yaml", "jobs.yaml", "network.yaml", "autoscaling.yaml",
        "rabbitmq.yaml", "monitoring.yaml", "ingress.yaml", "trial.yaml", "NOTES.txt",
    )
]
ALL = "everything"
# What is wrong, the values, the file of the chart, the text that is there once, and the text instead.
TEMPLATES = [
    ("a field that doesn't exist", ALL, WORKER, "maxSurge: 1", "maxSurges: 1"),
    ("a number as text", ALL, INGEST, "replicas: {{ .Values.ingest.replicas }}", "replicas: {{ .Values.ingest.replicas | quote }}"),
    ("an unknown kind", ALL, INGRESS, "kind: Ingress", "kind: Ingres"),
    ("a misspelled field of KEDA", ALL, SCALING, "minReplicaCount", "minReplicas"),
    ("a number where KEDA wants text", ALL, SCALING, "eventsPerWorker | int | quote", "eventsPerWorker | int"),
    ("KEDA over AMQP", ALL, SCALING, "protocol: http", "protocol: amqp"),
    ("a host that KEDA can't find", ALL, HELPERS, '"http://rabbitmq.%s.svc:15672/%s" .Release.Namespace', '"http://rabbitmq:15672/%s"'),
    ("a host in another namespace", ALL, HELPERS, '15672/%s" .Release.Namespace', '15672/%s" "other"'),
    ("a tenant that doesn't scale", ALL, SCALING, "{{- range .Values.tenants }}", "{{- range rest .Values.tenants }}"),
    ("a trigger that can't log in", ALL, SCALING, '"name" "rabbitmq"', '"name" "broker"'),
    ("a key that the Secret lacks", ALL, SCALING, "key: username}", "key: URL}"),
    ("a scaler of something else", ALL, SCALING, "    kind: Deployment\n    name: worker\n  pollingInterval", "    kind: Deployment\n    name: workers\n  pollingInterval"),
    ("replicas set by two", ALL, WORKER, '{{- if eq .Values.autoscaling.by "none" }}', "{{- if true }}"),
    ("a number of workers that nobody sets", "defaults", WORKER, 'eq .Values.autoscaling.by "none"', 'eq .Values.autoscaling.by "all"'),
    ("a misspelled field of a monitor", ALL, MONITORING, "podMetricsEndpoints", "endpoints"),
    ("a monitor of no port", ALL, MONITORING, '      penstock/scrape: "true"\n  endpoints:\n    - port: admin', '      penstock/scrape: "true"\n  endpoints:\n    - port: metrics'),
    ("a monitor of nothing", ALL, MONITORING, "app.kubernetes.io/name: penstock-worker", "app: worker"),
    ("a setting that doesn't exist", ALL, WORKER, "- {name: SHUTDOWN_GRACE,", "- {name: SHUTDOWN_GRACES,"),
    ("a setting of the other binary", ALL, WORKER, "- {name: SHUTDOWN_GRACE,", "- {name: DRAIN_DELAY,"),
    ("a setting that is given twice", ALL, WORKER, "- {name: SHUTDOWN_GRACE,", "- {name: TERMINATION_GRACE,"),
    ("an admin port for this pod alone", ALL, HELPERS, "ADMIN_HOST, value: 0.0.0.0", "ADMIN_HOST, value: 127.0.0.1"),
    ("a console for this pod alone", ALL, CONSOLE, "CONSOLE_HOST, value: 0.0.0.0", "CONSOLE_HOST, value: 127.0.0.1"),
    ("a grace that is too short", ALL, INGEST, "terminationGracePeriodSeconds: {{ add .Values.ingest.preStopSeconds $grace }}", "terminationGracePeriodSeconds: 30"),
    ("a longer DRAIN_DELAY", ALL, INGEST, "{{ .Values.ingest.drainDelaySeconds }}s", "60s"),
    ("a longer preStop", ALL, INGEST, "seconds: {{ .Values.ingest.preStopSeconds }}", "seconds: 60"),
    ("a longer SHUTDOWN_GRACE", ALL, WORKER, "{{ .Values.worker.shutdownGraceSeconds }}s", "1m"),
    ("too many refusals", ALL, INGEST, "min 10 (div 29 .Values.ingest.replicas)", "10"),
    ("a larger spool", ALL, HELPERS, ".Values.ingest.spool.size) 2) 5", ".Values.ingest.spool.size) 4) 5"),
    ("a spool beside the volume", ALL, HELPERS, "/var/lib/penstock/spool", "/var/spool"),
    ("a spool that is deleted", ALL, INGEST, "whenScaled: Retain", "whenScaled: Delete"),
    ("a port that nobody listens on", ALL, INGEST, "containerPort: 9100", "containerPort: 9101"),
    ("a console that doesn't listen", ALL, CONSOLE, "containerPort: 9102", "containerPort: 9103"),
    ("a Service of no port", ALL, INGEST, "targetPort: http\n      appProtocol", "targetPort: web\n      appProtocol"),
    ("a Service of nothing", ALL, CONSOLE, '{{- include "penstock.selector" "console" | nindent 4 }}\n  ports', '{{- include "penstock.selector" "pages" | nindent 4 }}\n  ports'),
    ("a missing Service", ALL, INGEST, '"name" "ingest-pods"', '"name" "pods"'),
    ("an Ingress to nothing", ALL, INGRESS, "                name: ingest", "                name: web"),
    ("a missing probe", ALL, WORKER, "          readinessProbe:\n            httpGet: {path: /readyz, port: admin}\n            periodSeconds: 5\n            timeoutSeconds: 2\n            failureThreshold: 3\n", ""),
    ("a missing budget", ALL, WORKER, 'AlwaysAllow\n  selector:\n    matchLabels:\n      {{- include "penstock.selector" "worker"', 'AlwaysAllow\n  selector:\n    matchLabels:\n      {{- include "penstock.selector" "ingest"'),
    ("a missing NetworkPolicy", ALL, NETWORK, "values: [penstock-worker, penstock-console", "values: [penstock-console"),
    ("a NetworkPolicy for all but for nobody", ALL, NETWORK, "podSelector:\n    matchExpressions:\n      - key: app.kubernetes.io/name\n        operator: In\n        values: [penstock-ingest, penstock-drain]", "podSelector: {}"),
    ("a NetworkPolicy of nothing", ALL, JOBS, "      app.kubernetes.io/name: penstock-backfill", "      app.kubernetes.io/name: backfill"),
    ("everybody at the console", "production", NETWORK, "{{- if .peers }}", "{{- if true }}"),
    ("a MongoDB that can't be reached", ALL, NETWORK, "(list 27017)", "(list 27018)"),
    ("a DNS that can't be reached", ALL, NETWORK, '{{- include "penstock.toDns" . }}', ""),
    ("a respond.io that can't be reached", ALL, JOBS, "(list 443)", "(list 80)"),
    ("an ingest that nobody reaches", ALL, NETWORK, '(list "http")', '(list "https")'),
    ("a RabbitMQ that is open to all", ALL, NETWORK, '{{- if include "penstock.ownRabbitmq" . }}', "{{- if false }}"),
    ("a MongoDB that is open to all", "defaults", NETWORK, "{{- if .Values.trial.mongodb }}", "{{- if false }}"),
    ("nodes that can't reach each other", ALL, NETWORK, "- port: 4369", "- port: 4370"),
    ("a cluster that is emptied at once", ALL, RABBITMQ, "maxUnavailable: 1\n  selector:\n    matchLabels:\n      app.kubernetes.io/name: rabbitmq", "maxUnavailable: 1\n  selector:\n    matchLabels:\n      app.kubernetes.io/name: penstock-worker"),
    ("a probe of something else", ALL, MONITORING, "https://{{ .Values.host }}/", "https://www.example.com/"),
    ("a probe that makes errors", ALL, MONITORING, "/webhook/probe/probe/probe", "/webhook/faster"),
    ("a probe of another module", ALL, MONITORING, "module: penstock", "module: http_2xx"),
    ("a probe that no alert knows", ALL, MONITORING, "jobName: webhooks", "jobName: blackbox"),
    ("a runbook that can't be clicked", ALL, MONITORING, '(printf "%s#" .Values.monitoring.runbook)', '"deploy/RUNBOOK.md#"'),
    ("alerts about other namespaces", ALL, MONITORING, 'replace "SCOPE" $scope', 'replace "SCOPE" "job=~\\".+\\""'),
    ("alerts about other clusters", ALL, MONITORING, '{{- $scope = printf "%s, cluster=%q" $scope . }}', ""),
    ("alerts of nobody in particular", ALL, MONITORING, 'replace "labels: {" (printf "labels: {%s" $labels)', 'replace "labels: {" "labels: {"'),
    ("a dashboard that Grafana doesn't find", ALL, MONITORING, "grafana_dashboard", "dashboard"),
    ("another dashboard", ALL, MONITORING, '{{- .Files.Get "files/dashboard.json" | nindent 4 }}', "{}"),
    ("other metrics than in compose", ALL, MONITORING, "[queue_coarse_metrics, queue_consumer_count, node_coarse_metrics, node_metrics]", "[node_metrics]"),
    ("a Job that has no setting", ALL, JOBS, '--dry-run{{ end }}]\n          env:\n            {{- include "penstock.workerEnv" $ | nindent 12 }}', '--dry-run{{ end }}]\n          env: []'),
    ("a Job that nobody lets through", ALL, NETWORK, "penstock-ingest, penstock-drain]", "penstock-ingest]"),
    ("a Job without its keys", ALL, JOBS, '            {{- include "penstock.signingKeys" $ | nindent 12 }}\n', ""),
    ("a Job without its token", ALL, JOBS, "%sRESPOND_API_TOKEN", "%sAPI_TOKEN"),
    ("a root file system that can be written", ALL, HELPERS, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    ("root", ALL, HELPERS, "runAsUser: 65532", "runAsUser: 0"),
    ("a token", ALL, HELPERS, "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
    ("an account that there isn't", ALL, HELPERS, "serviceAccountName: penstock", "serviceAccountName: ingest"),
    ("an image that isn't pinned", ALL, HELPERS, "{{ .image.tag | default .root.Chart.AppVersion }}", "latest"),
    ("an old RabbitMQ", ALL, RABBITMQ, "image: {{ .Values.rabbitmq.image }}", "image: rabbitmq:3.13.7-management"),
    ("settings that don't roll the pods", ALL, INGEST, "          env:\n", "          envFrom: [{configMapRef: {name: ingest}}]\n          env:\n"),
    ("a Secret that nobody brings", ALL, HELPERS, "name: {{ .ref.secret }}", "name: secrets"),
    ("a Secret that the notes don't tell of", ALL, INGRESS, "secretName: {{ .Values.ingress.tlsSecret }}", "secretName: certificate"),
    ("a key that the notes don't tell of", ALL, NOTES, "(list .mongoUri .signingKeys .respondApiToken)", "(list .mongoUri .signingKeys)"),
    ("notes without the webhooks", ALL, NOTES, "{{ range .Values.tenants }}\n  https", "{{ range rest .Values.tenants }}\n  https"),
    ("a tenant without keys whom nobody tells of", "defaults", NOTES, "{{- if not .signingKeys }}", "{{- if false }}"),
    ("a policy that differs", ALL, RABBITMQ, "max-length-bytes: 536870912", "max-length-bytes: 1"),
    ("a policy that breaks a promise", ALL, RABBITMQ, "max-length-bytes: 536870912", "max-length-bytes: 536870912\n    message-ttl: 1000"),
    ("an even number of nodes", ALL, RABBITMQ, "replicas: {{ $operator.replicas }}\n  persistence", "replicas: 4\n  persistence"),
    ("a user without a password", ALL, RABBITMQ, "name: {{ $operator.userSecret }}", "name: penstock-user"),
    ("rights of nobody", ALL, RABBITMQ, 'kind: User\nmetadata:\n  {{- include "penstock.metadata" (dict "root" . "name" "penstock")', 'kind: User\nmetadata:\n  {{- include "penstock.metadata" (dict "root" . "name" "somebody")'),
    ("rights elsewhere", ALL, RABBITMQ, "vhost: penstock\n  userReference:\n    name: penstock", "vhost: /\n  userReference:\n    name: penstock"),
    ("too few rights", ALL, RABBITMQ, "configure: .*", 'configure: ""'),
    ("a KEDA that sees nothing", ALL, RABBITMQ, "tags: [monitoring]", "tags: [management]"),
    ("a KEDA that may read nothing", ALL, RABBITMQ, 'write: ""\n    read: .*', 'write: ""\n    read: ""'),
    ("a KEDA that is somebody else", ALL, RABBITMQ, "name: {{ .Values.autoscaling.keda.secret }}", "name: {{ $operator.userSecret }}"),
    ("more workers than queues", ALL, SCALING, "maxReplicaCount: {{ $max }}", "maxReplicaCount: 9"),
    ("more workers than queues, by CPU", "own-servers", SCALING, "maxReplicas: {{ $max }}", "maxReplicas: 9"),
    ("another number of queues", ALL, INGEST, "- {name: REFUSAL_BUDGET,", '- {name: WEBHOOK_WORKERS, value: "9"}\n            - {name: REFUSAL_BUDGET,'),
    ("one queue of several", ALL, SCALING, r"^webhooks\.{{ .name }}\.", "webhooks.{{ .name }}.0"),
    ("a pattern that is none", ALL, SCALING, '        useRegex: "true"\n', ""),
    ("the longest queue alone", ALL, SCALING, "operation: sum", "operation: max"),
]

SERVICE = "compose/services"
# What is wrong in the files of compose.
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
