package preflight

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// ownChecks are about Meshvakt itself, once it is installed.
func ownChecks(f *Facts) []Check {
	first, installed := ownInstallation(f)
	if !installed {
		return []Check{first}
	}
	return []Check{first, ownReplicas(f), ownWebhooks(f), ownReach(f), ownGuards(f), ownBudget(f)}
}

// ownInstallation tells whether there is anything of Meshvakt's.
func ownInstallation(f *Facts) (c Check, installed bool) {
	const id = "meshvakt-installation"
	if f.Served.Err != nil {
		return unknown(id, f.Served.Err), true
	}
	var missing []string
	for _, resource := range []string{"meshguards", "guardexceptions"} {
		if len(f.Served.Value[schema.GroupResource{Group: v1alpha1.Group, Resource: resource}]) == 0 {
			missing = append(missing, resource+"."+v1alpha1.Group)
		}
	}
	validating, _ := ownConfiguration(f)
	trace := validating || len(f.Own.Value) > 0 || len(f.OwnSets.Value) > 0 || len(f.Guards.Value) > 0
	switch {
	case !trace && (f.Own.Err != nil || f.OwnSets.Err != nil || f.Validating.Err != nil || f.Guards.Err != nil):
		return unknown(id, f.Own.Err, f.OwnSets.Err, f.Validating.Err, f.Guards.Err), false
	case !trace && len(missing) == 0:
		return Check{ID: id, Result: Pass, Found: "not installed, but for its CustomResourceDefinitions"}, false
	case !trace:
		return Check{ID: id, Result: Pass, Found: "not installed"}, false
	case len(missing) > 0:
		return Check{
			ID: id, Result: Fail, Found: "the API server does not serve " + strings.Join(missing, " and "),
			Must: "be served, or no replica becomes ready", Remedy: "apply the chart's CustomResourceDefinitions (crds.install=true)",
		}, true
	}
	return Check{ID: id, Result: Pass, Found: fmt.Sprintf("installed, %s", counted(len(f.Guards.Value), "MeshGuard", "MeshGuards"))}, true
}

func ownConfiguration(f *Facts) (validating, mutating bool) {
	validating = slices.ContainsFunc(f.Validating.Value, func(c admissionregistrationv1.ValidatingWebhookConfiguration) bool {
		return c.Name == f.Names.Validating
	})
	mutating = slices.ContainsFunc(f.Mutating.Value, func(c admissionregistrationv1.MutatingWebhookConfiguration) bool { return c.Name == f.Names.Mutating })
	return validating, mutating
}

// ownReplicaSet is a Deployment or StatefulSet of Meshvakt's replicas.
type ownReplicaSet struct {
	kind, name    string
	podLabels     map[string]string
	wanted, ready int32
}

// ownReplicaSets are one as a rule; both kinds are there while replicas move to where they
// keep evidence.
func ownReplicaSets(f *Facts) []ownReplicaSet {
	var list []ownReplicaSet
	of := func(m *metav1.ObjectMeta, kind string, pods map[string]string, replicas *int32, ready int32) {
		if component := m.Labels["app.kubernetes.io/component"]; component == "" || component == "webhook" {
			list = append(list, ownReplicaSet{kind, m.Name, pods, wanted(replicas), ready})
		}
	}
	for i := range f.Own.Value {
		d := &f.Own.Value[i]
		of(&d.ObjectMeta, "deployment", d.Spec.Template.Labels, d.Spec.Replicas, d.Status.ReadyReplicas)
	}
	for i := range f.OwnSets.Value {
		s := &f.OwnSets.Value[i]
		of(&s.ObjectMeta, "statefulset", s.Spec.Template.Labels, s.Spec.Replicas, s.Status.ReadyReplicas)
	}
	return list
}

func ownReplicas(f *Facts) Check {
	const id = "meshvakt-replicas"
	if f.Own.Err != nil || f.OwnSets.Err != nil {
		return unknown(id, f.Own.Err, f.OwnSets.Err)
	}
	own := ownReplicaSets(f)
	if len(own) == 0 {
		return Check{
			ID: id, Result: Warn, Found: fmt.Sprintf("no Deployment or StatefulSet labelled app.kubernetes.io/name=meshvakt in namespace %q", f.Names.Namespace),
			Must: "be there, unless Meshvakt runs outside of the cluster", Remedy: "name its namespace with --meshvakt-namespace",
		}
	}
	var ready, all int32
	lacking := own[0]
	for _, o := range own {
		ready, all = ready+o.ready, all+o.wanted
		if o.ready < o.wanted {
			lacking = o
		}
	}
	c := Check{ID: id, Result: Pass, Found: fmt.Sprintf("%d of %d ready", ready, all)}
	describe := fmt.Sprintf("kubectl -n %s describe %s %s", f.Names.Namespace, lacking.kind, lacking.name)
	switch {
	case ready == 0:
		c.Result, c.Must, c.Remedy = Fail, "be at least one, or nothing changes in guarded namespaces", describe
	case ready < all:
		c.Result, c.Must, c.Remedy = Warn, "all be ready", describe
	case all < 2:
		c.Result, c.Must, c.Remedy = Warn, "be two or more, or each restart stops guarded namespaces", "set replicaCount of the chart"
	}
	return c
}

// ownWebhooks: the API server asks, and asks somebody.
func ownWebhooks(f *Facts) Check {
	const id = "meshvakt-webhooks"
	if f.Validating.Err != nil || f.Mutating.Err != nil {
		return unknown(id, f.Validating.Err, f.Mutating.Err)
	}
	c := Check{ID: id, Result: Pass}
	fail := func(found, must, remedy string) Check {
		return Check{ID: id, Result: Fail, Found: found, Must: must, Remedy: remedy}
	}
	validating, mutating := ownConfiguration(f)
	if !validating {
		return fail(fmt.Sprintf("no ValidatingWebhookConfiguration %q", f.Names.Validating), "be there, or nothing is enforced",
			"see why no replica has become ready; the leader registers it then")
	}
	n := 0
	for i := range f.Validating.Value {
		if f.Validating.Value[i].Name != f.Names.Validating {
			continue
		}
		for j := range f.Validating.Value[i].Webhooks {
			w := &f.Validating.Value[i].Webhooks[j]
			n++
			if err := trusted(w.ClientConfig.CABundle, f.Now); err != nil {
				return fail(fmt.Sprintf("caBundle of webhook %q: %v", w.Name, err), "hold a certificate that is valid, or every request is refused",
					"kubectl -n "+f.Names.Namespace+" logs -l app.kubernetes.io/component=webhook, which says what the certificate waits for")
			}
		}
	}
	hooks := slices.DeleteFunc(validatingHooks(f), func(h hook) bool { return h.configuration != f.Names.Validating })
	for i := range hooks {
		h := &hooks[i]
		if strings.HasSuffix(h.name, ".guard.meshvakt.io") && !h.closed {
			return fail(fmt.Sprintf("webhook %q has failurePolicy Ignore", h.name), "be Fail, or requests pass while no replica answers",
				"see why no replica puts it back")
		}
		if h.service == nil {
			continue
		}
		if f.Endpoints.Err != nil {
			return unknown(id, f.Endpoints.Err)
		}
		if f.Endpoints.Value[*h.service] == 0 {
			return fail(fmt.Sprintf("Service %s has no ready endpoint, and failurePolicy is Fail", h.service), "have one, or nothing changes in guarded namespaces",
				fmt.Sprintf("kubectl -n %s get pods; docs/operations.md says how to end the guard at once", h.service.Namespace))
		}
	}
	c.Found = fmt.Sprintf("registered with %s, and somebody answers", counted(n, "entry", "entries"))
	if hooks[0].service == nil {
		c.Found = fmt.Sprintf("registered with %s, by URL", counted(n, "entry", "entries"))
	}
	if !mutating {
		c.Result, c.Found = Warn, c.Found+fmt.Sprintf("; no MutatingWebhookConfiguration %q", f.Names.Mutating)
		c.Must, c.Remedy = "be there, unless webhook.mutation is false: pods do not get what they lack, and are refused", "see the log of the leader"
	}
	return c
}

// trusted reports what is wrong with the certificates by which the API server knows us.
func trusted(bundle []byte, now time.Time) error {
	valid, found := false, false
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("read a certificate: %w", err)
		}
		found = true
		valid = valid || now.Before(certificate.NotAfter)
	}
	switch {
	case !found:
		return fmt.Errorf("holds no certificate")
	case !valid:
		return fmt.Errorf("all certificates have expired")
	}
	return nil
}

// ownReach: what must never wait for Meshvakt does not.
func ownReach(f *Facts) Check {
	const id = "meshvakt-reach"
	if f.Validating.Err != nil || f.Namespaces.Err != nil || f.Guards.Err != nil {
		return unknown(id, f.Validating.Err, f.Namespaces.Err, f.Guards.Err)
	}
	never := unguardable(f)
	byName := namespacesByName(f)
	var reached []string
	for _, h := range validatingHooks(f) {
		if h.configuration != f.Names.Validating || !h.closed || !h.creates(podsResource()) {
			continue
		}
		for _, name := range never {
			if ns := byName[name]; ns != nil && h.selects(ns) {
				reached = append(reached, fmt.Sprintf("webhook %q is about pods in %q", h.name, name))
			}
		}
	}
	selected := selectedInVain(f, f.Guards.Value)
	c := Check{ID: id, Result: Pass, Found: fmt.Sprintf("%s are left out", joined(never))}
	switch {
	case len(reached) > 0:
		c.Result, c.Found, c.Details = Fail, "namespaces that must start without Meshvakt wait for it", details(reached)
		c.Must, c.Remedy = "leave out "+joined(never), "see why no replica puts the configuration back"
	case len(selected) > 0:
		c.Result, c.Found, c.Details = Warn, "guards select namespaces that are never guarded", details(selected)
		c.Must, c.Remedy = "be known to have no effect", "take the labels off these namespaces"
	}
	return c
}

// selectedInVain tells which guards select namespaces that are never guarded. One that
// selects all namespaces means all others.
func selectedInVain(f *Facts, guards []v1alpha1.MeshGuard) []string {
	byName := namespacesByName(f)
	var list []string
	for i := range guards {
		selector, err := metav1.LabelSelectorAsSelector(&guards[i].Spec.NamespaceSelector)
		if err != nil || selector.Empty() {
			continue
		}
		for _, name := range unguardable(f) {
			if ns := byName[name]; ns != nil && selector.Matches(labels.Set(ns.Labels)) {
				list = append(list, fmt.Sprintf("MeshGuard %q selects %q, which is never guarded", guards[i].Name, name))
			}
		}
	}
	return list
}

func ownGuards(f *Facts) Check {
	const id = "meshvakt-guards"
	if f.Guards.Err != nil {
		return unknown(id, f.Guards.Err)
	}
	var not, told []string
	for i := range f.Guards.Value {
		g := &f.Guards.Value[i]
		for _, condition := range g.Status.Conditions {
			good := metav1.ConditionTrue
			if condition.Type == v1alpha1.ConditionDegraded {
				good = metav1.ConditionFalse
			}
			if condition.Status == good {
				continue
			}
			told = append(told, fmt.Sprintf("MeshGuard %q: %s is %s (%s: %s)", g.Name, condition.Type, condition.Status, condition.Reason, condition.Message))
		}
		if !meta.IsStatusConditionTrue(g.Status.Conditions, v1alpha1.ConditionEnforcing) {
			not = append(not, g.Name)
		}
	}
	c := Check{ID: id, Result: Pass, Found: fmt.Sprintf("%s enforced", counted(len(f.Guards.Value), "guard is", "guards are")), Details: details(told)}
	switch {
	case len(f.Guards.Value) == 0:
		c.Result, c.Found, c.Must = Warn, "no MeshGuard", "be one, or nothing is guarded"
		c.Remedy = "apply a MeshGuard; the chart creates one unless guard.create is false"
	case len(not) > 0:
		c.Result, c.Found = Fail, "not enforced: MeshGuard "+quoted(not)
		c.Must, c.Remedy = "have condition Enforcing true", "kubectl describe meshguard "+not[0]
	case len(told) > 0:
		c.Result, c.Must, c.Remedy = Warn, "have none of these", "kubectl get meshguards -o yaml, which says what is missing"
	}
	return c
}

func ownBudget(f *Facts) Check {
	const id = "meshvakt-disruption"
	if f.Budgets.Err != nil || f.Own.Err != nil || f.OwnSets.Err != nil {
		return unknown(id, f.Budgets.Err, f.Own.Err, f.OwnSets.Err)
	}
	own := ownReplicaSets(f)
	for i := range f.Budgets.Value {
		b := &f.Budgets.Value[i]
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil || !slices.ContainsFunc(own, func(o ownReplicaSet) bool { return selector.Matches(labels.Set(o.podLabels)) }) {
			continue
		}
		c := Check{ID: id, Result: Pass, Found: fmt.Sprintf("PodDisruptionBudget %q lets %d go", b.Name, b.Status.DisruptionsAllowed)}
		if b.Status.DisruptionsAllowed == 0 {
			c.Result, c.Must, c.Remedy = Warn, "let one go, or nodes cannot be drained", "see why not all replicas are ready"
		}
		return c
	}
	return Check{
		ID: id, Result: Warn, Found: "no PodDisruptionBudget", Must: "be one, or a drain may end all replicas at once",
		Remedy: "set podDisruptionBudget.enabled of the chart",
	}
}
