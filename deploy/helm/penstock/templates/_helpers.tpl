{{/* Takes root, name, and component for what belongs to one of our pods. */}}
{{- define "penstock.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  app.kubernetes.io/part-of: penstock
  app.kubernetes.io/instance: {{ .root.Release.Name }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- with .component }}
  {{- include "penstock.selector" . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "penstock.selector" -}}
app.kubernetes.io/name: penstock-{{ . }}
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "penstock.podLabels" -}}
{{ include "penstock.selector" . }}
app.kubernetes.io/part-of: penstock
{{- end }}

{{/* Takes root and image. */}}
{{- define "penstock.image" -}}
image: {{ .image.repository }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
imagePullPolicy: {{ .root.Values.imagePullPolicy }}
{{- end }}

{{/* What all our pods have. */}}
{{- define "penstock.pod" -}}
serviceAccountName: penstock
automountServiceAccountToken: false
# Or variables such as PORT of other services could be taken for settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "penstock.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  privileged: false
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Takes selector, and perVersion: whether pods of an old version, which are about to go, don't count. */}}
{{- define "penstock.spread" -}}
# An uneven spread is better than a pod that doesn't run.
topologySpreadConstraints:
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    {{- if $.perVersion }}
    matchLabelKeys: [pod-template-hash]
    {{- end }}
    labelSelector:
      matchLabels:
        {{- include "penstock.selector" $.selector | nindent 8 }}
{{- end }}
{{- end }}

{{/* Takes name, and ref, which is {secret, key}. */}}
{{- define "penstock.secret" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .ref.secret }}
      key: {{ .ref.key }}
{{- end }}

{{- define "penstock.prefix" -}}
{{ .name | upper | replace "-" "_" }}_
{{- end }}

{{- define "penstock.tenants" -}}
{{- $names := list }}
{{- range .Values.tenants }}{{ $names = append $names .name }}{{ end }}
{{- join "," $names }}
{{- end }}

{{/*
The settings of both binaries stand in the pods and not in a ConfigMap: so a change rolls the pods, and a pod that is
started again while they roll has the settings that it was made with. Takes root, and settings.
*/}}
{{- define "penstock.env" -}}
{{- $root := .root -}}
- {name: TENANTS, value: {{ include "penstock.tenants" $root | quote }}}
- {name: WEBHOOK_WORKERS, value: {{ $root.Values.workQueues | int | quote }}}
# Probes and Prometheus come from other machines; the NetworkPolicy says who may.
- {name: ADMIN_HOST, value: 0.0.0.0}
{{- range $name, $value := merge dict .settings $root.Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- if $root.Values.rabbitmq.url }}
{{ include "penstock.secret" (dict "name" "AMQP_URL" "ref" $root.Values.rabbitmq.url) }}
{{- else }}
- {name: AMQP_URL, value: "amqp://penstock:penstock@rabbitmq:5672/%2f"}
{{- end }}
{{- end }}

{{- define "penstock.workerEnv" -}}
{{- /* Its user is that of AMQP_URL. */}}
{{- $management := ternary (dict "AMQP_MANAGEMENT_URL" "http://rabbitmq:15672") dict (eq "yes" (include "penstock.ownRabbitmq" .)) }}
{{- include "penstock.env" (dict "root" . "settings" (merge dict .Values.worker.settings $management)) }}
{{- range .Values.tenants }}
- {name: {{ include "penstock.prefix" . }}DB_NAME, value: {{ .database | quote }}}
{{- if .mongoUri }}
{{ include "penstock.secret" (dict "name" (printf "%sMONGO_URI" (include "penstock.prefix" .)) "ref" .mongoUri) }}
{{- else }}
- {name: {{ include "penstock.prefix" . }}MONGO_URI, value: "mongodb://mongodb-0.mongodb:27017/?replicaSet=rs0"}
{{- end }}
{{- end }}
{{- with .Values.worker.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "penstock.signingKeys" -}}
{{- range .Values.tenants }}
{{- if .signingKeys }}
{{ include "penstock.secret" (dict "name" (printf "%sSIGNING_KEYS" (include "penstock.prefix" .)) "ref" .signingKeys) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "penstock.spoolEnv" -}}
- {name: SPOOL_DIR, value: /var/lib/penstock/spool}
# The rest of the volume: the log of SQLite, what is set aside as damaged, the reserve.
- {name: SPOOL_MAX_BYTES, value: {{ div (mul (include "penstock.bytes" .Values.ingest.spool.size) 2) 5 | quote }}}
{{- end }}

{{/* Bytes of a quantity such as 4Gi. */}}
{{- define "penstock.bytes" -}}
{{- $unit := dict "M" 1048576 "G" 1073741824 "T" 1099511627776 }}
{{- mul (regexFind "^[0-9]+" . | int64) (get $unit (regexFind "[MGT]" .)) }}
{{- end }}

{{/*
The bound of a work queue: all of them may fill four fifths of what disk_free_limit (4 GB) leaves of RabbitMQ's disk, and
each 512 MiB at most. The rest is for the quarantine, dead letters, and RabbitMQ's own files.
*/}}
{{- define "penstock.queueMebibytes" -}}
{{- $room := sub (include "penstock.bytes" .Values.rabbitmq.operator.storage | int64) 4000000000 }}
{{- $queues := mul (len .Values.tenants) (add .Values.workQueues 1) }}
{{- min 512 (div (div (mul $room 4) (mul $queues 5)) 1048576) }}
{{- end }}

{{- define "penstock.maxReplicas" -}}
{{- .Values.autoscaling.maxReplicas | default .Values.workQueues | int }}
{{- end }}

{{- define "penstock.managementUrl" -}}
{{- if .Values.autoscaling.keda.managementUrl }}
{{- .Values.autoscaling.keda.managementUrl }}
{{- else }}
{{- /* KEDA asks from a namespace of its own. */}}
{{- printf "http://rabbitmq.%s.svc:15672/%s" .Release.Namespace (ternary "penstock" "%2f" .Values.rabbitmq.operator.enabled) }}
{{- end }}
{{- end }}

{{- define "penstock.ownRabbitmq" -}}
{{- if or .Values.trial.rabbitmq .Values.rabbitmq.operator.enabled }}yes{{ end }}
{{- end }}

{{- define "penstock.workerVolumeMounts" -}}
{{- with .Values.worker.extraVolumeMounts -}}
volumeMounts:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "penstock.workerVolumes" -}}
{{- with .Values.worker.extraVolumes -}}
volumes:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
