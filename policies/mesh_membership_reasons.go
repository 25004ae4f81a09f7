package policies

// The reasons of mesh-membership, one for each way out of the mesh.

func reasonNotInMesh() Reason {
	return Reason{"NotInMesh", "MV201", "A pod has no proxy and is not enrolled in ambient"}
}

func reasonInjectionOptOut() Reason {
	return Reason{"InjectionOptOut", "MV202", "A pod opts out of injection by label or annotation sidecar.istio.io/inject"}
}

func reasonNamespaceNotInjected() Reason {
	return Reason{"NamespaceNotInjected", "MV203", "A guarded namespace's labels let no sidecar be injected"}
}

func reasonDeadRevision() Reason {
	return Reason{"DeadRevision", "MV204", "Label istio.io/rev names a revision that no control plane serves"}
}

func reasonHostNetwork() Reason {
	return Reason{"HostNetwork", "MV205", "A pod is on the node's network, where nothing is captured"}
}

func reasonInboundPortsExcluded() Reason {
	return Reason{"InboundPortsExcluded", "MV206", "Ports are excluded from inbound capture"}
}

func reasonInboundPortsNotIncluded() Reason {
	return Reason{"InboundPortsNotIncluded", "MV207", "Inbound capture is limited to a list of ports"}
}

func reasonStatusPortMoved() Reason {
	return Reason{"StatusPortMoved", "MV208", "The agent's status port, which is excluded from capture, is moved to another port"}
}

func reasonInterfaceExcluded() Reason {
	return Reason{"InterfaceExcluded", "MV209", "A network interface is excluded from capture"}
}

func reasonVirtualInterface() Reason {
	return Reason{"VirtualInterface", "MV210", "Inbound traffic of an interface is treated as outbound"}
}

func reasonInterceptionOff() Reason {
	return Reason{"InterceptionOff", "MV211", "Interception mode NONE captures nothing"}
}

func reasonOutboundExcluded() Reason {
	return Reason{"OutboundExcluded", "MV212", "Outbound traffic goes around the proxy that the guard does not let pass"}
}

func reasonProxyConfigForbidden() Reason {
	return Reason{"ProxyConfigForbidden", "MV213", "A field of proxy.istio.io/config takes the proxy out of the mesh's hands"}
}

func reasonProxyMetadataForbidden() Reason {
	return Reason{"ProxyMetadataForbidden", "MV214", "An environment variable of the proxy or its init container is not known to be harmless"}
}

func reasonProxyOverridden() Reason {
	return Reason{"ProxyOverridden", "MV215", "A container of Istio's is replaced or changed"}
}

func reasonTemplateForbidden() Reason {
	return Reason{"TemplateForbidden", "MV216", "An injection template other than Istio's sidecar is asked for"}
}

func reasonProxyImageForbidden() Reason {
	return Reason{"ProxyImageForbidden", "MV217", "A container of Istio's has an image that is not the mesh's"}
}

func reasonBootstrapOverridden() Reason {
	return Reason{"BootstrapOverridden", "MV218", "The proxy gets a bootstrap configuration of the workload's"}
}

func reasonProxyVolumeForbidden() Reason {
	return Reason{"ProxyVolumeForbidden", "MV219", "A volume is mounted into the proxy where it can replace what the proxy trusts"}
}

func reasonDiscoveryAddress() Reason {
	return Reason{"DiscoveryAddress", "MV220", "The proxy is sent to another control plane"}
}

func reasonRunsAsProxy() Reason {
	return Reason{"RunsAsProxy", "MV221", "A container runs as the proxy's user or group, whose traffic is not captured"}
}

func reasonMayRewriteCapture() Reason {
	return Reason{"MayRewriteCapture", "MV222", "A container has rights by which it can undo the capture of traffic"}
}

func reasonRunsBeforeCapture() Reason {
	return Reason{"RunsBeforeCapture", "MV223", "An init container runs before traffic is captured"}
}

func reasonUncapturedPort() Reason {
	return Reason{"UncapturedPort", "MV224", "A container listens on a port that Istio never captures"}
}

func reasonProtocolNotCaptured() Reason {
	return Reason{"ProtocolNotCaptured", "MV225", "A container takes UDP or SCTP, which Istio never captures"}
}

func reasonAmbientOptOut() Reason {
	return Reason{"AmbientOptOut", "MV226", "A pod is taken out of ambient"}
}

func reasonAmbientBypass() Reason {
	return Reason{"AmbientBypass", "MV227", "An annotation makes ambient leave a pod's inbound traffic alone"}
}

func reasonIdentityForged() Reason {
	return Reason{"IdentityForged", "MV228", "A label makes Istio or other workloads take the pod for something it is not"}
}

func reasonProbeRewrite() Reason {
	return Reason{"ProbeRewrite", "MV229", "Probes are answered in plaintext, or will fail"}
}

func reasonStillOutOfMesh() Reason {
	return Reason{"StillOutOfMesh", "MV230", "A workload was out of the mesh before the change and still is"}
}

func reasonNamespaceLeavesMesh() Reason {
	return Reason{"NamespaceLeavesMesh", "MV231", "A change of a guarded namespace's labels takes its pods out of the mesh"}
}

func reasonPodsOutOfMesh() Reason {
	return Reason{"PodsOutOfMesh", "MV232", "A namespace would come under a guard while pods that are not in the mesh run in it"}
}

func reasonCaptureTampered() Reason {
	return Reason{"CaptureTampered", "MV233", "The init container that sets up capture does not do what the mesh configures"}
}

func reasonClientTLSOff() Reason {
	return Reason{"ClientTLSOff", "MV234", "A DestinationRule has clients send plaintext to a service"}
}

func reasonMeshIdentityReplaced() Reason {
	return Reason{"MeshIdentityReplaced", "MV235", "A DestinationRule takes the mesh's certificates or the service's identity out of what clients check"}
}

func reasonEnvoyFilterForbidden() Reason {
	return Reason{"EnvoyFilterForbidden", "MV236", "An EnvoyFilter patches the proxies of guarded workloads where it can undo mutual TLS"}
}

func reasonServiceImpersonated() Reason {
	return Reason{"ServiceImpersonated", "MV237", "A ServiceEntry puts other endpoints in the place of a guarded service"}
}

func reasonPlaintextEndpoint() Reason {
	return Reason{"PlaintextEndpoint", "MV238", "A WorkloadEntry makes an endpoint of a guarded service that takes plaintext"}
}

func reasonSidecarLoosens() Reason {
	return Reason{"SidecarLoosens", "MV239", "A Sidecar object lets traffic of guarded workloads pass without mutual TLS under some condition"}
}

func reasonMeshSettingsWeakened() Reason {
	return Reason{"MeshSettingsWeakened", "MV240", "A change of istiod's settings takes protection from guarded namespaces"}
}

func reasonRootsFrozen() Reason {
	return Reason{"RootsFrozen", "MV241", "The roots that proxies trust are made immutable in a guarded namespace"}
}

func reasonBindingChangesPod() Reason {
	return Reason{"BindingChangesPod", "MV242", "A Binding writes labels or annotations over those of a pod that has been judged"}
}

func membershipReasons() []Reason {
	return []Reason{
		reasonNotInMesh(), reasonInjectionOptOut(), reasonNamespaceNotInjected(), reasonDeadRevision(),
		reasonHostNetwork(), reasonInboundPortsExcluded(), reasonInboundPortsNotIncluded(), reasonStatusPortMoved(),
		reasonInterfaceExcluded(), reasonVirtualInterface(), reasonInterceptionOff(), reasonOutboundExcluded(),
		reasonProxyConfigForbidden(), reasonProxyMetadataForbidden(), reasonProxyOverridden(), reasonTemplateForbidden(),
		reasonProxyImageForbidden(), reasonBootstrapOverridden(), reasonProxyVolumeForbidden(), reasonDiscoveryAddress(),
		reasonRunsAsProxy(), reasonMayRewriteCapture(), reasonRunsBeforeCapture(), reasonUncapturedPort(),
		reasonProtocolNotCaptured(), reasonAmbientOptOut(), reasonAmbientBypass(), reasonIdentityForged(),
		reasonProbeRewrite(), reasonStillOutOfMesh(), reasonNamespaceLeavesMesh(), reasonPodsOutOfMesh(),
		reasonCaptureTampered(), reasonClientTLSOff(), reasonMeshIdentityReplaced(), reasonEnvoyFilterForbidden(),
		reasonServiceImpersonated(), reasonPlaintextEndpoint(), reasonSidecarLoosens(), reasonMeshSettingsWeakened(),
		reasonRootsFrozen(), reasonBindingChangesPod(),
	}
}
