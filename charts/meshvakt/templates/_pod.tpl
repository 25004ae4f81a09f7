{{/*
The pods, of the Deployment without and of the StatefulSet with evidence: takes the chart's
top level as root, and evidence.
*/}}
{{- define "meshvakt.pod" -}}
{{- $evidence := .evidence }}
{{- with .root }}
{{- $secret := include "meshvakt.certificateSecret" . }}
{{- $clientCA := .Values.webhook.clientAuth.configMap }}
metadata:
  labels:
    {{- /* The first of two equal keys would win, so ours come out of a merge. */}}
    {{- $labels := merge (fromYaml (include "meshvakt.selectorLabels" .)) (dict
          "app.kubernetes.io/version" (.Values.image.tag | default .Chart.AppVersion | trunc 63)
          "sidecar.istio.io/inject" "false"
          "istio.io/dataplane-mode" "none") .Values.podLabels }}
    {{- /* The API server is not in the mesh and could not call a pod that is STRICT. */}}
    {{- toYaml $labels | nindent 4 }}
  annotations:
    kubectl.kubernetes.io/default-container: meshvakt
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ .Values.serviceAccount.name }}
  {{- /* Beside a sealer, the token is mounted by the container that needs it alone. */}}
  automountServiceAccountToken: {{ not $evidence }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  enableServiceLinks: false
  {{- if .Values.hostNetwork }}
  hostNetwork: true
  {{- end }}
  terminationGracePeriodSeconds: {{ add .Values.shutdown.drainDelaySeconds .Values.shutdown.timeoutSeconds 10 }}
  securityContext:
    {{- if $evidence }}
    {{- /* The owner of every file on the volume is not changed at each start. */}}
    {{- toYaml (merge (dict) .Values.podSecurityContext (dict "fsGroupChangePolicy" "OnRootMismatch")) | nindent 4 }}
    {{- else }}
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
    {{- end }}
  containers:
    - name: meshvakt
      image: {{ include "meshvakt.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - serve
        - --namespace={{ .Release.Namespace }}
        - --istio-namespace={{ .Values.istioNamespace }}
        - --listen=:{{ .Values.webhook.containerPort }}
        - --operations-listen=:{{ .Values.metrics.port }}
        - --service=meshvakt
        - --service-port={{ .Values.service.port }}
        - --webhook-timeout={{ .Values.webhook.timeoutSeconds }}s
        - --mutation={{ .Values.webhook.mutation }}
        - --max-in-flight={{ .Values.webhook.maxInFlight }}
        - --scan-interval={{ .Values.scan.interval }}
        - --reports={{ .Values.scan.reports }}
        - --tls-min-version={{ .Values.webhook.tlsMinVersion }}
        {{- if $secret }}
        - --certificates=files
        - --cert-file=/etc/meshvakt/certificate/tls.crt
        - --key-file=/etc/meshvakt/certificate/tls.key
        - --ca-file=/etc/meshvakt/certificate/ca.crt
        {{- else }}
        - --certificates=self-managed
        - --ca-secret=meshvakt-ca
        {{- end }}
        {{- if $clientCA }}
        - --client-ca-file=/etc/meshvakt/client-ca/{{ .Values.webhook.clientAuth.key }}
        {{- range .Values.webhook.clientAuth.names }}
        - {{ printf "--client-name=%s" . | quote }}
        {{- end }}
        {{- end }}
        {{- if .Values.ownObjects.keep }}
        - --own-objects=meshvakt-own-objects
        - --own-objects-digest={{ printf "%s\n%s" (include "meshvakt.keptObjects" . | trim) (include "meshvakt.watchedObjects" . | trim) | sha256sum }}
        - --own-objects-field-manager={{ .Values.ownObjects.fieldManager }}
        {{- end }}
        - --drain-delay={{ .Values.shutdown.drainDelaySeconds }}s
        - --shutdown-timeout={{ .Values.shutdown.timeoutSeconds }}s
        - --log-level={{ .Values.log.level }}
        - --log-format={{ .Values.log.format }}
        {{- if $evidence }}
        {{- include "meshvakt.evidenceArgs" . | trim | nindent 8 }}
        {{- end }}
        {{- range .Values.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      env:
        # The garbage collector works harder before the kernel kills.
        - name: GOMEMLIMIT
          valueFrom:
            resourceFieldRef:
              resource: limits.memory
        {{- if $evidence }}
        {{- include "meshvakt.evidenceEnv" . | trim | nindent 8 }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: webhook
          containerPort: {{ .Values.webhook.containerPort }}
          protocol: TCP
        - name: operations
          containerPort: {{ .Values.metrics.port }}
          protocol: TCP
      livenessProbe:
        httpGet:
          path: /healthz
          port: operations
        periodSeconds: 10
        timeoutSeconds: 3
        failureThreshold: 6
      readinessProbe:
        httpGet:
          path: /readyz
          port: operations
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      terminationMessagePolicy: FallbackToLogsOnError
      {{- if or $evidence $secret $clientCA }}
      volumeMounts:
        {{- if $evidence }}
        - name: evidence
          mountPath: /evidence
        - name: token
          mountPath: /var/run/secrets/kubernetes.io/serviceaccount
          readOnly: true
        {{- end }}
        {{- if $secret }}
        - name: certificate
          mountPath: /etc/meshvakt/certificate
          readOnly: true
        {{- end }}
        {{- if $clientCA }}
        - name: client-ca
          mountPath: /etc/meshvakt/client-ca
          readOnly: true
        {{- end }}
      {{- end }}
    {{- if $evidence }}
    {{- include "meshvakt.sealer" . | trim | nindent 4 }}
    {{- end }}
  {{- if or $evidence $secret $clientCA }}
  volumes:
    {{- if $evidence }}
    {{- include "meshvakt.evidenceVolumes" . | trim | nindent 4 }}
    {{- end }}
    {{- if $secret }}
    - name: certificate
      secret:
        secretName: {{ $secret }}
        defaultMode: 0440
    {{- end }}
    {{- if $clientCA }}
    - name: client-ca
      configMap:
        name: {{ $clientCA }}
    {{- end }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  affinity:
    {{- if .Values.affinity }}
    {{- toYaml .Values.affinity | nindent 4 }}
    {{- else }}
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            topologyKey: kubernetes.io/hostname
            labelSelector:
              matchLabels:
                {{- include "meshvakt.selectorLabels" . | nindent 16 }}
    {{- end }}
  topologySpreadConstraints:
    {{- if .Values.topologySpreadConstraints }}
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: topology.kubernetes.io/zone
      whenUnsatisfiable: ScheduleAnyway
      matchLabelKeys: [{{ ternary "controller-revision-hash" "pod-template-hash" $evidence }}]
      labelSelector:
        matchLabels:
          {{- include "meshvakt.selectorLabels" . | nindent 10 }}
    {{- end }}
{{- end }}
{{- end }}
