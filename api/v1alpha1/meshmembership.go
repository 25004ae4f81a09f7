package v1alpha1

// MeshMembership are the parameters of the policy mesh-membership. Everything
// that it lets pass is named here, and nothing is by default: a list that is
// absent is empty.
type MeshMembership struct {
	// ValidationActions says what a finding does: Deny refuses the request,
	// Warn tells the user, Audit annotates the API server's audit event.
	//
	// +optional
	// +listType=set
	// +kubebuilder:default={Deny}
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:XValidation:rule="!('Deny' in self && 'Warn' in self)",message="Deny and Warn must not be used together: a refusal already carries every finding"
	ValidationActions []ValidationAction `json:"validationActions,omitempty"`

	// DataPlanes are the ways of being in the mesh that count. Ambient is
	// accepted only when named, because the labels that enrol a pod in it have
	// an effect only where ztunnel runs on the nodes, which no object says.
	//
	// +optional
	// +listType=set
	// +kubebuilder:default={Sidecar}
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	DataPlanes []DataPlane `json:"dataPlanes,omitempty"`

	// ProxyImages are further images that proxies and their init containers may
	// have, besides those that the injector's configuration renders. A "*" at
	// the end stands for anything.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	ProxyImages []string `json:"proxyImages,omitempty"`

	// ProxyMetadata are further names that workloads may set in proxyMetadata,
	// or in the environment of their proxy, besides those that are known to be
	// harmless. A "*" at the end stands for anything.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=128
	ProxyMetadata []string `json:"proxyMetadata,omitempty"`

	// InjectionTemplates are further templates that workloads may ask for in
	// inject.istio.io/templates, besides "sidecar", and "gateway" for pods that
	// hold nothing but a proxy.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=128
	InjectionTemplates []string `json:"injectionTemplates,omitempty"`

	// EnvoyFilters are those, as "namespace/name", that may patch the proxies of
	// guarded workloads where they can undo mutual TLS. A "*" at the end stands
	// for anything.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=317
	EnvoyFilters []string `json:"envoyFilters,omitempty"`

	// Outbound is the traffic that workloads may send around the proxy.
	//
	// +optional
	Outbound OutboundExclusions `json:"outbound,omitempty"`

	// ProbeRewrite says whether the kubelet's HTTP, TCP and gRPC probes may be
	// rewritten to the agent, which answers them in plaintext on port 15020 to
	// anybody: exactly the probed paths of the workload.
	//
	// +optional
	// +kubebuilder:default=Allow
	ProbeRewrite ProbeRewrite `json:"probeRewrite,omitempty"`
}

// OutboundExclusions is traffic that may leave without passing the proxy.
type OutboundExclusions struct {
	// Ports that may stand in traffic.sidecar.istio.io/excludeOutboundPorts.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	Ports []int32 `json:"ports,omitempty"`

	// CIDRs that contain what may stand in
	// traffic.sidecar.istio.io/excludeOutboundIPRanges.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self)",message="must be an address range such as 10.0.0.0/8"
	CIDRs []string `json:"cidrs,omitempty"`
}

// DataPlane is a way of being in the mesh.
//
// +kubebuilder:validation:Enum=Sidecar;Ambient
type DataPlane string

// The data planes.
const (
	DataPlaneSidecar DataPlane = "Sidecar"
	DataPlaneAmbient DataPlane = "Ambient"
)

// ProbeRewrite says whether probes may be rewritten.
//
// +kubebuilder:validation:Enum=Allow;Deny
type ProbeRewrite string

// What may happen to probes.
const (
	ProbeRewriteAllow ProbeRewrite = "Allow"
	ProbeRewriteDeny  ProbeRewrite = "Deny"
)
