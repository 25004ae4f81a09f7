{{/* What cannot be guessed must be said; and no replica goes before others answer. */}}
{{- define "meshvakt.checkEvidence" -}}
{{- $e := .Values.evidence }}
{{- $namespace := .Release.Namespace }}
{{- if $e.enabled }}
{{- if not $e.name }}
{{- fail "evidence.name must be set where evidence.enabled is true: the first part of the names of the logs, such as evidence.example.org" }}
{{- end }}
{{- if not $e.retention }}
{{- fail "evidence.retention must be set where evidence.enabled is true: how long evidence is kept after its quarter, in hours (9504h are 13 months), or forever" }}
{{- end }}
{{- end }}
{{- if and $e.migration (not $e.enabled) }}
{{- fail "evidence.migration is for evidence.enabled true; to end evidence, first upgrade with both true, and then with both false" }}
{{- end }}
{{- /* Helm deletes the one right after it has created the other, and nobody would answer until that is ready. */}}
{{- if and .Release.IsUpgrade (not $e.migration) }}
{{- $goes := ternary "Deployment" "StatefulSet" $e.enabled }}
{{- $stays := ternary "StatefulSet" "Deployment" $e.enabled }}
{{- $going := lookup "apps/v1" $goes $namespace "meshvakt" }}
{{- if $going }}
{{- $staying := lookup "apps/v1" $stays $namespace "meshvakt" }}
{{- $serves := int (dig "status" "availableReplicas" 0 $going) }}
{{- $ready := int (dig "status" "availableReplicas" 0 $staying) }}
{{- if and (gt $serves 0) (lt $ready (int .Values.replicaCount)) }}
{{- fail (printf "%s meshvakt answers the API server with %d replicas, and of %s meshvakt %d are available; must be %d before the first is deleted, or requests about guarded namespaces are refused meanwhile; first upgrade with evidence.enabled=true and evidence.migration=true, and wait for both" $goes $serves $stays $ready (int .Values.replicaCount)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* How long evidence is kept, as the flags take it: 0 is for ever. */}}
{{- define "meshvakt.evidenceRetention" -}}
{{- if or .Values.evidence.legalHold (eq .Values.evidence.retention "forever") -}}
0
{{- else -}}
{{ .Values.evidence.retention }}
{{- end }}
{{- end }}

{{- define "meshvakt.evidenceArgs" -}}
- --evidence-dir=/evidence
- {{ printf "--evidence-name=%s" .Values.evidence.name | quote }}
- --evidence-mode={{ .Values.evidence.mode }}
- --evidence-secret=meshvakt-evidence
- --evidence-retention={{ include "meshvakt.evidenceRetention" . }}
{{- range .Values.evidence.breakGlassGroups }}
- {{ printf "--evidence-break-glass-group=%s" . | quote }}
{{- end }}
{{- with .Values.evidence.clock }}
{{- if or .error .source }}
- --evidence-clock-error={{ required "evidence.clock.error must be set where evidence.clock.source is" .error }}
- {{ printf "--evidence-clock-source=%s" (required "evidence.clock.source must be set where evidence.clock.error is" .source) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Who this replica is. */}}
{{- define "meshvakt.evidenceEnv" -}}
{{- range $name, $path := dict "POD_NAME" "metadata.name" "POD_UID" "metadata.uid" "POD_NAMESPACE" "metadata.namespace" "NODE_NAME" "spec.nodeName" }}
- name: {{ $name }}
  valueFrom:
    fieldRef:
      fieldPath: {{ $path }}
{{- end }}
{{- end }}

{{/*
The sealer. A pod is ready only while all of its containers run, so the one that runs here
is a process that does nothing but start the sealer again: a sealer that cannot go on must
not take the replica from the API server.
*/}}
{{- define "meshvakt.sealer" -}}
{{- $sealer := .Values.evidence.sealer }}
- name: sealer
  image: {{ include "meshvakt.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - evidence
    - supervise
    - --
    - evidence
    - seal
    - --dir=/evidence
    - --checkpoint-interval={{ $sealer.checkpointInterval }}
    - --retention={{ include "meshvakt.evidenceRetention" . }}
    {{- if $sealer.witnessPolicy.configMap }}
    - --witness-policy=/etc/meshvakt/witness/{{ $sealer.witnessPolicy.key }}
    - --witness-required={{ $sealer.witnessPolicy.required }}
    {{- end }}
    {{- if $sealer.listen.enabled }}
    - --listen=:{{ $sealer.listen.port }}
    {{- end }}
    - --log-level={{ .Values.log.level }}
    - --log-format={{ .Values.log.format }}
    {{- range $sealer.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  env:
    - name: GOMEMLIMIT
      valueFrom:
        resourceFieldRef:
          resource: limits.memory
  {{- if $sealer.listen.enabled }}
  ports:
    - name: evidence
      containerPort: {{ $sealer.listen.port }}
      protocol: TCP
  {{- end }}
  resources:
    {{- toYaml $sealer.resources | nindent 4 }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - name: evidence
      mountPath: /evidence
    {{- if $sealer.witnessPolicy.configMap }}
    - name: witness
      mountPath: /etc/meshvakt/witness
      readOnly: true
    {{- end }}
{{- end }}

{{- define "meshvakt.evidenceVolumes" -}}
{{- if eq .Values.evidence.volume.type "emptyDir" }}
- name: evidence
  emptyDir:
    sizeLimit: {{ .Values.evidence.volume.size }}
{{- end }}
{{- with .Values.evidence.sealer.witnessPolicy.configMap }}
- name: witness
  configMap:
    name: {{ . }}
{{- end }}
# As the kubelet would mount it into all containers.
- name: token
  projected:
    defaultMode: 0444
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3607
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                apiVersion: v1
                fieldPath: metadata.namespace
{{- end }}
