package v1alpha1

// ClassLabel is the label of nodes in which the leading replica writes their class:
// burstable, dedicated or unknown. Kubelets may not set labels of this prefix. Where
// guards come to different classes, it has the worst of them.
const ClassLabel = "meshvakt.node-restriction.kubernetes.io/class"

// ClassSourceAnnotation is the annotation of nodes in which the leading replica writes
// what their class comes from: label, instance-type, nothing, or steal with the
// thresholds that it has reached, as in "steal:5,10". A node that is burstable because of
// CPU steal stays so until the steal has fallen to half of the threshold, and this is
// where it is remembered.
const ClassSourceAnnotation = "meshvakt.io/class-source"

// NodePools are the parameters of the policy node-pools: on which nodes the pods of
// guarded namespaces run.
//
// +kubebuilder:validation:XValidation:rule="self.onNoNode != 'Wait' || self.steering == 'Required' && 'Deny' in self.validationActions",message="onNoNode Wait must be used together with steering Required and validationActions Deny: nothing else keeps pods waiting"
// +kubebuilder:validation:XValidation:rule="!has(self.allowedZones) || has(self.allowedRegions)",message="allowedZones must be used together with allowedRegions: a zone is in a region"
type NodePools struct {
	// ValidationActions says what a finding does: Deny refuses the request, Warn
	// tells the user, Audit annotates the API server's audit event.
	//
	// +optional
	// +listType=set
	// +kubebuilder:default={Deny}
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:XValidation:rule="!('Deny' in self && 'Warn' in self)",message="Deny and Warn must not be used together: a refusal already carries every finding"
	ValidationActions []ValidationAction `json:"validationActions,omitempty"`

	// Scope says which pods of the guarded namespaces are meant: Mesh, those with a
	// proxy and those enrolled in ambient; All, every pod.
	//
	// +optional
	// +kubebuilder:default=Mesh
	Scope PlacementScope `json:"scope,omitempty"`

	// ControlPlane says whether istiod and the proxies in the root namespaces of the
	// mesh are meant as well: Guard or Ignore. These are let pass while Meshvakt does
	// not answer, whatever the failure policy, so that the mesh comes up without it.
	//
	// +optional
	// +kubebuilder:default=Guard
	ControlPlane ControlPlanePlacement `json:"controlPlane,omitempty"`

	// NodeLabel names a label by which nodes state their class themselves; it counts
	// before all else.
	//
	// +optional
	NodeLabel *NodeLabel `json:"nodeLabel,omitempty"`

	// InstanceTypes are classes of instance types that count before the catalogue
	// that is built in. The first that matches counts.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	InstanceTypes []InstanceTypeClass `json:"instanceTypes,omitempty"`

	// MaxStealPercent is the CPU steal from which a node counts as burstable that is
	// not so by its label: its CPU is shared, whatever it is called. The node counts as
	// before once the steal has fallen to half of that. It is measured by the probe of
	// the chart; absent: no node is judged by it.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxStealPercent *int32 `json:"maxStealPercent,omitempty"`

	// Unknown says what becomes of nodes whose class nothing tells: Allow or Deny.
	//
	// +optional
	// +kubebuilder:default=Allow
	Unknown UnknownNodes `json:"unknown,omitempty"`

	// Steering says whether pods are told, when they are created, by required node
	// affinity, to keep away from nodes they may not run on: Required or None. With
	// None such a pod waits when the scheduler has chosen a node that is refused. Where
	// validationActions has no Deny, nothing is steered: a trial keeps no pod waiting.
	//
	// +optional
	// +kubebuilder:default=Required
	Steering Steering `json:"steering,omitempty"`

	// OnNoNode says what becomes of a pod that could land on refused nodes alone, as
	// nodes are at present: Reject refuses it; Wait lets it in, steered away from all of
	// them, so that it waits for other nodes, and autoscalers make some. A pod that asks
	// for refused nodes by itself is refused in any case.
	//
	// +optional
	// +kubebuilder:default=Reject
	OnNoNode OnNoNode `json:"onNoNode,omitempty"`

	// AllowedRegions are the values of label topology.kubernetes.io/region of nodes
	// that pods may run on. A node without the label is refused. Absent: all.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`
	AllowedRegions []string `json:"allowedRegions,omitempty"`

	// AllowedZones are the values of label topology.kubernetes.io/zone of nodes that
	// pods may run on, within the allowed regions. A node without the label is refused.
	// Absent: all zones of the regions.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`
	AllowedZones []string `json:"allowedZones,omitempty"`
}

// NodeLabel is a label by which nodes state their class.
//
// +kubebuilder:validation:XValidation:rule="has(self.burstable) || has(self.dedicated)",message="burstable or dedicated must be set: the label says nothing otherwise"
// +kubebuilder:validation:XValidation:rule="!has(self.burstable) || !has(self.dedicated) || !self.burstable.exists(v, v in self.dedicated)",message="a value must not be both burstable and dedicated"
type NodeLabel struct {
	// Key of the label. A prefix of node-restriction.kubernetes.io keeps kubelets
	// from setting it themselves.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=317
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`
	// +kubebuilder:validation:XValidation:rule="self != 'meshvakt.node-restriction.kubernetes.io/class'",message="must not be the label in which Meshvakt writes the class"
	Key string `json:"key"`

	// Burstable are the values of nodes whose CPU is shared or paid for by credits.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$`
	Burstable []string `json:"burstable,omitempty"`

	// Dedicated are the values of nodes that have their CPU to themselves.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$`
	Dedicated []string `json:"dedicated,omitempty"`
}

// InstanceTypeClass says what class instance types are of.
type InstanceTypeClass struct {
	// Types are values of label node.kubernetes.io/instance-type; "*" stands for any
	// characters, and case does not matter.
	//
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[-A-Za-z0-9_.*]+$`
	Types []string `json:"types"`

	// Class of these types: Burstable or Dedicated.
	//
	// +required
	Class NodeClass `json:"class"`
}

// NodeClass says whether nodes have their CPU to themselves.
//
// +kubebuilder:validation:Enum=Burstable;Dedicated
type NodeClass string

// The classes that can be given to instance types.
const (
	NodeBurstable NodeClass = "Burstable"
	NodeDedicated NodeClass = "Dedicated"
)

// PlacementScope says which pods of guarded namespaces are meant.
//
// +kubebuilder:validation:Enum=Mesh;All
type PlacementScope string

// The scopes.
const (
	PlacementMesh PlacementScope = "Mesh"
	PlacementAll  PlacementScope = "All"
)

// ControlPlanePlacement says whether the mesh's own pods are meant as well.
//
// +kubebuilder:validation:Enum=Guard;Ignore
type ControlPlanePlacement string

// The treatments of the mesh's own pods.
const (
	ControlPlaneGuard  ControlPlanePlacement = "Guard"
	ControlPlaneIgnore ControlPlanePlacement = "Ignore"
)

// UnknownNodes says what becomes of nodes whose class nothing tells.
//
// +kubebuilder:validation:Enum=Allow;Deny
type UnknownNodes string

// The treatments of nodes of unknown class.
const (
	UnknownAllow UnknownNodes = "Allow"
	UnknownDeny  UnknownNodes = "Deny"
)

// Steering says whether pods are told to keep away from nodes.
//
// +kubebuilder:validation:Enum=Required;None
type Steering string

// The ways of steering.
const (
	SteeringRequired Steering = "Required"
	SteeringNone     Steering = "None"
)

// OnNoNode is what happens to a pod that could land on refused nodes alone.
//
// +kubebuilder:validation:Enum=Reject;Wait
type OnNoNode string

// The ways to treat such a pod.
const (
	OnNoNodeReject OnNoNode = "Reject"
	OnNoNodeWait   OnNoNode = "Wait"
)
