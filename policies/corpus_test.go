package policies_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

var update = flag.Bool("update", false, "rewrite the want.yaml of all cases")

func evaluate(t *testing.T, r *facts.Review) policies.Decision {
	t.Helper()
	d, err := policies.Evaluate(policies.All(), r)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestCorpus judges every case and compares the decision with want.yaml.
func TestCorpus(t *testing.T) {
	cases := policytest.Load(t, "testdata")
	for _, c := range cases {
		t.Run(c.Policy+"/"+c.Name, func(t *testing.T) {
			final, submitted := evaluate(t, c.Review(t)), evaluate(t, c.ReviewSubmitted(t))
			got := c.Got(t, &final, &submitted)
			prefix := map[policies.Outcome]string{
				policies.Deny: "deny-", policies.Warn: "warn-", policies.Allow: "pass-", policytest.NotApplicable: "na-",
			}[got.Decision]
			if !strings.HasPrefix(c.Name, prefix) {
				t.Errorf("%s (%s): the name must begin with %s; findings: %v", got.Decision, c.Intent(), prefix, got.Findings)
			}
			if *update {
				c.WriteWant(t, got)
				return
			}
			if !reflect.DeepEqual(got, c.Want) {
				t.Errorf("decision differs; go test ./policies -update rewrites want.yaml\n got: %+v\nwant: %+v", got, c.Want)
			}
		})
	}
	if *update {
		fmt.Println("want.yaml of all cases rewritten; verify the diff")
	}
}

// TestCorpusIsComplete demands cases of every kind for every policy, and for
// every reason a case that produces it.
func TestCorpusIsComplete(t *testing.T) {
	cases := policytest.Load(t, "testdata")
	count := map[string]int{}
	for _, c := range cases {
		verdict, _, _ := strings.Cut(c.Name, "-")
		count[c.Policy+" "+verdict]++
		for _, f := range c.Want.Findings {
			count[c.Policy+" "+f.Reason]++
		}
	}
	known := map[string]bool{}
	for _, p := range policies.All() {
		known[p.ID] = true
		for _, kind := range []string{"deny", "pass", "na"} {
			if count[p.ID+" "+kind] == 0 {
				t.Errorf("policy %s has no case %s-*", p.ID, kind)
			}
		}
		for _, r := range p.Reasons {
			if count[p.ID+" "+r.Name] == 0 {
				t.Errorf("policy %s: no case finds %s", p.ID, r.Name)
			}
		}
	}
	for _, c := range cases {
		if !known[c.Policy] {
			t.Errorf("%s: there is no policy %q", c.Dir, c.Policy)
		}
	}
}

// TestCorpusStatesAges demands that policies which compete by age say how old they
// are, in that order, so that a reader with a real API server can create them so.
func TestCorpusStatesAges(t *testing.T) {
	t.Parallel()
	for _, c := range policytest.Load(t, "testdata") {
		r := c.Review(t)
		for _, ns := range r.Cluster.Namespaces {
			for i, p := range ns.PeerAuthentications {
				for _, q := range ns.PeerAuthentications[:i] {
					competing := (len(p.Selector) == 0) == (len(q.Selector) == 0)
					if competing && (p.Created.Year() < 2000 || q.Created.Year() < 2000) {
						t.Errorf("%s: PeerAuthentications %s and %s compete by age; both must have a creationTimestamp", c.Name, q.Key(), p.Key())
					}
					if r.Operation != "UPDATE" && p.Created.Before(q.Created) && p != r.OldObject && q != r.OldObject {
						t.Errorf("%s: PeerAuthentication %s is older than %s and must stand before it", c.Name, p.Key(), q.Key())
					}
				}
			}
		}
	}
}

// TestFindingsAreWellFormed reads every message as a machine can.
func TestFindingsAreWellFormed(t *testing.T) {
	t.Parallel()
	for _, c := range policytest.Load(t, "testdata") {
		final, submitted := evaluate(t, c.Review(t)), evaluate(t, c.ReviewSubmitted(t))
		for _, f := range slices.Concat(final.Findings, submitted.Findings) {
			for what, text := range map[string]string{"message": f.Message, "remedy": f.Remedy} {
				if strings.ContainsAny(text, "\n\t") || strings.HasSuffix(text, ".") || strings.TrimSpace(text) != text {
					t.Errorf("%s: %s %q must be one line without a full stop", c.Name, what, text)
				}
				if strings.Contains(text, "  ") || strings.Contains(text, "%!") || strings.Contains(text, "should") {
					t.Errorf("%s: %s %q is badly put", c.Name, what, text)
				}
			}
			if f.Severity == policies.Breach && f.Remedy == "" {
				t.Errorf("%s: breach %s has no remedy", c.Name, f.Reason.Name)
			}
			if f.Severity == policies.Breach && f.Field == "" {
				t.Errorf("%s: breach %s has no field", c.Name, f.Reason.Name)
			}
			if f.Severity == policies.Breach && !strings.Contains(f.Message, "must") {
				t.Errorf("%s: message %q does not say what must be", c.Name, f.Message)
			}
			if len(f.Text()) > 1500 {
				t.Errorf("%s: finding of %d characters", c.Name, len(f.Text()))
			}
		}
	}
}

// TestPoliciesAreInOrder checks the registry.
func TestPoliciesAreInOrder(t *testing.T) {
	if err := policies.Check(policies.All()); err != nil {
		t.Error(err)
	}
}

// TestCheckReportsBrokenPolicies proves that Check finds what it is for.
func TestCheckReportsBrokenPolicies(t *testing.T) {
	doubled := append(policies.All(), policies.All()...)
	if err := policies.Check(doubled); err == nil {
		t.Error("doubled policies pass")
	}
	nameless := policies.All()
	nameless[0].ID, nameless[0].Judge = "", nil
	if err := policies.Check(nameless); err == nil {
		t.Error("a policy without ID and judgement passes")
	}
	later := policies.All()[0]
	later.ID, later.Reasons = "a-later-one", nil
	if err := policies.Check(append(policies.All(), later)); err == nil {
		t.Error("unsorted policies pass")
	}
}

// TestJudgingIsPure judges every case twenty times with the facts in another
// order, and compares the facts before and after.
func TestJudgingIsPure(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for _, c := range policytest.Load(t, "testdata") {
		first := evaluate(t, c.Review(t))
		r, untouched := c.Review(t), c.Review(t)
		for range 20 {
			shuffleFacts(random, &r.Cluster)
			untouched.Cluster = copyCluster(&r.Cluster)
			list := policies.All()
			random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			again, err := policies.Evaluate(list, r)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(again, first) {
				t.Fatalf("%s: another order gives another decision\n one: %+v\n two: %+v", c.Name, first, again)
			}
			if !reflect.DeepEqual(r, untouched) {
				t.Fatalf("%s: judging changed the facts", c.Name)
			}
		}
	}
}

func shuffleFacts(random *rand.Rand, c *facts.Cluster) {
	shuffle(random, c.Guards)
	shuffle(random, c.ControlPlanes)
	for _, ns := range c.Namespaces {
		shuffle(random, ns.PeerAuthentications)
	}
}

func shuffle[T any](random *rand.Rand, list []T) {
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

// copyCluster copies all that judging could write to.
func copyCluster(c *facts.Cluster) facts.Cluster {
	out := *c
	out.Guards = slices.Clone(c.Guards)
	out.ControlPlanes = slices.Clone(c.ControlPlanes)
	out.Namespaces = map[string]*facts.Namespace{}
	for name, ns := range c.Namespaces {
		one := *ns
		one.PeerAuthentications = nil
		for _, p := range ns.PeerAuthentications {
			q := *p
			one.PeerAuthentications = append(one.PeerAuthentications, &q)
		}
		if ns.PeerAuthentications != nil && one.PeerAuthentications == nil {
			one.PeerAuthentications = []*mesh.PeerAuthentication{}
		}
		out.Namespaces[name] = &one
	}
	return out
}

// TestVariants judges what the files of cases cannot say. What cannot be judged is
// never a pass, and no panic either.
func TestVariants(t *testing.T) {
	t.Parallel()
	for _, c := range policytest.Load(t, "testdata") {
		for _, v := range c.Variants(t) {
			d, err := policies.Evaluate(policies.All(), v.Review)
			switch {
			case errors.Is(err, policies.ErrPanic), v.Fails != (err != nil):
				t.Errorf("%s: error %v; must be an error: %t", v.Name, err, v.Fails)
			case v.Want != "" && d.Outcome != v.Want:
				t.Errorf("%s: %s; must be %s", v.Name, d.Outcome, v.Want)
			}
		}
	}
}
