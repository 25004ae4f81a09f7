package conformance

import (
	"fmt"
	"slices"
	"testing"
	"time"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networkingclient "istio.io/client-go/pkg/apis/networking/v1"
	securityclient "istio.io/client-go/pkg/apis/security/v1"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/pkg/serviceregistry/ambient"
	"istio.io/istio/pkg/kube/krt"
	"istio.io/istio/pkg/workloadapi/security"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// ambientAnswers lets istiod compute what it sends to ztunnel for the pods of the case, and evaluates that.
// Reading (revision, discovery) is the same as for sidecars and is left out here: every policy is read.
func ambientAnswers(tc testCase) []answer {
	stop := make(chan struct{})
	defer close(stop)
	opts := krt.NewOptionsBuilder(stop, "conformance", nil)

	var objects []*securityclient.PeerAuthentication
	for _, p := range tc.policies {
		objects = append(objects, toObject(p))
	}
	var pods []*corev1.Pod
	for n, w := range tc.workloads {
		pods = append(pods, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: fmt.Sprintf("pod-%d", n), Labels: w.Labels},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.0.0.%d", n+1)},
		})
	}
	settings := krt.NewStatic(&ambient.MeshConfig{MeshConfig: &meshconfig.MeshConfig{RootNamespace: tc.root}}, true)
	peers := krt.NewStaticCollection(nil, objects)
	waypoints := krt.NewStaticCollection[ambient.Waypoint](nil, nil)
	namespaces := krt.NewStaticCollection[*corev1.Namespace](nil, nil)
	authz, all := ambient.PolicyCollections(krt.NewStaticCollection[*securityclient.AuthorizationPolicy](nil, nil),
		peers, settings, waypoints, opts, ambient.FeatureFlags{})
	builder := ambient.Builder{
		ClusterID: "cluster", DomainSuffix: "cluster.local",
		Networks: ambient.BuildNetworkCollections(namespaces, krt.NewStaticCollection[*gatewayv1.Gateway](nil, nil), ambient.Options{SystemNamespace: tc.root, ClusterID: "cluster"}, opts),
	}
	workloads := builder.WorkloadsCollection(krt.NewStaticCollection(nil, pods), krt.NewStaticCollection[ambient.Node](nil, nil), settings, authz, peers,
		waypoints, krt.NewStaticCollection[model.ServiceInfo](nil, nil), krt.NewStaticCollection[*networkingclient.WorkloadEntry](nil, nil),
		krt.NewStaticCollection[*networkingclient.ServiceEntry](nil, nil), krt.NewStaticCollection[*discoveryv1.EndpointSlice](nil, nil), namespaces, opts)
	all.WaitUntilSynced(stop)
	workloads.WaitUntilSynced(stop)

	sent := make(map[string]*security.Authorization)
	for _, p := range all.List() {
		sent[p.ResourceName()] = p.Authorization
	}
	out := make([]answer, len(tc.workloads))
	for _, w := range workloads.List() {
		var n int
		if _, err := fmt.Sscanf(w.Workload.Name, "pod-%d", &n); err != nil {
			panic(err)
		}
		for j, port := range append([]uint32{2}, portUniverse...) {
			out[n][j] = mesh.ModePermissive
			for _, reference := range w.Workload.AuthorizationPolicies {
				if refusesPlaintext(sent[reference], port) {
					out[n][j] = mesh.ModeStrict
				}
			}
		}
	}
	return out
}

// refusesPlaintext is ztunnel's evaluation of a deny policy for a connection without a peer identity. Groups are
// alternatives, the rules of a group must all match, the matches of a rule are alternatives, the fields of a match
// must all match. A reference to a policy that was never sent is skipped.
func refusesPlaintext(p *security.Authorization, port uint32) bool {
	if p == nil || p.Action != security.Action_DENY {
		return false
	}
	matches := func(m *security.Match) bool {
		return (len(m.DestinationPorts) == 0 || slices.Contains(m.DestinationPorts, port)) &&
			!slices.Contains(m.NotDestinationPorts, port) // NotPrincipals: any principal; there is none, so it matches
	}
	return slices.ContainsFunc(p.Groups, func(g *security.Group) bool {
		return !slices.ContainsFunc(g.Rules, func(r *security.Rules) bool { return !slices.ContainsFunc(r.Matches, matches) })
	})
}

// ambientCase is a case in which everything is read and nothing happens in the same second: istiod does not order
// such policies, so that its answer is any of several (see TestAmbientTies).
func ambientCase(seed uint64, n int, ties bool) testCase {
	r := sequence(seed, n)
	tc := randomCase(r, 7)
	tc.revision, tc.selectors = "default", 0
	for i, second := range r.Perm(len(tc.policies)) {
		tc.policies[i].HasRevision = false
		if !ties {
			tc.policies[i].Created = start.Add(time.Duration(second) * time.Second)
		}
	}
	for i := range tc.workloads {
		tc.workloads[i].Dataplane = mesh.Ambient
	}
	return tc
}

func TestAmbientDifferential(t *testing.T) {
	n, s := cases(5000), seed(t)
	newIstio(t) // for the log levels
	compare := func(tc testCase) string {
		got, err := ours(tc, mesh.ControlPlane.Reads)
		if err != nil {
			t.Fatal(err)
		}
		return differ(tc, got, ambientAnswers(tc))
	}
	begin := time.Now()
	for c := range n {
		tc := ambientCase(s, c, false)
		if compare(tc) != "" {
			tc = shrink(tc, func(smaller testCase) bool { return compare(smaller) != "" })
			t.Fatalf("case %d of seed %d: %s\n%s", c, s, compare(tc), tc)
		}
	}
	t.Logf("%d cases in %v", n, time.Since(begin).Round(time.Millisecond))
}

// With ties istiod's answer depends on the order of a map; it must never be weaker than what Resolve says.
func TestAmbientTies(t *testing.T) {
	n, s := cases(1500), seed(t)
	newIstio(t) // for the log levels
	stronger := 0
	for c := range n {
		tc := ambientCase(s, c, true)
		worst, err := ours(tc, mesh.ControlPlane.Reads)
		if err != nil {
			t.Fatal(err)
		}
		for w, got := range ambientAnswers(tc) {
			for j := range got {
				if got[j] < worst[w][j] {
					t.Fatalf("case %d of seed %d: pod %d, column %d: Istio %v is weaker than ours %v\n%s", c, s, w, j, got[j], worst[w][j], tc)
				}
				if got[j] > worst[w][j] {
					stronger++
				}
			}
		}
	}
	t.Logf("in %d of %d answers a tie came out stronger than the worst case", stronger, n*4*5)
}
