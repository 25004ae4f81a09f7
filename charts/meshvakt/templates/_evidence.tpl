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
{{- $m := $e.sealer.mirror }}
{{- if and $m.lock (or (not (hasPrefix "s3://" $m.url)) (eq $e.retention "forever")) }}
{{- fail "evidence.sealer.mirror.lock is for evidence.sealer.mirror.url s3://BUCKET/PREFIX, and for evidence.retention in hours, which says until when it locks" }}
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
    {{- with $sealer.mirror }}
    {{- if .url }}
    - {{ printf "--mirror=%s" .url | quote }}
    {{- if and .secret (not (hasPrefix "s3://" .url)) }}
    - --mirror-authorization-file=/etc/meshvakt/mirror/authorization
    {{- end }}
    {{- with .endpoint }}
    - {{ printf "--mirror-endpoint=%s" . | quote }}
    {{- end }}
    {{- with .region }}
    - --mirror-region={{ . }}
    {{- end }}
    {{- if .caConfigMap }}
    - --mirror-ca-file=/etc/meshvakt/mirror-ca/ca.crt
    {{- end }}
    {{- if .lock }}
    - --mirror-lock={{ .lock }}
    - --mirror-lock-for={{ $.Values.evidence.retention }}
    {{- end }}
    {{- end }}
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
    {{- if and $sealer.mirror.secret (hasPrefix "s3://" $sealer.mirror.url) }}
    {{- range $name, $optional := dict "AWS_ACCESS_KEY_ID" false "AWS_SECRET_ACCESS_KEY" false "AWS_SESSION_TOKEN" true }}
    - name: {{ $name }}
      valueFrom:
        secretKeyRef:
          name: {{ $sealer.mirror.secret }}
          key: {{ $name }}
          optional: {{ $optional }}
    {{- end }}
    {{- end }}
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
    {{- if include "meshvakt.mirrorSecretFile" . | trim }}
    - name: mirror
      mountPath: /etc/meshvakt/mirror
      readOnly: true
    {{- end }}
    {{- if and $sealer.mirror.url $sealer.mirror.caConfigMap }}
    - name: mirror-ca
      mountPath: /etc/meshvakt/mirror-ca
      readOnly: true
    {{- end }}
{{- end }}

{{/* The Secret that is mounted, and not an environment: it is read anew when it is replaced. */}}
{{- define "meshvakt.mirrorSecretFile" -}}
{{- with .Values.evidence.sealer.mirror }}
{{- if and .url .secret (not (hasPrefix "s3://" .url)) -}}
{{ .secret }}
{{- end }}
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
{{- with include "meshvakt.mirrorSecretFile" . | trim }}
- name: mirror
  secret:
    secretName: {{ . }}
{{- end }}
{{- with .Values.evidence.sealer.mirror }}
{{- if and .url .caConfigMap }}
- name: mirror-ca
  configMap:
    name: {{ .caConfigMap }}
{{- end }}
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
