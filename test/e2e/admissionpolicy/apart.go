package admissionpolicy

// Apart are the cases in which the admission policy refuses what the policy in Go lets
// pass, or for another reason, with why. It knows nothing of the settings of the mesh
// and takes them for Istio's defaults, as docs/admission-policies.md says.
func Apart() map[string]string {
	const (
		settings = "an annotation repeats what the settings of the mesh say"
		account  = "the user of proxies comes from an annotation of the namespace, which is not played"
		deleted  = "the object under review does not carry that it is being deleted"
	)
	return map[string]string{
		"deny-deployment-no-injection-mesh-excludes": settings,
		"pass-deployment-include-outbound-as-mesh":   settings,
		"pass-deployment-mesh-excludes":              settings,
		"pass-deployment-revision-excludes":          settings,
		"pass-deployment-template-of-mesh":           settings,
		"pass-pod-init-openshift":                    account,
		"pass-update-deployment-terminating":         deleted,
	}
}
