package policies

// The reasons of sidecar-resources. Those from MV310 on are remarks.

func reasonProxyLimitMissing() Reason {
	return Reason{"ProxyLimitMissing", "MV301", "A container of Istio's has no limit, or one of 0, which is none"}
}

func reasonProxyRequestMissing() Reason {
	return Reason{"ProxyRequestMissing", "MV302", "A container of Istio's requests nothing"}
}

func reasonProxyBelowMinimum() Reason {
	return Reason{"ProxyBelowMinimum", "MV303", "A request or limit is less than the guard's minimum"}
}

func reasonProxyAboveMaximum() Reason {
	return Reason{"ProxyAboveMaximum", "MV304", "A request or limit is more than the guard's maximum"}
}

func reasonProxyNotExact() Reason {
	return Reason{"ProxyNotExact", "MV305", "A request or limit is another than the guard states"}
}

func reasonGuaranteedLost() Reason {
	return Reason{"GuaranteedLost", "MV306", "The proxy makes a pod Burstable that would be Guaranteed without it"}
}

func reasonProxyConcurrency() Reason {
	return Reason{"ProxyConcurrency", "MV307", "The proxy has another number of worker threads than the guard states"}
}

func reasonSidecarAnnotationUnreadable() Reason {
	return Reason{"SidecarAnnotationUnreadable", "MV308", "An annotation states what is no quantity, so that no pod can be created"}
}

func reasonRequestOverLimit() Reason {
	return Reason{"RequestOverLimit", "MV309", "A proxy would request more than its limit, so that no pod can be created"}
}

func reasonSidecarNumbersReplaced() Reason {
	return Reason{"SidecarNumbersReplaced", "MV310", "What a workload states for its proxy is moved or replaced in its pods"}
}

func reasonPodResourcesExceeded() Reason {
	return Reason{"PodResourcesExceeded", "MV311", "Requests or limits of the pod as a whole do not leave room for its proxy"}
}

func reasonLimitRangeRefuses() Reason {
	return Reason{"LimitRangeRefuses", "MV312", "A LimitRange of the namespace refuses the proxy"}
}

func reasonQuotaExceeded() Reason {
	return Reason{"QuotaExceeded", "MV313", "A ResourceQuota of the namespace does not leave room for the pods with their proxies"}
}

func reasonSidecarStillAmiss() Reason {
	return Reason{"SidecarStillAmiss", "MV314", "The resources of the proxy were amiss already, and the request does not change that"}
}

func resourcesReasons() []Reason {
	return []Reason{
		reasonProxyLimitMissing(), reasonProxyRequestMissing(), reasonProxyBelowMinimum(), reasonProxyAboveMaximum(),
		reasonProxyNotExact(), reasonGuaranteedLost(), reasonProxyConcurrency(), reasonSidecarAnnotationUnreadable(),
		reasonRequestOverLimit(), reasonSidecarNumbersReplaced(), reasonPodResourcesExceeded(), reasonLimitRangeRefuses(),
		reasonQuotaExceeded(), reasonSidecarStillAmiss(),
	}
}
