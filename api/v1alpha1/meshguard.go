package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// The label of namespaces that the default guard selects.
const (
	GuardedLabel = "meshvakt.io/guarded"
	GuardedValue = "true"
)

// DefaultGuardName is the name of the guard that chart, demo and
// `meshvakt check` use when no other is given.
const DefaultGuardName = "default"

// MeshGuard says which namespaces Meshvakt guards and what it demands of them.
// A namespace that several guards select must satisfy each of them.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=mg,categories=meshvakt
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Guarded",type=integer,JSONPath=`.status.namespaces.guarded`,description="Namespaces this guard selects"
// +kubebuilder:printcolumn:name="Strict",type=integer,JSONPath=`.status.namespaces.strict`,description="Selected namespaces that are STRICT without a hole"
// +kubebuilder:printcolumn:name="Violating",type=integer,JSONPath=`.status.namespaces.violating`,description="Selected namespaces in which something breaks a policy"
// +kubebuilder:printcolumn:name="Compliant",type=string,JSONPath=`.status.conditions[?(@.type=="Compliant")].status`
// +kubebuilder:printcolumn:name="Enforcing",type=string,JSONPath=`.status.conditions[?(@.type=="Enforcing")].status`
// +kubebuilder:printcolumn:name="Scanned",type=date,JSONPath=`.status.scan.lastScanTime`,description="When all was last looked at"
// +kubebuilder:printcolumn:name="Pods",type=integer,JSONPath=`.status.scan.pods`,priority=1
// +kubebuilder:printcolumn:name="Exceptions",type=integer,JSONPath=`.status.scan.exceptions.active`,priority=1
// +kubebuilder:printcolumn:name="Degraded",type=string,JSONPath=`.status.conditions[?(@.type=="Degraded")].status`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type MeshGuard struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec MeshGuardSpec `json:"spec"`
	// +optional
	Status MeshGuardStatus `json:"status,omitempty"`
}

// MeshGuardSpec is what a guard selects and demands. A policy whose block is
// absent is not enforced by this guard.
//
// +kubebuilder:validation:XValidation:rule="has(self.strictMTLS) || has(self.meshMembership) || has(self.sidecarResources) || has(self.nodePools)",message="at least one policy block must be set: meshMembership, nodePools, sidecarResources, strictMTLS"
type MeshGuardSpec struct {
	// NamespaceSelector selects the guarded namespaces by their labels; the
	// empty selector selects every namespace. kube-system, kube-public,
	// kube-node-lease and the namespace Meshvakt runs in are never guarded.
	//
	// +required
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist'])",message="operator must be In, NotIn, Exists or DoesNotExist"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : !has(e.values) || size(e.values) == 0)",message="values must be given for In and NotIn, and must be absent for Exists and DoesNotExist"
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`

	// StrictMTLS demands that every workload port of a guarded namespace takes
	// mutual TLS only.
	//
	// +optional
	StrictMTLS *StrictMTLS `json:"strictMTLS,omitempty"`

	// MeshMembership demands that every workload of a guarded namespace is in the
	// mesh and stays there, with nothing of its traffic going around the proxy.
	//
	// +optional
	MeshMembership *MeshMembership `json:"meshMembership,omitempty"`

	// SidecarResources demands that every proxy of a guarded namespace has requests
	// and limits of CPU and memory, and supplies them.
	//
	// +optional
	SidecarResources *SidecarResources `json:"sidecarResources,omitempty"`

	// NodePools demands that no pod of the mesh runs on nodes whose CPU is shared or
	// paid for by credits, and none outside of the allowed regions.
	//
	// +optional
	NodePools *NodePools `json:"nodePools,omitempty"`

	// Exceptions says which GuardExceptions this guard takes. Without it, none.
	//
	// +optional
	Exceptions *Exceptions `json:"exceptions,omitempty"`

	// Remediation says what Meshvakt does about a guarded namespace that was STRICT
	// and no longer is: None leaves it to people; Restore, under a guard whose
	// strictMTLS denies, creates the PeerAuthentication "default" with mode STRICT in
	// it, or sets to STRICT what lets plaintext in by a policy of the namespace.
	//
	// +optional
	// +kubebuilder:default=None
	Remediation Remediation `json:"remediation,omitempty"`
}

// StrictMTLS are the parameters of the policy strict-mtls.
type StrictMTLS struct {
	// ValidationActions says what a finding does: Deny refuses the request,
	// Warn tells the user, Audit annotates the API server's audit event. The
	// words mean what they mean in a ValidatingAdmissionPolicyBinding.
	//
	// +optional
	// +listType=set
	// +kubebuilder:default={Deny}
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:XValidation:rule="!('Deny' in self && 'Warn' in self)",message="Deny and Warn must not be used together: a refusal already carries every finding"
	ValidationActions []ValidationAction `json:"validationActions,omitempty"`

	// OnMissing says what happens to a guarded namespace that is not STRICT,
	// be it by a mesh-wide or by a policy of its own:
	// Reject refuses the namespace; Hold admits it with a warning and refuses
	// its workloads until it is STRICT; Provision is Hold, and Meshvakt creates
	// the PeerAuthentication "default" with mode STRICT in it at once.
	//
	// +optional
	// +kubebuilder:default=Reject
	OnMissing OnMissing `json:"onMissing,omitempty"`
}

// ValidationAction is what a finding does to the request that caused it.
//
// +kubebuilder:validation:Enum=Deny;Warn;Audit
type ValidationAction string

// The validation actions.
const (
	Deny  ValidationAction = "Deny"
	Warn  ValidationAction = "Warn"
	Audit ValidationAction = "Audit"
)

// OnMissing is what happens to a guarded namespace that is not STRICT.
//
// +kubebuilder:validation:Enum=Reject;Hold;Provision
type OnMissing string

// The ways to treat a guarded namespace that is not STRICT.
const (
	OnMissingReject    OnMissing = "Reject"
	OnMissingHold      OnMissing = "Hold"
	OnMissingProvision OnMissing = "Provision"
)

// MeshGuardStatus is how the namespaces of a guard stand.
type MeshGuardStatus struct {
	// ObservedGeneration is the generation of the spec that the status is about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Namespaces counts the namespaces the guard selects.
	//
	// +optional
	Namespaces NamespaceCounts `json:"namespaces,omitempty"`

	// Scan is what the leader's last look at the namespaces found; it is absent until
	// there has been one.
	//
	// +optional
	Scan *ScanStatus `json:"scan,omitempty"`

	// Conditions: Enforcing (the API server has been told to ask Meshvakt about
	// the namespaces of this guard), Compliant (every one of them is STRICT, and
	// nothing in them breaks a policy), Degraded (Meshvakt cannot do its part, as
	// when somebody undoes what it restores);
	// of a guard with meshMembership, InjectionAvailable (in every one of them a
	// pod that asks for nothing gets into the mesh), and of one with nodePools,
	// PlacementCompliant (no pod runs, and no volume is, where it must not be).
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// NamespaceCounts counts the namespaces of a guard.
type NamespaceCounts struct {
	// Guarded is how many namespaces the guard selects.
	Guarded int32 `json:"guarded"`
	// Strict is how many of them are STRICT without a hole.
	Strict int32 `json:"strict"`
	// NotStrict is how many of them are not.
	NotStrict int32 `json:"notStrict"`
	// Compliant is how many hold nothing that breaks a policy, as of the last scan.
	//
	// +optional
	Compliant int32 `json:"compliant"`
	// Violating is how many hold something that does.
	//
	// +optional
	Violating int32 `json:"violating"`
}

// ScanStatus is what stands in the namespaces of a guard.
type ScanStatus struct {
	// LastScanTime is when the last pass over all namespaces ended. What changes is
	// looked at in between as well.
	LastScanTime metav1.Time `json:"lastScanTime"`

	// Pods is how many running pods were judged.
	Pods int32 `json:"pods"`

	// StaleInjection is how many of them have a proxy of another revision or image
	// than a pod would get that is created now. That breaks no policy.
	//
	// +optional
	StaleInjection int32 `json:"staleInjection,omitempty"`

	// Findings counts what breaks a policy, by policy.
	//
	// +optional
	// +listType=map
	// +listMapKey=policy
	// +kubebuilder:validation:MaxItems=16
	Findings []PolicyFindings `json:"findings,omitempty"`

	// Exceptions counts those that apply, and those that have expired.
	//
	// +optional
	Exceptions ExceptionCounts `json:"exceptions,omitempty"`

	// Worst are the namespaces with the most findings, at most ten.
	//
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=10
	Worst []NamespaceFindings `json:"worst,omitempty"`
}

// PolicyFindings counts the findings of a policy.
type PolicyFindings struct {
	// Policy is the ID of the policy.
	Policy string `json:"policy"`
	// Findings is how many there are.
	Findings int32 `json:"findings"`
	// Excepted is how many more there would be without exceptions.
	//
	// +optional
	Excepted int32 `json:"excepted,omitempty"`
}

// ExceptionCounts counts the exceptions under a guard.
type ExceptionCounts struct {
	// Active is how many apply.
	Active int32 `json:"active"`
	// Expiring is how many of them end within a day.
	//
	// +optional
	Expiring int32 `json:"expiring,omitempty"`
	// Expired is how many have ended and are there still; revoked ones are not counted.
	//
	// +optional
	Expired int32 `json:"expired,omitempty"`
}

// NamespaceFindings counts the findings in a namespace.
type NamespaceFindings struct {
	// Name of the namespace.
	Name string `json:"name"`
	// Findings is how many there are.
	Findings int32 `json:"findings"`
	// Reasons are the most frequent of them, at most five.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=5
	Reasons []string `json:"reasons,omitempty"`
}

// The condition types of a MeshGuard.
const (
	ConditionEnforcing = "Enforcing"
	ConditionCompliant = "Compliant"
	// ConditionInjectionAvailable is there if the guard has MeshMembership. The API
	// server asks no webhook about webhook configurations, so nobody can be kept from
	// deleting or relabelling those of Istio's injectors; it can be seen.
	ConditionInjectionAvailable = "InjectionAvailable"
	// ConditionPlacementCompliant is there if the guard has NodePools: what runs
	// already, runs where it may.
	ConditionPlacementCompliant = "PlacementCompliant"
	// ConditionDegraded is True when Meshvakt cannot do its part for the guard.
	ConditionDegraded = "Degraded"
)

// MeshGuardList is a list of MeshGuards.
//
// +kubebuilder:object:root=true
type MeshGuardList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MeshGuard `json:"items"`
}
