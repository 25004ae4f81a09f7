package keyring

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func TestWhichLogWasTheLast(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	ctx := context.Background()
	last := func(replica, want string) {
		t.Helper()
		if got, err := ring(c).Last(ctx, replica); got != want || err != nil {
			t.Errorf("the last log of %s is %q, %v; must be %q", replica, got, err, want)
		}
	}
	note := func(replica, shard string) {
		t.Helper()
		if err := ring(c).Note(ctx, replica, shard); err != nil {
			t.Errorf("note %s of %s: %v", shard, replica, err)
		}
	}
	last("meshvakt-0", "")
	note("meshvakt-0", "2026q4") // before there is a key
	key, err := ring(c).Key(ctx, "2026q4")
	if err != nil {
		t.Fatal(err)
	}
	last("meshvakt-0", "2026q4")
	last("meshvakt-1", "")
	for _, s := range []struct{ shard, want string }{{"2026q4-9", "2026q4-9"}, {"2026q4-10", "2026q4-10"}, {"2026q4-2", "2026q4-10"}, {"2026q3-99", "2026q4-10"}, {"2027q1", "2027q1"}, {"2026q4-11", "2027q1"}} {
		note("meshvakt-0", s.shard)
		last("meshvakt-0", s.want)
	}
	if err := ring(c).Note(ctx, "meshvakt-0", "soon"); err == nil {
		t.Error("a shard that is none is noted")
	}
	var group sync.WaitGroup
	for i := range 5 {
		group.Go(func() { note(fmt.Sprintf("meshvakt-%d", i), "2027q2") })
	}
	group.Wait()
	for i := range 5 {
		last(fmt.Sprintf("meshvakt-%d", i), "2027q2")
	}
	if again, err := ring(c).Key(ctx, "2026q4"); again != key || err != nil {
		t.Errorf("the key is another, %v", err)
	}
}
