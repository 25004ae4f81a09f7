package corpus

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"reflect"
	"slices"
	"testing"

	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/policies/policytest"
	"github.com/meshvakt/meshvakt/test/mutation/point"
)

var (
	mutants = flag.Int("mutants", 0, "how many mutants the policies hold")
	shard   = flag.Int("shard", 0, "try the mutants whose number leaves this when divided by -shards")
	shards  = flag.Int("shards", 1, "how many processes try mutants")
	result  = flag.String("result", "", "file for what killed each mutant")
)

// trial is a request, and what comes of it without a mutant.
type trial struct {
	name   string
	review *facts.Review
	want   policies.Decision
	failed bool
	// changes are what the mutating webhook would change, and changesFailed whether it
	// could not say.
	changes       []facts.Change
	changesFailed bool
	// reached are the mutants that have a say in it.
	reached []bool
}

// TestMutants tries each mutant of its share on the corpus and notes the first case
// that tells it from the policies as they are, "" when none does.
func TestMutants(t *testing.T) {
	list := trials(t)
	killers := map[int]string{}
	for n := 1; n <= *mutants; n++ {
		if n%*shards == *shard {
			killers[n] = killer(n, list)
		}
	}
	if *result == "" {
		return
	}
	data, err := json.Marshal(killers)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(*result, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// trials reads the corpus. What is wanted is what the policies decide without a
// mutant, provided that it is what want.yaml says.
func trials(t *testing.T) []trial {
	t.Helper()
	var list []trial
	for _, c := range policytest.Load(t, "../../../policies/testdata") {
		name := c.Policy + "/" + c.Name
		final, submitted := try(t, name, c.Review(t)), try(t, name+", as submitted", c.ReviewSubmitted(t))
		if got := c.Got(t, &final.want, &submitted.want); final.failed || submitted.failed || !reflect.DeepEqual(got, c.Want) {
			t.Fatalf("%s fails without any mutant", name)
		}
		list = append(list, final)
		if c.Submits(t) {
			list = append(list, submitted)
		}
		for _, v := range c.Variants(t) {
			list = append(list, try(t, v.Name, v.Review))
		}
	}
	return list
}

// try judges a request without a mutant.
func try(t *testing.T, name string, r *facts.Review) trial {
	t.Helper()
	point.Activate(0)
	reached := point.Record(*mutants)
	d, err := policies.Evaluate(policies.All(), r)
	if errors.Is(err, policies.ErrPanic) {
		t.Fatalf("%s: %v", name, err)
	}
	changes, errChanges := policies.Mutate(policies.All(), r)
	return trial{name: name, review: r, want: d, failed: err != nil, changes: changes, changesFailed: errChanges != nil, reached: reached}
}

func killer(mutant int, list []trial) string {
	point.Activate(mutant)
	defer point.Activate(0)
	all := policies.All()
	for i := range list {
		if list[i].reached[mutant] && !list[i].survives(all) {
			return list[i].name
		}
	}
	return ""
}

// survives reports whether the outcome is the one that is wanted, in all that
// want.yaml states. A panic is another.
func (c *trial) survives(all []policies.Policy) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	changes, err := policies.Mutate(all, c.review)
	if (err != nil) != c.changesFailed || errors.Is(err, policies.ErrPanic) || !reflect.DeepEqual(changes, c.changes) {
		return false
	}
	got, err := policies.Evaluate(all, c.review)
	if err != nil || c.failed {
		return c.failed && err != nil && !errors.Is(err, policies.ErrPanic)
	}
	return policytest.Verdict(&got) == policytest.Verdict(&c.want) &&
		slices.EqualFunc(got.Findings, c.want.Findings, func(a, b policies.Ruling) bool {
			return a.Finding == b.Finding && a.Policy == b.Policy && a.Action == b.Action
		})
}
