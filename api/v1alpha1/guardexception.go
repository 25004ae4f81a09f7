package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// GuardException lets objects of its namespace break policies of the guards for some
// time. It covers the objects of its own namespace and the Namespace itself, and no
// other. It applies from its approval until it expires or is revoked.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=gex,categories=meshvakt
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Requester",type=string,JSONPath=`.spec.requester`
// +kubebuilder:printcolumn:name="Approver",type=string,JSONPath=`.spec.approver`
// +kubebuilder:printcolumn:name="Left",type=string,JSONPath=`.status.timeLeft`,description="Time until it expires"
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.spec.expiresAt`
// +kubebuilder:printcolumn:name="Reference",type=string,JSONPath=`.spec.reference`,priority=1
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.reason`,priority=1
type GuardException struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec GuardExceptionSpec `json:"spec"`
	// +optional
	Status GuardExceptionStatus `json:"status,omitempty"`
}

// GuardExceptionSpec is what is let pass, why, and until when. Once it is approved,
// nothing in it can be changed but to end it earlier.
type GuardExceptionSpec struct {
	// Policies are those that need not be kept.
	//
	// +required
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Policies []ExceptedPolicy `json:"policies"`

	// ObjectSelector selects the objects by their labels: of pods, and of what makes
	// pods those of the template; of anything else its own. The empty selector
	// selects every object of the namespace.
	//
	// +required
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist'])",message="operator must be In, NotIn, Exists or DoesNotExist"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : !has(e.values) || size(e.values) == 0)",message="values must be given for In and NotIn, and must be absent for Exists and DoesNotExist"
	ObjectSelector metav1.LabelSelector `json:"objectSelector"`

	// Reason says why, for whoever approves and whoever audits.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=500
	Reason string `json:"reason"`

	// Reference is the ticket, or other record, that this belongs to.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=200
	Reference string `json:"reference"`

	// ExpiresAt is the moment from which the exception no longer applies.
	//
	// +required
	ExpiresAt metav1.Time `json:"expiresAt"`

	// Approved is set to true by whoever approves, in a request that changes nothing
	// else. The approver must be another person than the requester, and have the
	// verb approve on guardexceptions.
	//
	// +optional
	Approved bool `json:"approved,omitempty"`

	// Revoked is set to true to end the exception. It cannot be taken back.
	//
	// +optional
	Revoked bool `json:"revoked,omitempty"`

	// Requester is the user who wrote the terms of the exception. Meshvakt sets it
	// to the user of the request, and refuses any other value.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Requester string `json:"requester,omitempty"`

	// Approver is the user who approved. Meshvakt sets it likewise.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Approver string `json:"approver,omitempty"`
}

// ExceptedPolicy is a policy that need not be kept.
type ExceptedPolicy struct {
	// Name is the ID of the policy.
	//
	// +required
	// +kubebuilder:validation:Enum=mesh-membership;node-pools;sidecar-resources;strict-mtls
	Name string `json:"name"`

	// Reasons are those findings of the policy that are let pass, such as
	// WorkloadNotStrict; empty: all that can be.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=64
	Reasons []string `json:"reasons,omitempty"`
}

// GuardExceptionStatus says how an exception stands. Nothing is decided by it: whether
// an exception applies follows from its spec, the guards and the clock.
type GuardExceptionStatus struct {
	// ObservedGeneration is the generation of the spec that the status is about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// State is how the exception stands under the guards of its namespace.
	//
	// +optional
	State ExceptionState `json:"state,omitempty"`

	// Message says why, where the state alone does not.
	//
	// +optional
	Message string `json:"message,omitempty"`

	// TimeLeft is how long it still applies, in its largest unit, rounded down.
	//
	// +optional
	TimeLeft string `json:"timeLeft,omitempty"`
}

// ExceptionState is how an exception stands.
//
// +kubebuilder:validation:Enum=Pending;Active;Expired;Revoked;NotGranted
type ExceptionState string

// The states of an exception.
const (
	// ExceptionPending waits for its approval.
	ExceptionPending ExceptionState = "Pending"
	// ExceptionActive applies under at least one guard.
	ExceptionActive ExceptionState = "Active"
	// ExceptionExpired has reached its end.
	ExceptionExpired ExceptionState = "Expired"
	// ExceptionRevoked was ended before.
	ExceptionRevoked ExceptionState = "Revoked"
	// ExceptionNotGranted is one that no guard of the namespace takes.
	ExceptionNotGranted ExceptionState = "NotGranted"
)

// GuardExceptionList is a list of GuardExceptions.
//
// +kubebuilder:object:root=true
type GuardExceptionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GuardException `json:"items"`
}

// Exceptions are the rules by which a guard takes exceptions.
type Exceptions struct {
	// MaxDuration is how long after its creation an exception may last at most, as
	// 720h. It must not be more than a year (8784h).
	//
	// +optional
	// +kubebuilder:default="720h"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m') && duration(self) <= duration('8784h')",message="must be from 1m to 8784h"
	MaxDuration metav1.Duration `json:"maxDuration,omitzero"`

	// Approval says who must agree: TwoPerson, another person than the requester, who
	// has the verb approve on guardexceptions; None, nobody.
	//
	// +optional
	// +kubebuilder:default=TwoPerson
	Approval Approval `json:"approval,omitempty"`
}

// Approval is who must agree to an exception.
//
// +kubebuilder:validation:Enum=TwoPerson;None
type Approval string

// The ways to approve.
const (
	ApprovalTwoPerson Approval = "TwoPerson"
	ApprovalNone      Approval = "None"
)

// The longest duration that a guard can set for exceptions, and the default.
const (
	MaxExceptionHours     = 8784
	DefaultExceptionHours = 720
)

// Remediation is what Meshvakt does by itself about a guarded namespace that has ceased
// to be STRICT.
//
// +kubebuilder:validation:Enum=None;Restore
type Remediation string

// The ways to remedy.
const (
	RemediationNone    Remediation = "None"
	RemediationRestore Remediation = "Restore"
)

// ChangeReasonAnnotation is where whoever weakens or deletes a guard says why.
const ChangeReasonAnnotation = "meshvakt.io/change-reason"
