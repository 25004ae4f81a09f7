{{/* Labels by which Deployment and Services select the pods; immutable. */}}
{{- define "meshvakt.selectorLabels" -}}
app.kubernetes.io/name: meshvakt
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: webhook
{{- end }}

{{/* Labels by which the DaemonSet selects its pods; immutable. */}}
{{- define "meshvakt.probeSelectorLabels" -}}
app.kubernetes.io/name: meshvakt
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: probe
{{- end }}

{{/* Labels of every object. */}}
{{- define "meshvakt.labels" -}}
app.kubernetes.io/name: meshvakt
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- if .Values.ownObjects.keep }}
meshvakt.io/installation: {{ include "meshvakt.mark" . | quote }}
{{- end }}
{{- end }}

{{/*
The mark by which Meshvakt tells its objects from those of another version: a new one with
every change of what makes them. See docs/guarding-the-guard.md.
*/}}
{{- define "meshvakt.mark" -}}
{{- $values := omit .Values "guard" "metrics" "probe" "extraObjects" "uninstall" "evidence" }}
{{- /* The replicas that are left after a change of their kind go on as they are. */}}
{{- $_ := set $values "evidence" (omit .Values.evidence "migration") }}
{{- list .Release.Name .Release.Namespace .Chart.Version $values | toJson | sha256sum | trunc 16 -}}
{{- end }}

{{/* The objects that Meshvakt puts back, and those that it only looks after. */}}
{{- define "meshvakt.keptObjects" -}}
{{- range $file := list "crds" "rbac" "admissionpolicies" "nodes" "own-objects-policy" "poddisruptionbudget" "service" "networkpolicy" "resourcequota" }}
{{- with include (printf "%s/%s.yaml" $.Template.BasePath $file) $ | trim | trimPrefix "---" | trim }}
---
{{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "meshvakt.watchedObjects" -}}
{{- range $file := list "rbac-people" "serviceaccount" }}
{{- with include (printf "%s/%s.yaml" $.Template.BasePath $file) $ | trim | trimPrefix "---" | trim }}
---
{{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "meshvakt.image" -}}
{{- with .Values.image -}}
{{ with .registry }}{{ . }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The Secret that holds a serving certificate in files, empty when there is none. */}}
{{- define "meshvakt.certificateSecret" -}}
{{- if eq .Values.certificates.mode "cert-manager" -}}
meshvakt-serving
{{- else if eq .Values.certificates.mode "secret" -}}
{{ required "certificates.secret.name must be set for certificates.mode secret" .Values.certificates.secret.name }}
{{- end }}
{{- end }}

{{/* The host by which the API server verifies the webhook. */}}
{{- define "meshvakt.host" -}}
meshvakt.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Whether the API server knows MeshGuards already, "true" or empty. */}}
{{- define "meshvakt.guardsKnown" -}}
{{- if or .Release.IsUpgrade (not .Values.crds.install) (.Capabilities.APIVersions.Has "meshvakt.io/v1alpha1/MeshGuard") -}}
true
{{- end }}
{{- end }}
