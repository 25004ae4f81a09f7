package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies/policytest"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// fewest is how many cases have to run at least: a reader that skips what it
// cannot do would otherwise end up reading nothing.
const fewest = 1080

// TestCorpus brings a real cluster into the state of each case, lets a user do
// what the case does, as a dry run, and demands the answer that the case states:
// the verdict, every finding and warning to the letter, and what the audit log
// has to say.
//
// Cases that need the same guards and the same mesh stand side by side, each with
// namespaces of its own. One that changes something for the whole mesh has the
// cluster to itself.
func TestCorpus(t *testing.T) {
	// Final pods are sent, as injection leaves them; they must not be mended on the way.
	player := &corpusPlayer{replica: start(t, "--mutation=false"), admin: clientFor(t, controlplane.Admin), audits: map[string]*playedCase{}}
	player.prepare(t)
	batches, offline := corpusBatches(t)
	for i, b := range batches {
		t.Run(fmt.Sprintf("state %d", i+1), func(t *testing.T) { player.play(t, b) })
	}
	player.checkAudit(t)
	t.Logf("%d cases in %d states ran, %d asked Meshvakt, %d had to be asked again (%s); %d are for offline readers only",
		player.ran, len(batches), player.asked, len(player.retried), strings.Join(player.retried, ", "), offline)
	if player.ran < fewest {
		t.Errorf("only %d cases ran; must be %d at least", player.ran, fewest)
	}
}

// playedCase is a case of the corpus with namespaces that no other case has.
type playedCase struct {
	policytest.Case
	objects []*unstructured.Unstructured // the cluster without guards, in order
	guards  []*v1alpha1.MeshGuard
	roots   []string      // the mesh root namespaces
	late    time.Duration // how long after the time of the case it is played
}

// corpusBatch is cases whose states can be there at the same time.
type corpusBatch []*playedCase

// corpusBatches reads the corpus.
func corpusBatches(t *testing.T) (batches []corpusBatch, offline int) {
	t.Helper()
	at := map[string]int{}
	for i, c := range policytest.Load(t, "../../policies/testdata") {
		if c.Want.OfflineOnly != "" {
			t.Logf("%s is not played: %s", c.Name, c.Want.OfflineOnly)
			offline++
			continue
		}
		if foreignControlPlane(t, &c) {
			t.Logf("%s is not played: Meshvakt reads control planes from one namespace", c.Name)
			offline++
			continue
		}
		p, key := prepare(t, c, fmt.Sprintf("c%03d", i+1))
		if _, known := at[key]; !known {
			at[key] = len(batches)
			batches = append(batches, nil)
		}
		batches[at[key]] = append(batches[at[key]], p)
	}
	return batches, offline
}

// foreignControlPlane reports whether the case has a control plane with settings
// outside of istio-system.
func foreignControlPlane(t *testing.T, c *policytest.Case) bool {
	t.Helper()
	return slices.ContainsFunc(c.ClusterDocuments(t), func(d check.Document) bool {
		return d.Kind.Kind == "ConfigMap" && d.Namespace != "istio-system"
	})
}

// shared are the namespaces that keep their names: they are special by them.
func shared() []string {
	return []string{"istio-system", "kube-system", ownNamespace, metav1.NamespaceDefault}
}

// known are namespaces that mean something to Istio by their names; a case brings
// them along.
func known() []string { return []string{"local-path-storage"} }

// prepare renames the namespaces of a case, and returns a key that cases share
// if they can be played together.
func prepare(t *testing.T, c policytest.Case, suffix string) (p *playedCase, key string) {
	t.Helper()
	rename(t, &c, suffix)
	p = &playedCase{}
	p.shift(&c)
	p.Case = c
	var common []any
	for _, d := range c.ClusterDocuments(t) {
		if d.Kind.Kind == "MeshGuard" {
			g := &v1alpha1.MeshGuard{}
			must(t, json.Unmarshal(d.JSON, g))
			p.guards = append(p.guards, g)
			common = append(common, g.Name, g.Annotations, g.Spec)
			continue
		}
		o := &unstructured.Unstructured{}
		must(t, o.UnmarshalJSON(d.JSON))
		p.objects = append(p.objects, o)
	}
	if len(p.guards) == 0 {
		p.guards = []*v1alpha1.MeshGuard{v1alpha1.DefaultGuard()}
	}
	p.objects = append(p.objects, p.defaultInjection(t)...)
	for _, o := range p.objects {
		if inCommon(o) {
			common = append(common, o.Object)
		}
	}
	p.roots = c.Review(t).Cluster.RootNamespaces()
	object := p.object(t)
	if object.GetKind() == "Node" || slices.Contains(p.roots, object.GetNamespace()) || isNamespace(object) && slices.Contains(p.roots, object.GetName()) {
		common = append(common, c.Name)
	}
	text, err := json.Marshal(common)
	must(t, err)
	return p, string(text)
}

func isNamespace(o *unstructured.Unstructured) bool { return o.GetKind() == "Namespace" }

// inCommon reports whether cases that are played together must have the object in
// common: it is in no namespace of a case's own.
func inCommon(o *unstructured.Unstructured) bool {
	name := o.GetNamespace()
	if isNamespace(o) {
		name = o.GetName()
	}
	return name == "" || slices.Contains(shared(), name) || slices.Contains(known(), name)
}

// rename gives the case namespaces of its own, in its objects and in the texts it
// expects.
func rename(t *testing.T, c *policytest.Case, suffix string) {
	t.Helper()
	names := map[string]bool{}
	for _, d := range append(c.ClusterDocuments(t), c.ObjectDocument(t)) {
		if d.Kind.Kind == "Namespace" {
			names[d.Name] = true
		} else if d.Namespace != "" {
			names[d.Namespace] = true
		}
	}
	for _, name := range append(shared(), known()...) {
		delete(names, name)
	}
	if len(names) == 0 {
		return
	}
	quoted := make([]string, 0, len(names))
	for name := range names {
		quoted = append(quoted, regexp.QuoteMeta(name))
	}
	// A longer name first: it may begin with a shorter one.
	slices.SortFunc(quoted, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	pattern := regexp.MustCompile(`\b(` + strings.Join(quoted, "|") + `)\b`)
	replacement := []byte("${1}-" + suffix)
	c.Object, c.Cluster = pattern.ReplaceAll(c.Object, replacement), pattern.ReplaceAll(c.Cluster, replacement)
	if c.Final != nil {
		final := *c.Final
		final.JSON = pattern.ReplaceAll(final.JSON, replacement)
		c.Final = &final
	}
	for i := range c.Want.Findings {
		f := &c.Want.Findings[i]
		f.Message = pattern.ReplaceAllString(f.Message, string(replacement))
		f.Remedy = pattern.ReplaceAllString(f.Remedy, string(replacement))
		f.Exception = pattern.ReplaceAllString(f.Exception, string(replacement))
	}
}

// object is what the user sends; of a pod that is new, what the injector makes of
// it, for no injector runs here.
func (p *playedCase) object(t *testing.T) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	must(t, o.UnmarshalJSON(p.FinalDocument(t).JSON))
	return o
}

// corpusPlayer plays batches against the control plane.
type corpusPlayer struct {
	replica *replica
	admin   client.Client

	ran, asked int
	retried    []string
	audits     map[string]*playedCase // by audit ID
}

func (y *corpusPlayer) play(t *testing.T, batch corpusBatch) {
	y.setUp(t, batch)
	y.guard(t, batch[0])
	y.remember(t, batch[0])
	y.leaveNodes(t, batch)
	for _, c := range batch {
		t.Run(c.Name, func(t *testing.T) {
			y.ran++
			y.request(t, c)
		})
	}
}

// setUp creates the states of the cases. No guard is there yet, so that bad
// states can come to be.
func (y *corpusPlayer) setUp(t *testing.T, batch corpusBatch) {
	t.Helper()
	done := map[string]bool{} // what cases share
	var layers [][]*unstructured.Unstructured
	var pods []*unstructured.Unstructured
	for _, c := range batch {
		var policies []*unstructured.Unstructured
		for _, o := range c.objects {
			key := o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
			switch {
			case done[key]:
			case o.GetKind() == "GuardException":
				y.ask(t, o)
			case o.GetKind() == "PeerAuthentication":
				policies = append(policies, o)
			case o.GetKind() == "Pod":
				pods = append(pods, o)
			case isNamespace(o) && slices.Contains(shared(), o.GetName()):
				y.label(t, o)
			default:
				y.create(t, o)
			}
			done[key] = true
		}
		slices.SortStableFunc(policies, func(a, b *unstructured.Unstructured) int { return cmp.Compare(dated(a), dated(b)) })
		for i, o := range policies {
			if i == len(layers) {
				layers = append(layers, nil)
			}
			layers[i] = append(layers[i], o)
		}
		y.stopProvisioning(t, c)
	}
	for i, layer := range layers {
		var last time.Time
		for _, o := range layer {
			if created := y.create(t, o); created.After(last) {
				last = created
			}
		}
		if i < len(layers)-1 {
			// The next ones are younger by their creationTimestamps.
			time.Sleep(time.Until(last.Add(time.Second)))
		}
	}
	for _, o := range pods {
		serviceAccount(t, o.GetNamespace())
		y.createPod(t, o)
	}
}

// dated is when the case says that the object was created; what it does not
// date is younger, in its order.
func dated(o *unstructured.Unstructured) string {
	if at, found, err := unstructured.NestedString(o.Object, "metadata", "creationTimestamp"); found && err == nil {
		return at
	}
	return "undated" // sorts behind all digits
}

// create creates the object and deletes it with the batch.
func (y *corpusPlayer) create(t *testing.T, o *unstructured.Unstructured) (created time.Time) {
	t.Helper()
	o = o.DeepCopy()
	uncalled(t, o)
	measuredNow(o)
	if err := y.admin.Create(t.Context(), o); err != nil {
		t.Fatalf("create %s %s/%s: %v", o.GetKind(), o.GetNamespace(), o.GetName(), err)
	}
	if isNamespace(o) || inCommon(o) {
		t.Cleanup(func() { // what is in namespaces goes with them
			if err := y.admin.Delete(context.Background(), o, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
				t.Errorf("clean up %s %s/%s: %v", o.GetKind(), o.GetNamespace(), o.GetName(), err)
			}
		})
	}
	return o.GetCreationTimestamp().Time
}

// label gives a namespace that exists the labels of the case, for the batch.
func (y *corpusPlayer) label(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	var ns corev1.Namespace
	must(t, y.admin.Get(t.Context(), client.ObjectKeyFromObject(o), &ns))
	before := ns.DeepCopy()
	ns.Labels = o.GetLabels()
	metav1.SetMetaDataLabel(&ns.ObjectMeta, corev1.LabelMetadataName, ns.Name)
	if maps.Equal(ns.Labels, before.Labels) {
		return
	}
	must(t, y.admin.Patch(t.Context(), &ns, client.MergeFrom(before)))
	before.ResourceVersion = ns.ResourceVersion
	t.Cleanup(func() {
		if err := y.admin.Patch(context.Background(), before, client.MergeFrom(&ns)); err != nil {
			t.Errorf("restore the labels of namespace %s: %v", ns.Name, err)
		}
	})
}

// stopProvisioning keeps Meshvakt from mending the state of a case before it is
// judged: by a quota, like a namespace whose owner has run out of it.
func (y *corpusPlayer) stopProvisioning(t *testing.T, c *playedCase) {
	t.Helper()
	if !slices.ContainsFunc(c.guards, func(g *v1alpha1.MeshGuard) bool {
		return g.Spec.StrictMTLS != nil && g.Spec.StrictMTLS.OnMissing == v1alpha1.OnMissingProvision
	}) {
		return
	}
	const policies = "count/peerauthentications.security.istio.io"
	for _, o := range c.objects {
		if !isNamespace(o) || slices.Contains(shared(), o.GetName()) {
			continue
		}
		quota := &corev1.ResourceQuota{
			ObjectMeta: metav1.ObjectMeta{Namespace: o.GetName(), Name: "none-left"},
			Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{policies: resource.MustParse("0")}},
		}
		if slices.ContainsFunc(c.objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "PeerAuthentication" }) {
			quota.Spec.Hard[policies] = resource.MustParse("1")
		}
		must(t, y.admin.Create(t.Context(), quota))
		eventually(t, 10*time.Second, func() error {
			if err := y.admin.Get(t.Context(), client.ObjectKeyFromObject(quota), quota); err != nil {
				return err
			}
			if _, counted := quota.Status.Hard[policies]; !counted {
				return errors.New("the quota is not in force yet")
			}
			return nil
		})
	}
}

// guard creates the guards of the batch and waits until the API server asks
// about what they select.
func (y *corpusPlayer) guard(t *testing.T, c *playedCase) {
	t.Helper()
	t.Cleanup(func() { // runs when the guards are gone
		eventually(t, 10*time.Second, func() error {
			var config admissionregistrationv1.ValidatingWebhookConfiguration
			if err := y.admin.Get(context.Background(), client.ObjectKey{Name: "meshvakt"}, &config); err != nil {
				return err
			}
			if n := len(config.Webhooks); n != 1 {
				return fmt.Errorf("%d entries are registered; must be the one for Meshvakt's own objects without a guard", n)
			}
			return nil
		})
	})
	for _, g := range c.guards {
		guard(t, g.DeepCopy())
	}
	// Not their status: that follows a moment later, in hundreds of states.
	if slices.ContainsFunc(c.guards, func(g *v1alpha1.MeshGuard) bool { return g.Spec.StrictMTLS != nil }) {
		y.rootsRegistered(t, c.roots)
	}
	for _, g := range c.guards {
		y.probe(t, g)
	}
}

// rootsRegistered waits until the webhook configuration names the mesh root
// namespaces.
func (y *corpusPlayer) rootsRegistered(t *testing.T, roots []string) {
	t.Helper()
	want := slices.Sorted(slices.Values(roots))
	eventually(t, 10*time.Second, func() error {
		for _, w := range registered(t, y.admin).Webhooks {
			if w.Name != "root.mesh.meshvakt.io" {
				continue
			}
			if got := slices.Sorted(slices.Values(w.NamespaceSelector.MatchExpressions[0].Values)); !slices.Equal(got, want) {
				return fmt.Errorf("root namespaces %q are registered; must be %q", got, want)
			}
			return nil
		}
		return errors.New("no entry for the root namespaces")
	})
}

// probe creates namespaces that the guard selects, as dry runs, until the API
// server asks about one. The first ones may slip through, for it learns of the
// webhook configuration by a watch.
func (y *corpusPlayer) probe(t *testing.T, g *v1alpha1.MeshGuard) {
	t.Helper()
	labels := maps.Clone(g.Spec.NamespaceSelector.MatchLabels)
	if labels == nil {
		labels = map[string]string{}
	}
	fixed := ""
	for _, e := range g.Spec.NamespaceSelector.MatchExpressions {
		if e.Key == corev1.LabelMetadataName {
			fixed = e.Values[0]
		} else if len(e.Values) > 0 && e.Operator == metav1.LabelSelectorOpIn {
			labels[e.Key] = e.Values[0]
		}
	}
	dryRun := client.NewDryRunClient(y.admin)
	var names []string
	eventually(t, 10*time.Second, func() error {
		ns := namespace(cmp.Or(fixed, unique("probe")), false)
		ns.Labels = labels
		names = append(names, ns.Name)
		if err := dryRun.Create(t.Context(), ns); err != nil {
			refused(t, err)
			return nil
		}
		if y.replica.decidedOn(names) {
			return nil
		}
		return fmt.Errorf("the API server does not ask about namespaces of MeshGuard %s", g.Name)
	})
}

// decidedOn reports whether the replica has decided about an object of one of the
// names, as its log tells.
func (r *replica) decidedOn(names []string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.log[max(0, len(r.log)-100):], func(line string) bool {
		return strings.Contains(line, `"msg":"decision"`) &&
			slices.ContainsFunc(names, func(name string) bool { return strings.Contains(line, fmt.Sprintf("%q", name)) })
	})
}

// request does what the case does, and compares. The API server knows of the
// labels of namespaces by a watch too; an answer that is still not as wanted after
// some time is wrong.
func (y *corpusPlayer) request(t *testing.T, c *playedCase) {
	if c.object(t).GetKind() == "Pod" {
		serviceAccount(t, c.object(t).GetNamespace())
	}
	var last error
	for deadline, try := time.Now().Add(5*time.Second), 0; ; try++ {
		w := &witness{}
		err := do(t, w.client(t, c.who(t)), y.admin, c)
		if last = compare(c, err, w); last == nil {
			y.audits[w.auditID] = c
			return
		}
		if time.Now().After(deadline) {
			break
		}
		if try == 0 {
			y.retried = append(y.retried, c.Name)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%s\n%v", c.Intent(), last)
}
