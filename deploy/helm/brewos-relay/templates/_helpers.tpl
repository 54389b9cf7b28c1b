{{- define "relay.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "relay.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "relay.labels" -}}
{{ include "relay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "relay.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "relay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "relay.environment" -}}
# The relay reads the settings in the Secret as files.
- name: CREDENTIALS_DIRECTORY
  value: /run/credentials
- name: PUBLIC_URL
  value: {{ required "publicUrl must be set: where people find the relays" .Values.publicUrl | quote }}
{{- with .Values.trustedProxies }}
- name: BREWOS_RELAY_TRUSTED_PROXIES
  value: {{ join "," . | quote }}
{{- end }}
{{- if .Values.metrics.enabled }}
- name: BREWOS_RELAY_METRICS_PORT
  value: {{ .Values.metrics.port | quote }}
- name: BREWOS_RELAY_METRICS_HOST
  value: "0.0.0.0"
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "relay.mounts" -}}
- name: credentials
  mountPath: /run/credentials
  readOnly: true
- name: data
  mountPath: /data
- name: tmp
  mountPath: /tmp
{{- end }}

{{- define "relay.volumes" -}}
- name: credentials
  secret:
    secretName: {{ .Values.secretName }}
    defaultMode: 0440
# Nothing is kept here: the registry is in PostgreSQL.
- name: data
  emptyDir:
    sizeLimit: 16Mi
- name: tmp
  emptyDir:
    sizeLimit: 16Mi
{{- end }}

{{- define "relay.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}
