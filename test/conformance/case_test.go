package conformance

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// testCase is one cluster: what both resolvers are asked about.
type testCase struct {
	revision   string
	root       string
	selectors  int // index into discoveryConfigs
	namespaces map[string]map[string]string
	policies   []*mesh.PeerAuthentication
	workloads  []mesh.Workload
}

// The universe is small, so that policies collide: four namespaces of which two can be the root, four creation
// seconds, names that sort before and after each other, labels over three keys.
var (
	namespaceNames = []string{"foo", "istio-system", "bar", "cfg"}
	rootNames      = []string{"istio-system", "istio-system", "istio-system", "cfg", "nowhere"}
	policyNames    = []string{"a", "b", "default", "z", "Z", "10", "9"}
	revisions      = []string{"default", "default", "canary", ""}
	revisionLabels = []string{"default", "canary", "", "other"}
	podLabels      = []label{{"app", []string{"a", "b"}}, {"v", []string{"1", "2"}}, {"empty", []string{""}}}
	nsLabels       = []label{{"env", []string{"prod", "dev"}}, {"mesh", []string{"", "in"}}}
	portUniverse   = []uint32{1, 80, 8080, 65535}
)

type label struct {
	key    string
	values []string
}

// discoveryConfigs are MeshConfig texts. The first ones discover everything, so that most cases have policies.
var discoveryConfigs = []string{
	"",
	"discoverySelectors: []",
	"discoverySelectors: [{}]",
	"discoverySelectors: [{matchLabels: {env: prod}}]",
	"discoverySelectors: [{matchLabels: {env: prod}}, {matchLabels: {mesh: in}}]",
	"discoverySelectors: [{matchLabels: {env: prod, mesh: in}}]",
	"discoverySelectors: [{matchExpressions: [{key: env, operator: In, values: [prod, dev]}]}]",
	"discoverySelectors: [{matchExpressions: [{key: env, operator: NotIn, values: [dev]}]}]",
	"discoverySelectors: [{matchExpressions: [{key: mesh, operator: Exists}]}]",
	"discoverySelectors: [{matchExpressions: [{key: mesh, operator: DoesNotExist}, {key: env, operator: Exists}]}]",
	`discoverySelectors: [{matchLabels: {mesh: ""}}]`,
}

// labelSets lists all label sets over the given keys, the empty one first.
func labelSets(keys []label) []map[string]string {
	out := []map[string]string{{}}
	for _, l := range keys {
		for _, smaller := range out[:len(out):len(out)] {
			for _, v := range l.values {
				larger := map[string]string{l.key: v}
				for k, have := range smaller {
					larger[k] = have
				}
				out = append(out, larger)
			}
		}
	}
	return out
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// start is the creation time of the oldest policy.
var start = time.Unix(1_800_000_000, 0).UTC()

// randomCase makes a cluster with up to most policies.
func randomCase(r *rand.Rand, most int) testCase {
	tc := testCase{
		revision:   pick(r, revisions),
		root:       pick(r, rootNames),
		selectors:  max(0, r.IntN(2*len(discoveryConfigs))-len(discoveryConfigs)),
		namespaces: make(map[string]map[string]string),
	}
	sets := labelSets(nsLabels)
	for _, ns := range namespaceNames {
		tc.namespaces[ns] = pick(r, sets)
	}
	taken := make(map[string]bool)
	for range r.IntN(most + 1) {
		p := randomPolicy(r, tc.root)
		if !taken[p.Key()] {
			taken[p.Key()] = true
			tc.policies = append(tc.policies, p)
		}
	}
	pods := labelSets(podLabels)
	for range 4 {
		w := mesh.Workload{
			Namespace: namespaceNames[min(r.IntN(4), r.IntN(4), r.IntN(4))],
			Labels:    pick(r, pods),
		}
		if len(tc.policies) > 0 && r.IntN(2) == 0 { // one that a policy is about
			p := pick(r, tc.policies)
			w.Namespace, w.Labels = p.Namespace, maps.Clone(w.Labels)
			maps.Copy(w.Labels, p.Selector)
		}
		tc.workloads = append(tc.workloads, w)
	}
	return tc
}

func randomPolicy(r *rand.Rand, root string) *mesh.PeerAuthentication {
	p := &mesh.PeerAuthentication{
		Namespace: namespaceNames[min(r.IntN(4), r.IntN(4), r.IntN(4))],
		Name:      pick(r, policyNames),
		Created:   start.Add(time.Duration(r.IntN(4)) * time.Second),
		Mode:      mesh.Mode(r.IntN(4)),
	}
	if r.IntN(4) == 0 && slices.Contains(namespaceNames, root) {
		p.Namespace = root
	}
	if r.IntN(4) == 0 {
		p.HasRevision, p.Revision = true, pick(r, revisionLabels)
	}
	if r.IntN(8) < 5 {
		p.SelectorSet = true
		for _, l := range podLabels {
			if r.IntN(3) == 0 {
				if p.Selector == nil {
					p.Selector = make(map[string]string)
				}
				p.Selector[l.key] = pick(r, l.values)
			}
		}
	}
	if r.IntN(2) == 0 {
		p.Ports = make(map[uint32]mesh.Mode)
		for _, port := range portUniverse {
			if r.IntN(3) == 0 {
				p.Ports[port] = mesh.Mode(r.IntN(4))
			}
		}
	}
	return p
}

// answer is the modes of one workload: port 0 for the ports nobody names, then portUniverse.
type answer [5]mesh.Mode

// ours resolves the case with internal/mesh, given which policies the control plane reads.
func ours(tc testCase, reads func(mesh.ControlPlane, *mesh.PeerAuthentication, map[string]string) bool) ([]answer, error) {
	c, err := tc.controlPlane()
	if err != nil {
		return nil, err
	}
	var read []*mesh.PeerAuthentication
	for _, p := range tc.policies {
		if reads(c, p, tc.namespaces[p.Namespace]) {
			read = append(read, p)
		}
	}
	out := make([]answer, len(tc.workloads))
	for i, w := range tc.workloads {
		e := c.Resolve(w, read)
		out[i][0] = e.Mode
		for j, port := range portUniverse {
			out[i][j+1] = e.Port(port)
		}
	}
	return out, nil
}

func (tc testCase) controlPlane() (mesh.ControlPlane, error) {
	c, err := mesh.ParseControlPlane("istio", nil, map[string]string{"mesh": tc.meshConfig()})
	c.Revision = tc.revision
	return c, err
}

func (tc testCase) meshConfig() string {
	return "rootNamespace: " + tc.root + "\n" + discoveryConfigs[tc.selectors] + "\n"
}

// shrink removes what is not needed for fails to hold: policies, then workloads, then parts of policies.
func shrink(tc testCase, fails func(testCase) bool) testCase {
	for again := true; again; {
		again = false
		try := func(smaller testCase) bool {
			if fails(smaller) {
				tc, again = smaller, true
				return true
			}
			return false
		}
		for i := len(tc.policies) - 1; i >= 0; i-- {
			smaller := tc
			smaller.policies = slices.Delete(slices.Clone(tc.policies), i, i+1)
			try(smaller)
		}
		for i := len(tc.workloads) - 1; i >= 0 && len(tc.workloads) > 1; i-- {
			smaller := tc
			smaller.workloads = slices.Delete(slices.Clone(tc.workloads), i, i+1)
			try(smaller)
		}
		for i := range tc.policies {
			simpler := *tc.policies[i]
			simpler.Ports = nil
			if tc.policies[i].Ports != nil {
				try(tc.with(i, simpler))
			}
			simpler = *tc.policies[i]
			simpler.HasRevision, simpler.Revision = false, ""
			if tc.policies[i].HasRevision {
				try(tc.with(i, simpler))
			}
		}
		if tc.selectors > 0 {
			smaller := tc
			smaller.selectors = 0
			try(smaller)
		}
	}
	return tc
}

func (tc testCase) with(i int, p mesh.PeerAuthentication) testCase {
	tc.policies = slices.Clone(tc.policies)
	tc.policies[i] = &p
	return tc
}

// String writes the case as YAML-like text.
func (tc testCase) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "revision: %q\nmesh: |\n  rootNamespace: %s\n  %s\n", tc.revision, tc.root, discoveryConfigs[tc.selectors])
	used := make(map[string]bool)
	for _, p := range tc.policies {
		used[p.Namespace] = true
		fmt.Fprintf(&b, "---\nkind: PeerAuthentication\nmetadata: {namespace: %s, name: %q, creationTimestamp: %s", p.Namespace, p.Name, p.Created.Format(time.RFC3339))
		if p.HasRevision {
			fmt.Fprintf(&b, ", labels: {istio.io/rev: %q}", p.Revision)
		}
		b.WriteString("}\nspec:\n")
		if p.SelectorSet {
			fmt.Fprintf(&b, "  selector: {matchLabels: %s}\n", yamlMap(p.Selector))
		}
		fmt.Fprintf(&b, "  mtls: {mode: %v}\n", p.Mode)
		if p.Ports != nil {
			fmt.Fprintf(&b, "  portLevelMtls: %v\n", p.Ports)
		}
	}
	for _, ns := range namespaceNames {
		if used[ns] && tc.selectors > 0 {
			fmt.Fprintf(&b, "---\nkind: Namespace\nmetadata: {name: %s, labels: %s}\n", ns, yamlMap(tc.namespaces[ns]))
		}
	}
	for _, w := range tc.workloads {
		fmt.Fprintf(&b, "---\nkind: Pod\nmetadata: {namespace: %s, labels: %s}\n", w.Namespace, yamlMap(w.Labels))
	}
	return b.String()
}

func yamlMap(m map[string]string) string {
	var pairs []string
	for k, v := range m {
		pairs = append(pairs, fmt.Sprintf("%s: %q", k, v))
	}
	slices.Sort(pairs)
	return "{" + strings.Join(pairs, ", ") + "}"
}
