package conformance

import (
	"flag"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

var (
	seedFlag  = flag.Uint64("seed", envSeed(), "seed of the random cases; 0: from the clock; also MESHVAKT_SEED")
	casesFlag = flag.Int("cases", 0, "number of random cases; 0: the default of each test")
)

func envSeed() uint64 {
	seed, _ := strconv.ParseUint(os.Getenv("MESHVAKT_SEED"), 10, 64)
	return seed
}

// seed announces the seed, so that a failure can be replayed.
func seed(t *testing.T) uint64 {
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test . -run '^%s$' -seed %d", t.Name(), s)
	return s
}

func cases(standard int) int {
	if *casesFlag > 0 {
		return *casesFlag
	}
	if testing.Short() {
		return standard / 20
	}
	return standard
}

// mismatch resolves the case both ways and describes the difference, if any.
func mismatch(t *testing.T, i *istio, tc testCase) string {
	got, err := ours(tc, mesh.ControlPlane.Reads)
	if err != nil {
		t.Fatal(err)
	}
	want, err := i.answers(tc)
	if err != nil {
		t.Fatal(err)
	}
	return differ(tc, got, want)
}

// Every mode of every port of every workload is the one Istio computes.
func TestSidecarDifferential(t *testing.T) {
	n, s := cases(120_000), seed(t)
	i := newIstio(t)
	begin := time.Now()
	var seen [4]int
	portsDiffer, read, all := 0, 0, 0
	for c := range n {
		tc := randomCase(sequence(s, c), 8)
		if d := mismatch(t, i, tc); d != "" {
			tc = shrink(tc, func(smaller testCase) bool { return mismatch(t, i, smaller) != "" })
			t.Fatalf("case %d of seed %d: %s\n%s", c, s, mismatch(t, i, tc), tc)
		}
		all += len(tc.policies)
		read += len(i.store.policies)
		answers, _ := ours(tc, mesh.ControlPlane.Reads)
		for _, a := range answers {
			seen[a[0]]++
			if a != (answer{a[0], a[0], a[0], a[0], a[0]}) {
				portsDiffer++
			}
		}
	}
	t.Logf("%d cases in %v; %d of %d policies read; workloads DISABLE %d, PERMISSIVE %d, STRICT %d, with port overrides %d",
		n, time.Since(begin).Round(time.Millisecond), read, all, seen[mesh.ModeDisable], seen[mesh.ModePermissive], seen[mesh.ModeStrict], portsDiffer)
	for _, m := range []mesh.Mode{mesh.ModeDisable, mesh.ModePermissive, mesh.ModeStrict} {
		if seen[m] < n/10 {
			t.Errorf("only %d workloads are %v: the generator is too tame", seen[m], m)
		}
	}
	if portsDiffer < n/10 {
		t.Errorf("only %d workloads have port overrides", portsDiffer)
	}
}
