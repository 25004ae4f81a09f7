package controller

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	acadmission "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	acmeta "k8s.io/client-go/applyconfigurations/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// WebhookName is the name of the ValidatingWebhookConfiguration.
const WebhookName = "meshvakt"

// The entries that let pass what nobody answers, each for the reason that its function gives.
const (
	controlPlaneEntryName = "control-plane.mesh.meshvakt.io"
	nodesEntryName        = "nodes.meshvakt.io"
	everywhereEntryName   = "everywhere.mesh.meshvakt.io"
)

// FailsOpen reports whether an entry of one of the webhook configurations lets pass what nobody
// answers because it is meant to.
func FailsOpen(configuration, entry string) bool {
	return configuration == MutatingName || slices.Contains([]string{controlPlaneEntryName, nodesEntryName, everywhereEntryName}, entry)
}

// namespaceNameLabel is set on every namespace by the API server.
const namespaceNameLabel = "kubernetes.io/metadata.name"

// namespaceController deletes what is left in a namespace that is going away. It
// is never asked about: neither our refusal nor our absence may hold that up.
const namespaceController = "system:serviceaccount:kube-system:namespace-controller"

// Endpoint is where the API server reaches the webhook: a URL, or a Service.
type Endpoint struct {
	URL                           string // "https://127.0.0.1:10250"; empty: the Service
	ServiceNamespace, ServiceName string
	ServicePort                   int32
}

// Registration is everything the webhook configuration is derived from.
type Registration struct {
	Endpoint       Endpoint
	CABundle       []byte
	Policies       []policies.Policy
	Guards         []v1alpha1.MeshGuard
	RootNamespaces []string
	IstioNamespace string
	Unguardable    []string
	// TimeoutSeconds is how long the API server waits for an answer, 1 to 30.
	TimeoutSeconds int32
	// Mutation says whether objects are changed, and not just judged.
	Mutation bool
}

// Build returns the webhook configuration that lets the API server ask about
// exactly what the policies judge in the namespaces that the guards select:
// one entry for our own objects, one per guard, one for the mesh root namespaces, one for the mesh's own pods,
// one for the settings of istiod, one for nodes and volumes, one for policies that the
// API server may not know yet to be in a guarded namespace, one for namespaces
// themselves. Every field is stated, also where it has the default, so that
// server-side apply puts back what somebody else has changed.
func (r *Registration) Build() *acadmission.ValidatingWebhookConfigurationApplyConfiguration {
	config := acadmission.ValidatingWebhookConfiguration(WebhookName).WithLabels(ownLabels()).WithWebhooks(r.ownEntry())
	if len(r.Guards) == 0 {
		return config
	}
	guards := slices.Clone(r.Guards)
	slices.SortFunc(guards, func(a, b v1alpha1.MeshGuard) int { return strings.Compare(a.Name, b.Name) })
	config.WithAnnotations(map[string]string{guardsAnnotation: registeredGuards(guards)})
	for i := range guards {
		config.WithWebhooks(r.guardEntry(&guards[i]))
	}
	if len(r.RootNamespaces) > 0 {
		config.WithWebhooks(r.rootEntry())
	}
	if r.aboutControlPlane() {
		config.WithWebhooks(r.controlPlaneEntry())
	}
	if matches := r.matches(policies.ScopeIstioSettings); len(matches) > 0 {
		config.WithWebhooks(r.settingsEntry(matches))
	}
	if matches := r.matchesEnforced(policies.ScopeNodes); len(matches) > 0 {
		config.WithWebhooks(r.nodesEntry(matches))
	}
	config.WithWebhooks(r.everywhereEntry())
	return config.WithWebhooks(r.namespaceEntry(guards))
}

// guardsAnnotation names the guards that a configuration was made for: an entry has but a name, and may be that of a guard
// which was deleted and made anew. It is about to go then, and to come back.
const guardsAnnotation = "meshvakt.io/guards"

func registeredGuards(guards []v1alpha1.MeshGuard) string {
	list := make([]string, len(guards))
	for i := range guards {
		list[i] = guards[i].Name + "=" + string(guards[i].UID)
	}
	return strings.Join(list, ",")
}

// registers reports whether a configuration has an entry for this very guard. One of an older Meshvakt does not say of which
// guard its entries are.
func registers(config *admissionregistrationv1.ValidatingWebhookConfiguration, guard *v1alpha1.MeshGuard) bool {
	if !slices.ContainsFunc(config.Webhooks, func(w admissionregistrationv1.ValidatingWebhook) bool { return w.Name == guardEntryName(guard) }) {
		return false
	}
	list, told := config.Annotations[guardsAnnotation]
	return !told || slices.Contains(strings.Split(list, ","), registeredGuards([]v1alpha1.MeshGuard{*guard}))
}

func guardEntryName(g *v1alpha1.MeshGuard) string { return g.Name + ".guard.meshvakt.io" }

// ownEntry asks about objects of Meshvakt's own API, in all namespaces and also while
// there is no guard: an exception that nobody has approved must not be lying in wait
// for one.
func (r *Registration) ownEntry() *acadmission.ValidatingWebhookApplyConfiguration {
	return r.entry("own.meshvakt.io", r.matches(policies.ScopeOwn), admissionregistrationv1.AllScopes).
		WithNamespaceSelector(acmeta.LabelSelector())
}

func ownLabels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "meshvakt", "app.kubernetes.io/managed-by": "meshvakt"}
}

func (r *Registration) guardEntry(g *v1alpha1.MeshGuard) *acadmission.ValidatingWebhookApplyConfiguration {
	matches := r.enforced(g).matches(policies.ScopeGuarded, policies.ScopeGuardedAndRoot, policies.ScopeGuardedAndControlPlane)
	return r.entry(guardEntryName(g), matches, admissionregistrationv1.NamespacedScope).
		WithNamespaceSelector(guardedNamespaces(g, r.Unguardable))
}

// guardedNamespaces selects the namespaces of a guard, without those that never are.
func guardedNamespaces(g *v1alpha1.MeshGuard, unguardable []string) *acmeta.LabelSelectorApplyConfiguration {
	return selector(&g.Spec.NamespaceSelector).
		WithMatchExpressions(acmeta.LabelSelectorRequirement().WithKey(namespaceNameLabel).
			WithOperator(metav1.LabelSelectorOpNotIn).WithValues(unguardable...))
}

// enforced is the registration with the policies that the guard enforces: nobody
// waits for an answer about what no policy of the guard judges. A guard that cannot
// be read is not left out for that.
func (r *Registration) enforced(g *v1alpha1.MeshGuard) *Registration {
	guard, err := facts.NewGuard(g)
	if err != nil {
		return r
	}
	with := *r
	with.Policies = slices.DeleteFunc(slices.Clone(r.Policies), func(p policies.Policy) bool { return len(p.Actions(&guard)) == 0 })
	return &with
}

func (r *Registration) rootEntry() *acadmission.ValidatingWebhookApplyConfiguration {
	matches := r.matches(policies.ScopeGuardedAndRoot)
	return r.entry("root.mesh.meshvakt.io", matches, admissionregistrationv1.NamespacedScope).
		WithNamespaceSelector(r.roots())
}

// controlPlaneEntry asks about the mesh's own pods, and fails open: istiod and gateways
// must be able to start while Meshvakt does not.
func (r *Registration) controlPlaneEntry() *acadmission.ValidatingWebhookApplyConfiguration {
	return r.entry(controlPlaneEntryName, r.matches(policies.ScopeGuardedAndControlPlane), admissionregistrationv1.NamespacedScope).
		WithFailurePolicy(admissionregistrationv1.Ignore).
		WithNamespaceSelector(r.roots())
}

// roots selects the mesh root namespaces.
func (r *Registration) roots() *acmeta.LabelSelectorApplyConfiguration {
	return acmeta.LabelSelector().
		WithMatchExpressions(acmeta.LabelSelectorRequirement().WithKey(namespaceNameLabel).
			WithOperator(metav1.LabelSelectorOpIn).WithValues(r.RootNamespaces...))
}

// aboutControlPlane reports whether any guard is about the mesh's own pods.
func (r *Registration) aboutControlPlane() bool {
	return len(r.RootNamespaces) > 0 && slices.ContainsFunc(r.Guards, guardsControlPlane)
}

func guardsControlPlane(g v1alpha1.MeshGuard) bool {
	return g.Spec.NodePools != nil && g.Spec.NodePools.ControlPlane != v1alpha1.ControlPlaneIgnore
}

// nodesTimeoutSeconds is how long the API server waits for an answer about a node. It
// is the least there is: kubelets wait as long where we hang.
const nodesTimeoutSeconds = 1

// nodesEntry asks about nodes and what is tied to them. It fails open: these are
// remarked on, and nothing about a node may wait for us.
func (r *Registration) nodesEntry(matches []policies.Match) *acadmission.ValidatingWebhookApplyConfiguration {
	return r.entry(nodesEntryName, matches, admissionregistrationv1.ClusterScope).
		WithFailurePolicy(admissionregistrationv1.Ignore).
		WithTimeoutSeconds(nodesTimeoutSeconds).
		WithNamespaceSelector(acmeta.LabelSelector())
}

// settingsEntry asks about the settings of istiod. They are known by what is in them:
// other ConfigMaps whose names begin alike, for roots and for electing leaders, are
// written all the time and must not wait for us. The name is taken from the object,
// for a request to delete a collection has none.
func (r *Registration) settingsEntry(matches []policies.Match) *acadmission.ValidatingWebhookApplyConfiguration {
	const settings = "[oldObject, object].exists(o, o != null && o.metadata.?name.orValue('').matches('^istio(-.+)?$') && " +
		"('mesh' in o.?data.orValue({}) || 'config' in o.?data.orValue({}) && 'values' in o.?data.orValue({})))"
	return r.entry("settings.mesh.meshvakt.io", matches, admissionregistrationv1.NamespacedScope).
		WithNamespaceSelector(acmeta.LabelSelector().
			WithMatchExpressions(acmeta.LabelSelectorRequirement().WithKey(namespaceNameLabel).
				WithOperator(metav1.LabelSelectorOpIn).WithValues(r.IstioNamespace))).
		WithMatchConditions(acadmission.MatchCondition().WithName("settings").WithExpression(settings))
}

// everywhereEntry asks about mesh policies in all namespaces, and fails open. The
// API server matches a guard's namespaceSelector against its own cache of
// namespaces, which is some milliseconds behind: the STRICT policy of a namespace
// that came under a guard just now could be deleted unseen. These objects are
// rare, so being asked about all of them costs next to nothing; and failing open
// keeps namespaces that no guard selects independent of us.
func (r *Registration) everywhereEntry() *acadmission.ValidatingWebhookApplyConfiguration {
	unguardable := fmt.Sprintf("!(request.namespace in %s)", celList(append(slices.Clone(r.Unguardable), r.RootNamespaces...)))
	return r.entry(everywhereEntryName, r.matches(policies.ScopeGuardedAndRoot), admissionregistrationv1.NamespacedScope).
		WithFailurePolicy(admissionregistrationv1.Ignore).
		WithNamespaceSelector(acmeta.LabelSelector()).
		WithMatchConditions(acadmission.MatchCondition().WithName("guardable").WithExpression(unguardable))
}

// namespaceEntry asks about namespaces themselves. For them the API server
// matches a namespaceSelector against the new labels only, so that the removal of
// a guard's label would pass unseen: the guards' selectors are conditions on both
// sides of the change instead.
func (r *Registration) namespaceEntry(guards []v1alpha1.MeshGuard) *acadmission.ValidatingWebhookApplyConfiguration {
	var selected []string
	for i := range guards {
		s := &guards[i].Spec.NamespaceSelector
		selected = append(selected, selectorCEL(s, "object"),
			fmt.Sprintf("(request.operation == 'UPDATE' && %s)", selectorCEL(s, "oldObject")))
	}
	if len(r.RootNamespaces) > 0 {
		selected = append(selected, fmt.Sprintf("object.metadata.name in %s", celList(r.RootNamespaces)))
	}
	matches := r.matches(policies.ScopeNamespaces)
	return r.entry("namespaces.meshvakt.io", matches, admissionregistrationv1.ClusterScope).
		WithNamespaceSelector(acmeta.LabelSelector()).
		WithMatchConditions(
			acadmission.MatchCondition().WithName("guardable").
				WithExpression(fmt.Sprintf("!(object.metadata.name in %s)", celList(r.Unguardable))),
			acadmission.MatchCondition().WithName("guarded-or-root").
				WithExpression(strings.Join(selected, " || ")),
		)
}

// entry returns a webhook entry with everything but its namespaceSelector.
func (r *Registration) entry(name string, matches []policies.Match, scope admissionregistrationv1.ScopeType) *acadmission.ValidatingWebhookApplyConfiguration {
	w := acadmission.ValidatingWebhook().
		WithName(name).
		WithClientConfig(r.clientConfig("/validate")).
		WithFailurePolicy(admissionregistrationv1.Fail).
		WithMatchPolicy(admissionregistrationv1.Equivalent).
		WithSideEffects(admissionregistrationv1.SideEffectClassNone).
		WithTimeoutSeconds(r.TimeoutSeconds).
		WithAdmissionReviewVersions("v1").
		WithObjectSelector(acmeta.LabelSelector()).
		WithRules(rules(matches, scope)...)
	for _, same := range alikeInChange(matches) {
		w.WithMatchConditions(acadmission.MatchCondition().WithName(same[0].Resource + "-changed").WithExpression(changedCEL(same)))
	}
	for _, m := range matches {
		if len(m.Names) > 0 {
			w.WithMatchConditions(acadmission.MatchCondition().WithName(m.Resource + "-named").
				WithExpression(fmt.Sprintf("request.resource.resource != %s || request.name in %s", celString(m.Resource), celList(m.Names))))
		}
	}
	if slices.ContainsFunc(matches, func(m policies.Match) bool { return slices.Contains(m.Operations, admissionv1.Delete) }) {
		w.WithMatchConditions(acadmission.MatchCondition().WithName("not-namespace-cleanup").
			WithExpression(fmt.Sprintf("request.operation != 'DELETE' || request.userInfo.username != '%s'", namespaceController)))
	}
	return w
}

// rules are matches as the API server takes them.
func rules(matches []policies.Match, scope admissionregistrationv1.ScopeType) []*acadmission.RuleWithOperationsApplyConfiguration {
	list := make([]*acadmission.RuleWithOperationsApplyConfiguration, 0, len(matches))
	for _, m := range matches {
		operations := make([]admissionregistrationv1.OperationType, 0, len(m.Operations))
		for _, o := range m.Operations {
			operations = append(operations, admissionregistrationv1.OperationType(o))
		}
		list = append(list, acadmission.RuleWithOperations().
			WithAPIGroups(m.Group).WithAPIVersions(m.Versions...).WithResources(resources(m)...).
			WithScope(scope).WithOperations(operations...))
	}
	return list
}

// resources are the resource of a match and its subresources, as rules name them.
func resources(m policies.Match) []string {
	if m.OnlySubresource != "" {
		return []string{m.Resource + "/" + m.OnlySubresource}
	}
	list := []string{m.Resource}
	for _, s := range m.Subresources {
		list = append(list, m.Resource+"/"+s)
	}
	return list
}

func (r *Registration) matches(scopes ...policies.Scope) []policies.Match {
	var list []policies.Match
	for i := range r.Policies {
		for _, m := range r.Policies[i].Matches {
			if slices.Contains(scopes, m.Scope) {
				list = merge(list, m)
			}
		}
	}
	return list
}

// matchesEnforced are the matches of the policies that some guard enforces.
func (r *Registration) matchesEnforced(scopes ...policies.Scope) []policies.Match {
	var list []policies.Match
	for i := range r.Guards {
		for _, m := range r.enforced(&r.Guards[i]).matches(scopes...) {
			list = merge(list, m)
		}
	}
	return list
}

// merge adds a match to a list that holds each resource once. Where policies
// differ in what part of an UPDATE matters, every UPDATE of any of them does.
func merge(list []policies.Match, m policies.Match) []policies.Match {
	for i := range list {
		have := &list[i]
		if have.Group != m.Group || have.Resource != m.Resource || have.OnlySubresource != m.OnlySubresource {
			continue
		}
		switch updates := func(m *policies.Match) bool { return slices.Contains(m.Operations, admissionv1.Update) }; {
		case updates(have) && updates(&m):
			have.OnlyIfChanged = unionUnlessAll(have.OnlyIfChanged, m.OnlyIfChanged)
		case updates(&m):
			have.OnlyIfChanged = m.OnlyIfChanged
		}
		have.Versions = union(have.Versions, m.Versions)
		have.Operations = union(have.Operations, m.Operations)
		have.Subresources = union(have.Subresources, m.Subresources)
		have.Names = unionUnlessAll(have.Names, m.Names)
		return list
	}
	return append(list, m)
}

// unionUnlessAll is union for lists that stand for everything when they are empty.
func unionUnlessAll(a, b []string) []string {
	if len(a) == 0 || len(b) == 0 {
		return nil
	}
	return union(a, b)
}

// union returns a new list of what is in either, in the order of first mention.
func union[T comparable](a, b []T) []T {
	list := slices.Clone(a)
	for _, v := range b {
		if !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}

func (r *Registration) clientConfig(path string) *acadmission.WebhookClientConfigApplyConfiguration {
	c := acadmission.WebhookClientConfig().WithCABundle(r.CABundle...)
	if r.Endpoint.URL != "" {
		return c.WithURL(strings.TrimSuffix(r.Endpoint.URL, "/") + path)
	}
	return c.WithService(acadmission.ServiceReference().
		WithNamespace(r.Endpoint.ServiceNamespace).WithName(r.Endpoint.ServiceName).
		WithPort(r.Endpoint.ServicePort).WithPath(path))
}

// alikeInChange groups the matches of which not every UPDATE counts by what must
// have changed: the API server takes 64 conditions per entry, and evaluates each of
// them for every request.
func alikeInChange(matches []policies.Match) [][]policies.Match {
	var groups [][]policies.Match
	for _, m := range matches {
		if len(m.OnlyIfChanged) == 0 || !slices.Contains(m.Operations, admissionv1.Update) {
			continue
		}
		i := slices.IndexFunc(groups, func(g []policies.Match) bool { return slices.Equal(g[0].OnlyIfChanged, m.OnlyIfChanged) })
		if i < 0 {
			groups = append(groups, nil)
			i = len(groups) - 1
		}
		groups[i] = append(groups[i], m)
	}
	return groups
}

// changedCEL is the condition that an UPDATE touches what the matches are about,
// which is the same for all of them.
func changedCEL(matches []policies.Match) string {
	others := fmt.Sprintf("request.resource.resource != %s", celString(matches[0].Resource))
	if len(matches) > 1 {
		resources := make([]string, 0, len(matches))
		for _, m := range matches {
			resources = append(resources, m.Resource)
		}
		others = fmt.Sprintf("!(request.resource.resource in %s)", celList(resources))
	}
	parts := []string{"request.operation != 'UPDATE'", others}
	for _, path := range matches[0].OnlyIfChanged {
		optional := strings.ReplaceAll("."+path, ".?", ".")
		optional = strings.ReplaceAll(optional, ".", ".?")
		parts = append(parts, fmt.Sprintf("object%s != oldObject%s", optional, optional))
	}
	return strings.Join(parts, " || ")
}

// selectorCEL is a label selector as a CEL expression over an object.
func selectorCEL(s *metav1.LabelSelector, object string) string {
	labels := object + ".metadata.?labels.orValue({})"
	var parts []string
	for _, key := range sortedKeys(s.MatchLabels) {
		parts = append(parts, fmt.Sprintf("%s[?%s].orValue('') == %s && %s in %s", labels, celString(key), celString(s.MatchLabels[key]), celString(key), labels))
	}
	for _, e := range s.MatchExpressions {
		has := fmt.Sprintf("%s in %s", celString(e.Key), labels)
		in := fmt.Sprintf("%s[?%s].orValue('') in %s", labels, celString(e.Key), celList(e.Values))
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			parts = append(parts, fmt.Sprintf("%s && %s", has, in))
		case metav1.LabelSelectorOpNotIn:
			parts = append(parts, fmt.Sprintf("!(%s && %s)", has, in))
		case metav1.LabelSelectorOpExists:
			parts = append(parts, has)
		case metav1.LabelSelectorOpDoesNotExist:
			parts = append(parts, fmt.Sprintf("!(%s)", has))
		}
	}
	if len(parts) == 0 {
		return "true"
	}
	return "(" + strings.Join(parts, " && ") + ")"
}

func celList(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = celString(v)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// celString quotes a string for CEL. Label keys and values and names hold nothing
// that needs escaping; what does is escaped all the same.
func celString(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`).Replace(s) + "'"
}

func selector(s *metav1.LabelSelector) *acmeta.LabelSelectorApplyConfiguration {
	ac := acmeta.LabelSelector()
	if len(s.MatchLabels) > 0 {
		ac.WithMatchLabels(s.MatchLabels)
	}
	for _, e := range s.MatchExpressions {
		ac.WithMatchExpressions(acmeta.LabelSelectorRequirement().WithKey(e.Key).WithOperator(e.Operator).WithValues(e.Values...))
	}
	return ac
}
