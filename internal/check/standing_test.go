package check_test

import (
	"slices"
	"testing"

	"github.com/meshvakt/meshvakt/internal/check"
)

// Every object that is judged when it is created stands in the state that holds all
// others, and no policy in the one that holds itself.
func TestStanding(t *testing.T) {
	docs, err := check.Parse("test", []byte(guardedProd+policy("strict", "STRICT", "")+policy("open", "PERMISSIVE", "")+`---
apiVersion: v1
kind: ConfigMap
metadata: {name: of-an-application, namespace: prod}
`))
	if err != nil {
		t.Fatal(err)
	}
	state, err := check.NewState(docs)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r, err := range state.Standing() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Kind.Kind+" "+r.Name)
		if r.Kind.Kind != "PeerAuthentication" {
			continue
		}
		for _, p := range r.Cluster.Namespaces["prod"].PeerAuthentications {
			if p.Name == r.Name {
				t.Errorf("PeerAuthentication %s is there before it is created", p.Name)
			}
		}
		if n := len(r.Cluster.Namespaces["prod"].PeerAuthentications); n != 1 {
			t.Errorf("%s meets %d policies; want the other one", r.Name, n)
		}
	}
	slices.Sort(got)
	if want := []string{"Namespace prod", "PeerAuthentication open", "PeerAuthentication strict"}; !slices.Equal(got, want) {
		t.Errorf("standing %q; want %q", got, want)
	}
	if n := len(state.Facts().Namespaces["prod"].PeerAuthentications); n != 2 {
		t.Errorf("the state is left with %d policies", n)
	}
	if !state.Facts().Guarded("prod", state.Facts().Namespaces["prod"].Labels) {
		t.Error("prod is not guarded")
	}
	state.RunsIn("prod")
	if state.Facts().Guarded("prod", state.Facts().Namespaces["prod"].Labels) {
		t.Error("the namespace that Meshvakt runs in is guarded")
	}
}
