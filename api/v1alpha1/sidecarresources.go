package v1alpha1

import "k8s.io/apimachinery/pkg/api/resource"

// SidecarResources are the parameters of the policy sidecar-resources: what CPU and
// memory every proxy of a guarded namespace has. Where several guards select a
// namespace, their numbers are applied in the order of the guards' names, and each
// of them judges the outcome.
//
// Quantities are compared by value, and one of zero counts as absent: Kubernetes
// takes a limit of 0 for none. The rules take whole numbers apart from texts because
// the API server has no estimate of what a conversion of one into the other costs.
//
// +kubebuilder:validation:XValidation:rule="(type(self.requests.cpu) == int ? quantity('0').add(self.requests.cpu) : quantity(self.requests.cpu)).compareTo(type(self.limits.cpu) == int ? quantity('0').add(self.limits.cpu) : quantity(self.limits.cpu)) <= 0",message="requests.cpu must not be greater than limits.cpu"
// +kubebuilder:validation:XValidation:rule="(type(self.requests.memory) == int ? quantity('0').add(self.requests.memory) : quantity(self.requests.memory)).compareTo(type(self.limits.memory) == int ? quantity('0').add(self.limits.memory) : quantity(self.limits.memory)) <= 0",message="requests.memory must not be greater than limits.memory"
// +kubebuilder:validation:XValidation:rule="!has(self.minimum) || !has(self.minimum.cpu) || (type(self.minimum.cpu) == int ? quantity('0').add(self.minimum.cpu) : quantity(self.minimum.cpu)).compareTo(type(self.requests.cpu) == int ? quantity('0').add(self.requests.cpu) : quantity(self.requests.cpu)) <= 0",message="minimum.cpu must not be greater than requests.cpu"
// +kubebuilder:validation:XValidation:rule="!has(self.minimum) || !has(self.minimum.memory) || (type(self.minimum.memory) == int ? quantity('0').add(self.minimum.memory) : quantity(self.minimum.memory)).compareTo(type(self.requests.memory) == int ? quantity('0').add(self.requests.memory) : quantity(self.requests.memory)) <= 0",message="minimum.memory must not be greater than requests.memory"
// +kubebuilder:validation:XValidation:rule="!has(self.maximum) || !has(self.maximum.cpu) || (type(self.limits.cpu) == int ? quantity('0').add(self.limits.cpu) : quantity(self.limits.cpu)).compareTo(type(self.maximum.cpu) == int ? quantity('0').add(self.maximum.cpu) : quantity(self.maximum.cpu)) <= 0",message="limits.cpu must not be greater than maximum.cpu"
// +kubebuilder:validation:XValidation:rule="!has(self.maximum) || !has(self.maximum.memory) || (type(self.limits.memory) == int ? quantity('0').add(self.limits.memory) : quantity(self.limits.memory)).compareTo(type(self.maximum.memory) == int ? quantity('0').add(self.maximum.memory) : quantity(self.maximum.memory)) <= 0",message="limits.memory must not be greater than maximum.memory"
// +kubebuilder:validation:XValidation:rule="self.mode != 'Clamp' || has(self.minimum) || has(self.maximum)",message="mode Clamp needs minimum or maximum: without bounds there is nothing to move"
// +kubebuilder:validation:XValidation:rule="self.mode != 'Exact' || !has(self.minimum) && !has(self.maximum)",message="mode Exact must be used without minimum and maximum: nothing but requests and limits is accepted"
type SidecarResources struct {
	// ValidationActions says what a finding in the pod that is to be stored does:
	// Deny refuses the request, Warn tells the user, Audit annotates the API
	// server's audit event.
	//
	// +optional
	// +listType=set
	// +kubebuilder:default={Deny}
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:XValidation:rule="!('Deny' in self && 'Warn' in self)",message="Deny and Warn must not be used together: a refusal already carries every finding"
	ValidationActions []ValidationAction `json:"validationActions,omitempty"`

	// Mode says what becomes of the numbers that a workload states by Istio's
	// annotations or in a container of its own named istio-proxy. Fill keeps them,
	// and supplies those that are missing; what lies outside of minimum and maximum
	// is refused. Clamp is Fill, and moves the rest to the nearest bound. Exact
	// replaces all of them.
	//
	// +optional
	// +kubebuilder:default=Fill
	Mode ResourcesMode `json:"mode,omitempty"`

	// Requests are what proxies get whose workload states none.
	//
	// +optional
	// +kubebuilder:default={}
	Requests ProxyRequests `json:"requests,omitempty"`

	// Limits are what proxies get whose workload states none.
	//
	// +optional
	// +kubebuilder:default={}
	Limits ProxyLimits `json:"limits,omitempty"`

	// Minimum is the least that any request or limit of a proxy may be.
	//
	// +optional
	Minimum *ProxyBound `json:"minimum,omitempty"`

	// Maximum is the most that any request or limit of a proxy may be.
	//
	// +optional
	Maximum *ProxyBound `json:"maximum,omitempty"`

	// QoS says what becomes of a pod whose own containers make it Guaranteed.
	// Preserve keeps it so: the requests of its proxy are raised to the limits.
	// Allow lets the proxy make it Burstable.
	//
	// +optional
	// +kubebuilder:default=Allow
	QoS QoSTreatment `json:"qos,omitempty"`

	// Concurrency is how many worker threads proxies have whose workload states
	// none in annotation proxy.istio.io/config; with mode Exact, all of them. If it
	// is absent, Istio takes the CPU limit, rounded up to whole CPUs.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1024
	Concurrency *int32 `json:"concurrency,omitempty"`
}

// ProxyRequests are the requests of a proxy.
type ProxyRequests struct {
	// CPU, more than 0.
	//
	// +optional
	// +kubebuilder:default="100m"
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",message="must be a quantity greater than 0, such as 100m"
	CPU *resource.Quantity `json:"cpu,omitempty"`

	// Memory, more than 0.
	//
	// +optional
	// +kubebuilder:default="128Mi"
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",message="must be a quantity greater than 0, such as 128Mi"
	Memory *resource.Quantity `json:"memory,omitempty"`
}

// ProxyLimits are the limits of a proxy.
type ProxyLimits struct {
	// CPU, more than 0.
	//
	// +optional
	// +kubebuilder:default="2000m"
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",message="must be a quantity greater than 0, such as 2000m"
	CPU *resource.Quantity `json:"cpu,omitempty"`

	// Memory, more than 0.
	//
	// +optional
	// +kubebuilder:default="1024Mi"
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",message="must be a quantity greater than 0, such as 1024Mi"
	Memory *resource.Quantity `json:"memory,omitempty"`
}

// ProxyBound bounds the requests and limits of a proxy. What is absent is no bound.
//
// +kubebuilder:validation:MinProperties=1
type ProxyBound struct {
	// CPU, more than 0.
	//
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",message="must be a quantity greater than 0, such as 2000m"
	CPU *resource.Quantity `json:"cpu,omitempty"`

	// Memory, more than 0.
	//
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",message="must be a quantity greater than 0, such as 1024Mi"
	Memory *resource.Quantity `json:"memory,omitempty"`
}

// ResourcesMode says what becomes of the numbers that a workload states.
//
// +kubebuilder:validation:Enum=Fill;Clamp;Exact
type ResourcesMode string

// The modes.
const (
	ModeFill  ResourcesMode = "Fill"
	ModeClamp ResourcesMode = "Clamp"
	ModeExact ResourcesMode = "Exact"
)

// QoSTreatment says what becomes of a pod that would be Guaranteed without its proxy.
//
// +kubebuilder:validation:Enum=Preserve;Allow
type QoSTreatment string

// The treatments.
const (
	QoSPreserve QoSTreatment = "Preserve"
	QoSAllow    QoSTreatment = "Allow"
)
