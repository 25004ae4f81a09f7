{{/* What the process may do in the whole cluster. */}}
{{- define "meshvakt.clusterRules" -}}
# What the policies judge by.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get, list, watch]
- apiGroups: [security.istio.io]
  resources: [peerauthentications]
  verbs: [get, list, watch]
- apiGroups: [meshvakt.io]
  resources: [meshguards, guardexceptions]
  verbs: [get, list, watch]
# What they leave for pods with their sidecars, for the authors of workloads.
- apiGroups: [""]
  resources: [limitranges, resourcequotas]
  verbs: [list]
# Which injectors are there. Their names are chosen by revisions and tags.
- apiGroups: [admissionregistration.k8s.io]
  resources: [mutatingwebhookconfigurations]
  verbs: [get, list, watch]
# What runs in a namespace that comes under a guard, or on a node, and the pod that a
# scheduler puts on one.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list]
# What runs in guarded namespaces, and what makes it: the scan lists them, and watches
# their metadata.
- apiGroups: [""]
  resources: [pods]
  verbs: [watch]
- apiGroups: [apps]
  resources: [daemonsets, deployments, statefulsets]
  verbs: [list, watch]
- apiGroups: [batch]
  resources: [cronjobs]
  verbs: [list, watch]
# Which nodes have CPU of their own, and where they are. Their class is written on them
# by the subresource, which takes labels too and leaves the spec alone.
- apiGroups: [""]
  resources: [nodes]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [nodes/status]
  verbs: [patch]
# Which volumes are outside of the allowed regions.
- apiGroups: [""]
  resources: [persistentvolumes]
  verbs: [list]
# MeshGuards with onMissing Provision, and with remediation Restore, which sets to STRICT
# what stands in the way of it.
- apiGroups: [security.istio.io]
  resources: [peerauthentications]
  verbs: [create, patch]
- apiGroups: [meshvakt.io]
  resources: [meshguards/status, guardexceptions/status]
  verbs: [patch, update]
{{- if ne .Values.scan.reports "none" }}
# Its reports, one in every namespace. Those of a namespace are found by their label.
- apiGroups: [{{ ternary "wgpolicyk8s.io" "openreports.io" (eq .Values.scan.reports "policyreports") }}]
  resources: [{{ ternary "policyreports" "reports" (eq .Values.scan.reports "policyreports") }}]
  verbs: [list, create, patch, delete]
{{- end }}
# Its own webhook configurations and no other. They are created by server-side apply,
# for which, unlike for a POST, the name is known when rights are checked.
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingwebhookconfigurations]
  resourceNames: [meshvakt]
  verbs: [get, list, watch, create, update, patch]
- apiGroups: [admissionregistration.k8s.io]
  resources: [mutatingwebhookconfigurations]
  resourceNames: [before-istio.meshvakt.io]
  verbs: [create, update, patch]
# The bindings of its ValidatingAdmissionPolicy, one for each guard. Their names are
# not known beforehand. That one may be bound needs the right to read MeshGuards.
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingadmissionpolicies]
  resourceNames: [meshvakt-mesh-membership, meshvakt-nodes, meshvakt-own-objects]
  {{- if .Values.ownObjects.keep }}
  verbs: [get, list, watch, create, update, patch]
  {{- else }}
  verbs: [get]
  {{- end }}
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingadmissionpolicybindings]
  verbs: [get, list, watch, create, update, patch, delete]
# Whether a user has the verb unguard.
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
# Events about the policies it creates, about guards without injection, about what the scan
# finds, and about what is put back.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- if .Values.ownObjects.keep }}
# Its own objects, to put them back. A role can only be put back by who has what is in it:
# that is why there are two of each. What cannot be changed to what it was is deleted first:
# a binding of another role, and a role that gathers its rules from others.
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  resourceNames: [meshguards.meshvakt.io, guardexceptions.meshvakt.io]
  verbs: [get, list, watch, create, update, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [meshvakt, meshvakt-spare]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [meshvakt-view, meshvakt-request, meshvakt-approve, meshvakt-unguard]
  verbs: [get, list, watch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterrolebindings]
  resourceNames: [meshvakt, meshvakt-spare]
  verbs: [get, list, watch, create, update, patch, delete]
# The guards, where they were deleted with their definition.
- apiGroups: [meshvakt.io]
  resources: [meshguards]
  verbs: [create]
{{- end }}
{{- end }}

{{/* ... in its own namespace. */}}
{{- define "meshvakt.ownRules" -}}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [meshvakt-ca]
  {{- if include "meshvakt.certificateSecret" . }}
  verbs: [get, list, watch]
  {{- else }}
  verbs: [get, list, watch, update, patch]
  {{- end }}
{{- if or .Values.evidence.enabled (not (include "meshvakt.certificateSecret" .)) }}
# A name cannot be demanded of what does not exist yet.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
{{- end }}
{{- if .Values.evidence.enabled }}
# The keys of pseudonyms.
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [meshvakt-evidence]
  verbs: [get, update]
# Who has used them, which whoever does announces by an Event.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list, watch, patch]
# Which start of which replica is running: each renews its own Lease, and reads those of all
# pods behind the Service.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames:
    {{- range until (int .Values.replicaCount) }}
    - meshvakt-evidence-meshvakt-{{ . }}
    {{- end }}
  verbs: [update]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list]
{{- end }}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [meshvakt-leader]
  verbs: [get, update, patch]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
# What the leader remembers of the namespaces that are STRICT.
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [meshvakt-standing]
  verbs: [get, update]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create]
# Who leads.
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
# The canary: a dry run of what Meshvakt must refuse.
- apiGroups: [meshvakt.io]
  resources: [guardexceptions]
  verbs: [create]
{{- if .Values.ownObjects.keep }}
# Its own objects, see the ClusterRole.
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [meshvakt-own-objects]
  verbs: [get, list, watch, create, update, patch]
- apiGroups: [""]
  resources: [services]
  resourceNames: [meshvakt]
  verbs: [get, list, watch, create, update, patch]
# Its tokens end with it, so that it cannot be put back.
- apiGroups: [""]
  resources: [serviceaccounts]
  resourceNames: [{{ .Values.serviceAccount.name | quote }}]
  verbs: [get, list, watch]
{{- if .Values.podDisruptionBudget.enabled }}
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  resourceNames: [meshvakt]
  verbs: [get, list, watch, create, update, patch]
{{- end }}
{{- if .Values.networkPolicy.enabled }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  resourceNames: [meshvakt]
  verbs: [get, list, watch, create, update, patch]
{{- end }}
{{- if .Values.resourceQuota.enabled }}
- apiGroups: [""]
  resources: [resourcequotas]
  resourceNames: [meshvakt-critical-pods]
  verbs: [get, list, watch, create, update, patch]
{{- end }}
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles]
  resourceNames: [meshvakt, meshvakt-spare]
  verbs: [get, list, watch, create, update, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  resourceNames: [meshvakt, meshvakt-spare]
  verbs: [get, list, watch, create, update, patch, delete]
{{- end }}
{{- end }}

{{/* ... in the namespace of Istio's control plane. */}}
{{- define "meshvakt.meshRules" -}}
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch]
{{- if .Values.ownObjects.keep }}
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles]
  resourceNames: [meshvakt-mesh-settings, meshvakt-mesh-settings-spare]
  verbs: [get, list, watch, create, update, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  resourceNames: [meshvakt-mesh-settings, meshvakt-mesh-settings-spare]
  verbs: [get, list, watch, create, update, patch, delete]
{{- end }}
{{- end }}
