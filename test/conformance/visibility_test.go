package conformance

import (
	"slices"
	"testing"

	securityclient "istio.io/client-go/pkg/apis/security/v1"
	"istio.io/istio/pilot/pkg/config/kube/crdclient"
	istiomesh "istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/mesh/labelselector"
	"istio.io/istio/pkg/config/mesh/meshwatcher"
	"istio.io/istio/pkg/config/schema/collection"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/config/schema/gvk"
	"istio.io/istio/pkg/config/schema/gvr"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/kube/kclient"
	"istio.io/istio/pkg/kube/kclient/clienttest"
	"istio.io/istio/pkg/kube/namespace"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// What istiod's config client lists, out of an API server with these namespaces and policies, is what Reads says.
func TestReadsAgainstCRDClient(t *testing.T) {
	n, s := cases(100), seed(t)
	newIstio(t) // for the log levels
	hidden := 0
	for c := range n {
		tc := randomCase(sequence(s, c), 12)
		control, err := tc.controlPlane()
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, p := range tc.policies {
			if control.Reads(p, tc.namespaces[p.Namespace]) {
				want = append(want, p.Key())
			} else {
				hidden++
			}
		}
		slices.Sort(want)
		if got := listed(t, tc); !slices.Equal(got, want) {
			t.Fatalf("case %d of seed %d: istiod reads %v, Reads says %v\n%s", c, s, got, want, tc)
		}
	}
	if hidden < n {
		t.Errorf("only %d policies were hidden in %d cases", hidden, n)
	}
}

func listed(t *testing.T, tc testCase) (keys []string) {
	var objects []runtime.Object
	for name, labels := range tc.namespaces {
		objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	}
	for _, p := range tc.policies {
		objects = append(objects, toObject(p))
	}
	settings, err := istiomesh.ApplyMeshConfigDefaults(tc.meshConfig())
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	defer close(stop)
	client := kube.NewFakeClient(objects...)
	clienttest.MakeCRD(t, client, gvr.PeerAuthentication)
	namespaces := kclient.New[*corev1.Namespace](client)
	filter, wait := namespace.NewNonBlockingDiscoveryNamespacesFilter(namespaces, meshwatcher.NewTestWatcher(settings), stop)
	kube.SetObjectFilter(client, filter)
	store := crdclient.NewForSchemas(client, crdclient.Option{Revision: tc.revision}, collection.SchemasFor(collections.PeerAuthentication))
	go store.Run(stop)
	client.RunAndWait(stop)
	wait(stop)
	if !kube.WaitForCacheSync("conformance", stop, store.HasSynced) {
		t.Fatal("istiod's config client did not synchronise")
	}
	for _, cfg := range store.List(gvk.PeerAuthentication, metav1.NamespaceAll) {
		keys = append(keys, cfg.Namespace+"/"+cfg.Name)
	}
	slices.Sort(keys)
	return keys
}

func toObject(p *mesh.PeerAuthentication) *securityclient.PeerAuthentication {
	o := &securityclient.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.Namespace, Name: p.Name, CreationTimestamp: metav1.NewTime(p.Created),
	}}
	if p.HasRevision {
		o.Labels = map[string]string{"istio.io/rev": p.Revision}
	}
	toSpec(p).DeepCopyInto(&o.Spec)
	return o
}

// MeshConfig texts mean the same to istiod and to ParseControlPlane, and what one refuses the other does. Known to
// differ: a null among the discovery selectors, which istiod takes and ParseControlPlane refuses.
func TestParseControlPlaneAgainstIstio(t *testing.T) {
	texts := append(slices.Clone(discoveryConfigs),
		"rootNamespace: cfg", "root_namespace: cfg", `rootNamespace: ""`, "rootNamespace: null", "rootNamespace: 7", "{}", "# nothing\n",
		"enableAutoMtls: false", "enableAutoMtls: true", "enableAutoMtls: null", "enableAutoMtls: {}", "enable_auto_mtls: false", `enableAutoMtls: "false"`, "enableAutoMtls: 1",
		"unknownField: {a: [1]}\nrootNamespace: cfg", "rootnamespace: cfg", "a: [", "[1]", "text", "discoverySelectors: {}", "discoverySelectors: null",
		"accessLogFile: /dev/stdout\ndefaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\nrootNamespace: istio-system\ntrustDomain: cluster.local\n",
		"defaultConfig: {unknown: 1}", "defaultConfig: 5", "discoverySelectors: [{matchExpressions: [{key: a, operator: Near}]}]",
		`discoverySelectors: [{matchLabels: {a: "b c"}}]`, "discoverySelectors: [{matchExpressions: [{key: a, operator: In}]}]",
		"discoverySelectors: [{match_labels: {env: prod}}]", "discoverySelectors: [{matchLabels: {env: prod}, other: 1}]",
		"rootNamespace: a\nrootNamespace: b", "rootNamespace: cfg\n---\nrootNamespace: other",
	)
	for _, text := range texts {
		ours, ourErr := mesh.ParseControlPlane("istio", nil, map[string]string{"mesh": text})
		theirs, theirErr := istiomesh.ApplyMeshConfigDefaults(text)
		var selectors []labels.Selector
		for _, s := range theirs.GetDiscoverySelectors() {
			parsed, err := labelselector.LabelSelectorAsSelector(s)
			if err != nil {
				theirErr = err
			}
			selectors = append(selectors, parsed)
		}
		if (ourErr == nil) != (theirErr == nil) {
			t.Errorf("%q: our error is %v, Istio's %v", text, ourErr, theirErr)
			continue
		}
		if ourErr != nil {
			continue
		}
		if ours.RootNamespace != theirs.GetRootNamespace() || ours.EnableAutoMTLS != theirs.GetEnableAutoMtls().GetValue() || len(ours.DiscoverySelectors) != len(selectors) {
			t.Errorf("%q: ours %+v, Istio's root namespace %q, auto mTLS %v, selectors %v", text, ours, theirs.GetRootNamespace(), theirs.GetEnableAutoMtls(), selectors)
			continue
		}
		for i := range selectors {
			if ours.DiscoverySelectors[i].String() != selectors[i].String() {
				t.Errorf("%q: selector %d is %q, Istio's %q", text, i, ours.DiscoverySelectors[i], selectors[i])
			}
		}
	}
}
