package verify

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestStepsThatMayHold compares what a view finds by its index with what follows from the steps one by one, also where the
// clock went back between them.
func TestStepsThatMayHold(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		v := view{log: "meshvakt-0", steps: []step{{standing: standing{guarded: true}}}}
		for i := range random.IntN(12) {
			from := int64(i*5 + random.IntN(30) - 15)
			v.steps = append(v.steps, step{from: from, certain: from + int64(random.IntN(10)), standing: standing{guarded: true, inputs: inputs{n: uint64(i + 1)}}})
		}
		v.index()
		for x := int64(-20); x < 90; x++ {
			var want []standing
			for i, s := range v.steps {
				if (i == 0 || s.from <= x) && (i+1 == len(v.steps) || v.steps[i+1].certain > x) {
					want = append(want, s.standing)
				}
			}
			if got := v.at(x); !slices.Equal(got, want) {
				t.Fatalf("at %d: %+v; must be %+v of %+v", x, got, want, v.steps)
			}
		}
	}
}

// TestANamespaceThatNeverRests: in a quarter with a job a minute that runs outside of the mesh, a namespace changes
// hundreds of thousands of times. What is looked at for each of them must not be all of them.
func TestANamespaceThatNeverRests(t *testing.T) {
	const n = 20_000
	v := view{span: span{0, n * 30}, log: "meshvakt-0", steps: []step{{}}}
	for i := range int64(n) {
		v.steps = append(v.steps, step{from: i * 30, certain: i*30 + 1, standing: standing{guarded: true, least: "STRICT", outside: i%2 == 0}})
	}
	s := scene{span: v.span, views: []view{v}}
	list, _ := s.intervals()
	if len(list) != 2*n { // each change, and the time in which it came
		t.Errorf("%d intervals; must be %d", len(list), 2*n)
	}
	for x := range int64(n * 30) {
		if first, behind := s.views[0].near(x, x); behind-first > 2 {
			t.Fatalf("at %d, steps %d to %d are looked at", x, first, behind)
		}
	}
}
