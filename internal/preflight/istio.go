package preflight

import (
	"cmp"

	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

func istioChecks(f *Facts) []Check {
	return []Check{istioKinds(f), istioControlPlanes(f), istioRoots(f), istioMode(f), istioAutoMTLS(f), istioDiscovery(f), istioInjection(f)}
}

// istioKinds: Meshvakt watches PeerAuthentications in v1, and is not ready without.
func istioKinds(f *Facts) Check {
	const id = "istio-kinds"
	if f.Served.Err != nil {
		return unknown(id, f.Served.Err)
	}
	served := slices.Sorted(slices.Values(f.Served.Value[schema.GroupResource{Group: "security.istio.io", Resource: "peerauthentications"}]))
	c := Check{ID: id, Result: Pass, Found: "PeerAuthentications are served in " + strings.Join(served, ", ")}
	if !slices.Contains(served, "v1") {
		c.Result, c.Must = Fail, "be served in security.istio.io/v1, or no replica becomes ready"
		c.Remedy = "install the CustomResourceDefinitions of Istio 1.22 or later"
		if len(served) == 0 {
			c.Found = "the API server does not know PeerAuthentications"
		}
	}
	return c
}

// istioControlPlanes is about the istiods that run and the settings that they have.
func istioControlPlanes(f *Facts) Check {
	const id = "istio-control-planes"
	if f.ControlPlanes.Err != nil || f.Istiods.Err != nil {
		return unknown(id, f.ControlPlanes.Err, f.Istiods.Err)
	}
	c := Check{ID: id, Result: Pass}
	for i := range f.Istiods.Value {
		c.Details = append(c.Details, istiodText(&f.Istiods.Value[i]))
	}
	for _, cp := range f.ControlPlanes.Value {
		c.Details = append(c.Details, fmt.Sprintf("settings of revision %q, root namespace %q", cp.Revision, cp.RootNamespace))
	}
	c.Details = append(c.Details, tagTexts(f)...)
	c.Found = fmt.Sprintf("%s, settings of %s", counted(len(f.Istiods.Value), "istiod", "istiods"), counted(len(f.ControlPlanes.Value), "control plane", "control planes"))
	elsewhere := slices.IndexFunc(f.Istiods.Value, func(d appsv1.Deployment) bool { return d.Namespace != f.Names.IstioNamespace })
	down := slices.IndexFunc(f.Istiods.Value, func(d appsv1.Deployment) bool { return d.Status.ReadyReplicas == 0 })
	switch {
	case len(f.ControlPlanes.Value) == 0:
		c.Result = Fail
		c.Found = fmt.Sprintf("no settings of a control plane in namespace %q", f.Names.IstioNamespace)
		c.Must = "be those of every istiod, in its ConfigMap istio or istio-REVISION"
		c.Remedy = "install Istio first, or name its namespace with --istio-namespace"
	case len(f.Istiods.Value) == 0:
		c.Result = Warn
		c.Must = "include a Deployment labelled app=istiod, unless the control plane is outside of the cluster"
		c.Remedy = "see where the istiod runs that serves this mesh"
	case elsewhere >= 0:
		c.Result = Warn
		c.Must = fmt.Sprintf("all be in namespace %q, where Meshvakt reads their settings; what those of others are set to it does not know", f.Names.IstioNamespace)
		c.Remedy = fmt.Sprintf("if it is %q that serves the guarded namespaces, name that with --istio-namespace here and istioNamespace of the chart", f.Istiods.Value[elsewhere].Namespace)
	case down >= 0:
		c.Result = Warn
		c.Must = "be ready, or pods get no proxy and are refused"
		c.Remedy = fmt.Sprintf("kubectl -n %s describe deployment %s", f.Istiods.Value[down].Namespace, f.Istiods.Value[down].Name)
	}
	return c
}

func istiodText(d *appsv1.Deployment) string {
	version := "unknown version"
	for _, container := range d.Spec.Template.Spec.Containers {
		image, _, _ := strings.Cut(container.Image, "@")
		if _, tag, ok := strings.Cut(image[strings.LastIndex(image, "/")+1:], ":"); ok {
			version = tag
			break
		}
	}
	return fmt.Sprintf("istiod %s/%s of revision %q: %s, %d of %d ready", d.Namespace, d.Name,
		cmp.Or(d.Labels["istio.io/rev"], "default"), version, d.Status.ReadyReplicas, wanted(d.Spec.Replicas))
}

// wanted is how many replicas a spec asks for.
func wanted(replicas *int32) int32 {
	if replicas == nil {
		return 1
	}
	return *replicas
}

// tagTexts tells which tags lead to which revisions.
func tagTexts(f *Facts) []string {
	var list []string
	for i := range f.Mutating.Value {
		webhooks, err := mesh.ParseInjectionWebhooks(&f.Mutating.Value[i])
		if err != nil || len(webhooks) == 0 || webhooks[0].Tag == "" {
			continue
		}
		list = append(list, fmt.Sprintf("tag %q leads to revision %q", webhooks[0].Tag, webhooks[0].Revision))
	}
	return list
}

// istioRoots: which policy holds for the whole mesh depends on who reads it.
func istioRoots(f *Facts) Check {
	const id = "istio-root-namespaces"
	if f.ControlPlanes.Err != nil {
		return unknown(id, f.ControlPlanes.Err)
	}
	roots := rootNamespaces(f)
	c := Check{ID: id, Result: Pass, Found: quoted(roots)}
	switch {
	case slices.Contains(roots, ""):
		c.Result, c.Found = Fail, "a control plane has no root namespace (rootNamespace: \"\")"
		c.Must = "have one, or no policy holds for its whole mesh"
		c.Remedy = "set meshConfig.rootNamespace of that revision"
	case len(roots) > 1:
		c.Result = Warn
		c.Must = "be one: a policy for the whole mesh counts for the control planes of its root namespace alone, " +
			"and a namespace is STRICT only if it is for all of them"
		c.Remedy = "apply the same STRICT PeerAuthentication in each of them, or give all revisions one root namespace"
	}
	return c
}

func rootNamespaces(f *Facts) []string {
	var roots []string
	for _, cp := range f.ControlPlanes.Value {
		roots = append(roots, cp.RootNamespace)
	}
	slices.Sort(roots)
	return slices.Compact(roots)
}

// istioMode is the mode of a pod that no policy of its own namespace says anything about.
func istioMode(f *Facts) Check {
	const id = "istio-mesh-mode"
	if f.ControlPlanes.Err != nil || f.Policies.Err != nil || f.Namespaces.Err != nil {
		return unknown(id, f.ControlPlanes.Err, f.Policies.Err, f.Namespaces.Err)
	}
	labelsOf := namespaceLabels(f)
	weakest := mesh.ModeStrict
	c := Check{ID: id, Result: Pass}
	for _, cp := range f.ControlPlanes.Value {
		var read []*mesh.PeerAuthentication
		for _, p := range f.Policies.Value {
			if p.Namespace == cp.RootNamespace && cp.Reads(p, labelsOf[p.Namespace]) {
				read = append(read, p)
			}
		}
		// No namespace can have the empty name, so that no policy but the mesh's counts.
		mode := cp.Resolve(mesh.Workload{}, read).Mode
		c.Details = append(c.Details, fmt.Sprintf("revision %q: %s", cp.Revision, mode))
		weakest = min(weakest, mode)
	}
	c.Found = fmt.Sprintf("%s for the whole mesh", weakest)
	if len(f.ControlPlanes.Value) == 0 {
		return unknown(id, ErrNoControlPlane)
	}
	if weakest != mesh.ModeStrict {
		c.Result = Warn
		c.Must = "be STRICT, or every guarded namespace needs a policy of its own, before its first pod"
		c.Remedy = fmt.Sprintf("apply a PeerAuthentication without a selector and with spec.mtls.mode STRICT in %s, "+
			"once all clients are in the mesh; or set spec.strictMTLS.onMissing of the guard to Hold or Provision", quoted(rootNamespaces(f)))
	}
	if len(c.Details) == 1 {
		c.Details = nil
	}
	return c
}

func namespaceLabels(f *Facts) map[string]map[string]string {
	labels := make(map[string]map[string]string, len(f.Namespaces.Value))
	for i := range f.Namespaces.Value {
		labels[f.Namespaces.Value[i].Name] = f.Namespaces.Value[i].Labels
	}
	return labels
}

// istioAutoMTLS: servers that are STRICT need clients that speak mutual TLS.
func istioAutoMTLS(f *Facts) Check {
	const id = "istio-auto-mtls"
	if f.ControlPlanes.Err != nil {
		return unknown(id, f.ControlPlanes.Err)
	}
	if len(f.ControlPlanes.Value) == 0 {
		return unknown(id, ErrNoControlPlane)
	}
	var off []string
	for _, cp := range f.ControlPlanes.Value {
		if !cp.EnableAutoMTLS {
			off = append(off, cp.Revision)
		}
	}
	if len(off) == 0 {
		return Check{ID: id, Result: Pass, Found: "on"}
	}
	return Check{
		ID: id, Result: Warn, Found: "off (enableAutoMtls: false) in revision " + quoted(off),
		Must:   "be on, or clients send plaintext to STRICT servers unless a DestinationRule tells them otherwise, and are cut off",
		Remedy: "take meshConfig.enableAutoMtls out of the settings of these revisions",
	}
}

// istioDiscovery: what a control plane does not see, it does not keep STRICT.
func istioDiscovery(f *Facts) Check {
	const id = "istio-discovery"
	if f.ControlPlanes.Err != nil || f.Namespaces.Err != nil {
		return unknown(id, f.ControlPlanes.Err, f.Namespaces.Err)
	}
	var roots, hidden []string
	selective := false
	for _, cp := range f.ControlPlanes.Value {
		if len(cp.DiscoverySelectors) == 0 {
			continue
		}
		selective = true
		for i := range f.Namespaces.Value {
			ns := &f.Namespaces.Value[i]
			text := fmt.Sprintf("%s by revision %q", ns.Name, cp.Revision)
			switch {
			case cp.Discovered(ns.Labels):
			case ns.Name == cp.RootNamespace:
				roots = append(roots, text)
			case guardedBy(f, ns.Name, ns.Labels):
				hidden = append(hidden, text)
			}
		}
	}
	c := Check{ID: id, Result: Pass, Found: "every namespace that matters is seen"}
	switch {
	case !selective:
		c.Found = "every namespace is seen (no discoverySelectors)"
	case len(roots) > 0:
		c.Result, c.Found = Fail, "discoverySelectors leave out the root namespace, so that no policy holds for the whole mesh"
		c.Must, c.Remedy = "match it", "label the root namespace so that a selector matches"
		c.Details = details(append(roots, hidden...))
	case len(hidden) > 0:
		c.Result, c.Found = Fail, fmt.Sprintf("discoverySelectors leave out %s", counted(len(hidden), "guarded namespace", "guarded namespaces"))
		c.Must = "match every guarded namespace, or Istio ignores the policies in it"
		c.Remedy, c.Details = "label these namespaces so that a selector matches", details(hidden)
	}
	return c
}

// istioInjection: where the injector does not answer, pods come without a proxy, or not
// at all.
func istioInjection(f *Facts) Check {
	const id = "istio-injection"
	if f.Mutating.Err != nil || f.Injectors.Err != nil {
		return unknown(id, f.Mutating.Err, f.Injectors.Err)
	}
	total := 0
	var open []string
	for i := range f.Mutating.Value {
		configuration := &f.Mutating.Value[i]
		list, err := mesh.ParseInjectionWebhooks(configuration)
		if err != nil {
			return unknown(id, err)
		}
		total += len(list)
		for _, w := range list {
			at := slices.IndexFunc(configuration.Webhooks, func(o admissionregistrationv1.MutatingWebhook) bool { return o.Name == w.Name })
			if p := configuration.Webhooks[at].FailurePolicy; p != nil && *p == admissionregistrationv1.Ignore {
				open = append(open, w.Configuration+" "+w.Name)
			}
		}
	}
	c := Check{ID: id, Result: Pass, Found: fmt.Sprintf("%s of injectors, failurePolicy Fail", counted(total, "webhook", "webhooks"))}
	switch {
	case total == 0:
		c.Result, c.Found = Warn, "no webhook of an injector"
		c.Must = "be one, or no pod gets a sidecar; a mesh in ambient mode alone needs none"
		c.Remedy = "install Istio with injection, or set spec.meshMembership.dataPlanes of the guard to [Sidecar, Ambient]"
	case len(f.Injectors.Value) == 0:
		c.Result, c.Found = Warn, fmt.Sprintf("no configuration of an injector in namespace %q", f.Names.IstioNamespace)
		c.Must = "be there, or Meshvakt takes the injector to have Istio's default settings"
		c.Remedy = "name the namespace of istiod with --istio-namespace"
	case len(open) > 0:
		c.Result, c.Found = Warn, fmt.Sprintf("%s of injectors with failurePolicy Ignore", counted(len(open), "webhook", "webhooks"))
		c.Must = "be Fail: while istiod is down pods come without a proxy, are refused in guarded namespaces, and run so in others"
		c.Remedy, c.Details = "set failurePolicy Fail, which is Istio's default", details(open)
	}
	return c
}
