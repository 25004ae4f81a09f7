package conformance

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	meshconfig "istio.io/api/mesh/v1alpha1"
	securityv1beta1 "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/pkg/security/authn"
	"istio.io/istio/pkg/config"
	istiomesh "istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/mesh/meshwatcher"
	"istio.io/istio/pkg/config/schema/collection"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/config/schema/gvk"
	"istio.io/istio/pkg/config/schema/kind"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/kube/kclient"
	"istio.io/istio/pkg/kube/kubetypes"
	"istio.io/istio/pkg/kube/namespace"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/util/sets"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// istio answers with Istio's code.
type istio struct {
	configs []*meshconfig.MeshConfig        // one for each discovery config
	filters []kubetypes.DynamicObjectFilter // likewise: Istio's filter over all label sets a namespace can have
	named   map[string]string               // label set -> name of the namespace in the filters' cluster
	base    *model.PushContext              // an empty mesh, to which each case is an increment
	env     *model.Environment
	store   *policyStore
}

func newIstio(t testing.TB) *istio {
	for _, scope := range log.Scopes() {
		scope.SetOutputLevel(log.NoneLevel) // istiod warns of each shadowed policy, and of each test cluster that is torn down
	}
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	i := &istio{named: make(map[string]string), store: &policyStore{}}

	var objects []runtime.Object
	for n, labels := range labelSets(nsLabels) {
		name := fmt.Sprintf("ns-%d", n)
		i.named[yamlMap(labels)] = name
		objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	}
	client := kube.NewFakeClient(objects...)
	namespaces := kclient.New[*corev1.Namespace](client)
	client.RunAndWait(stop)
	for _, text := range discoveryConfigs {
		parsed, err := istiomesh.ApplyMeshConfigDefaults(text)
		if err != nil {
			t.Fatalf("Istio refuses %q: %v", text, err)
		}
		i.configs = append(i.configs, parsed)
		i.filters = append(i.filters, namespace.NewDiscoveryNamespacesFilter(namespaces, meshwatcher.NewTestWatcher(parsed), stop))
	}

	i.env = model.NewEnvironment()
	i.env.ConfigStore = i.store
	i.env.ServiceDiscovery = noServices{}
	i.env.Watcher = meshwatcher.NewTestWatcher(i.configs[0])
	i.env.NetworksWatcher = meshwatcher.NewFixedNetworksWatcher(nil)
	i.env.Init()
	i.base = model.NewPushContext()
	i.base.InitDone.Store(true)
	return i
}

// reads is Istio's composition of filters in crdclient.Client.addCRD: namespace filter, then revision.
func (i *istio) reads(tc testCase, p *mesh.PeerAuthentication) bool {
	cfg := toConfig(p)
	return i.filters[tc.selectors].Filter(i.named[yamlMap(tc.namespaces[p.Namespace])]) &&
		config.ObjectInRevision(&cfg, tc.revision)
}

// push builds istiod's view of the case: the increment it does when PeerAuthentications change.
func (i *istio) push(tc testCase) *model.PushContext {
	i.store.policies = i.store.policies[:0]
	for _, p := range tc.policies {
		if i.reads(tc, p) {
			i.store.policies = append(i.store.policies, toConfig(p))
		}
	}
	settings := &meshconfig.MeshConfig{RootNamespace: tc.root, DiscoverySelectors: i.configs[tc.selectors].DiscoverySelectors}
	i.env.Watcher = meshwatcher.NewTestWatcher(settings)
	push := model.NewPushContext()
	push.InitContext(i.env, i.base, &model.PushRequest{
		ConfigsUpdated: sets.New(model.ConfigKey{Kind: kind.PeerAuthentication, Name: "any", Namespace: "any"}),
	})
	return push
}

// answers resolves the case twice, over the two ways istiod has: NewMtlsPolicy, with which it chooses endpoints
// for clients, and NewPolicyApplier, with which it builds inbound listeners.
func (i *istio) answers(tc testCase) ([]answer, error) {
	push := i.push(tc)
	out := make([]answer, len(tc.workloads))
	for n, w := range tc.workloads {
		server := authn.NewPolicyApplier(push, &model.Proxy{Type: model.SidecarProxy, ConfigNamespace: w.Namespace, Labels: w.Labels}, nil)
		client := authn.NewMtlsPolicy(push, push.AuthnPolicies, w.Namespace, w.Labels, false)
		// Port 2 is in no policy, hence has the mode of the rest.
		for j, port := range append([]uint32{2}, portUniverse...) {
			mode := server.GetMutualTLSModeForPort(port)
			if other := client.GetMutualTLSModeForPort(port); other != mode {
				return nil, fmt.Errorf("istio disagrees with itself on port %d: %v and %v", port, mode, other)
			}
			out[n][j] = fromIstio(mode)
		}
		for port := range server.PortLevelSetting() {
			if !slices.Contains(portUniverse, port) {
				return nil, fmt.Errorf("istio knows port %d", port)
			}
		}
	}
	return out, nil
}

func fromIstio(m model.MutualTLSMode) mesh.Mode {
	switch m {
	case model.MTLSDisable:
		return mesh.ModeDisable
	case model.MTLSPermissive:
		return mesh.ModePermissive
	case model.MTLSStrict:
		return mesh.ModeStrict
	}
	return mesh.ModeUnset
}

// toSpec writes the policy in Istio's API. UNSET has three spellings, absent block, empty block and UNSET; which
// one is used depends on the name only, so that a case replays.
func toSpec(p *mesh.PeerAuthentication) *securityv1beta1.PeerAuthentication {
	spelling := len(p.Key()) + int(p.Created.Unix())
	mtls := func(m mesh.Mode, spelling int) *securityv1beta1.PeerAuthentication_MutualTLS {
		switch m {
		case mesh.ModeDisable:
			return &securityv1beta1.PeerAuthentication_MutualTLS{Mode: securityv1beta1.PeerAuthentication_MutualTLS_DISABLE}
		case mesh.ModePermissive:
			return &securityv1beta1.PeerAuthentication_MutualTLS{Mode: securityv1beta1.PeerAuthentication_MutualTLS_PERMISSIVE}
		case mesh.ModeStrict:
			return &securityv1beta1.PeerAuthentication_MutualTLS{Mode: securityv1beta1.PeerAuthentication_MutualTLS_STRICT}
		}
		if spelling%2 == 0 {
			return nil
		}
		return &securityv1beta1.PeerAuthentication_MutualTLS{}
	}
	spec := &securityv1beta1.PeerAuthentication{Mtls: mtls(p.Mode, spelling)}
	if p.SelectorSet {
		spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: maps.Clone(p.Selector)}
	}
	if p.Ports != nil {
		spec.PortLevelMtls = make(map[uint32]*securityv1beta1.PeerAuthentication_MutualTLS)
		for port, m := range p.Ports {
			spec.PortLevelMtls[port] = mtls(m, spelling+int(port))
		}
	}
	return spec
}

func toConfig(p *mesh.PeerAuthentication) config.Config {
	c := config.Config{
		Meta: config.Meta{
			GroupVersionKind:  gvk.PeerAuthentication,
			Namespace:         p.Namespace,
			Name:              p.Name,
			CreationTimestamp: p.Created,
		},
		Spec: toSpec(p),
	}
	if p.HasRevision {
		c.Labels = map[string]string{"istio.io/rev": p.Revision}
	}
	return c
}

// policyStore is a config store that holds PeerAuthentications and nothing else.
type policyStore struct {
	model.ConfigStore // panics on what istiod is not expected to ask
	policies          []config.Config
}

func (s *policyStore) Schemas() collection.Schemas { return collections.Pilot }

func (s *policyStore) List(k config.GroupVersionKind, ns string) []config.Config {
	if k != gvk.PeerAuthentication {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(s.policies), func(c config.Config) bool { return ns != model.NamespaceAll && c.Namespace != ns })
}

func (s *policyStore) Get(config.GroupVersionKind, string, string) *config.Config { return nil }

// noServices is a mesh without services.
type noServices struct{ model.ServiceDiscovery }

func (noServices) Services() []*model.Service { return nil }

// differ describes the first difference of two answers to a case.
func differ(tc testCase, got, want []answer) string {
	for i := range want {
		for j := range want[i] {
			if got[i][j] != want[i][j] {
				port := "ports without an override"
				if j > 0 {
					port = fmt.Sprintf("port %d", portUniverse[j-1])
				}
				return fmt.Sprintf("%s of pod %d (%s %s): ours %v, Istio %v", port, i, tc.workloads[i].Namespace,
					strings.TrimSpace(yamlMap(tc.workloads[i].Labels)), got[i][j], want[i][j])
			}
		}
	}
	return ""
}

// sequence gives the random numbers of case n, so that a case can be replayed alone.
func sequence(seed uint64, n int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(n))) }
