package journal

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// keeper is a cluster whose API server can be out of reach.
type keeper struct {
	mu    sync.Mutex
	err   error
	calls int
	// failAt is the number of the call that fails, 0 for none.
	failAt int
	// lost makes other keys than before.
	lost bool
}

func (k *keeper) ask() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	if k.calls == k.failAt {
		return errors.New("connection refused")
	}
	return k.err
}

func (k *keeper) Cluster(context.Context) (string, error) { return "cluster-uid", k.ask() }

func (k *keeper) Key(_ context.Context, p volume.Period) (record.Key, error) {
	err := k.ask()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lost {
		p += " anew"
	}
	return record.Key(record.HashOf([]byte(p))), err
}

func (k *keeper) User(context.Context) (string, error) {
	return "system:serviceaccount:meshvakt-system:meshvakt", nil
}

// clock is set by the test.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) set(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	c.now = t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// replica is one volume, on which processes live one after the other.
type replica struct {
	dir    volume.Dir
	keeper *keeper
	clock  *clock
	start  time.Time
	log    *bytes.Buffer
	edit   func(*Config)
}

func newReplica(dir string) *replica {
	r := &replica{dir: volume.Dir(dir), keeper: &keeper{}, clock: &clock{}, log: &bytes.Buffer{}}
	r.clock.set("2026-11-26T12:00:00Z")
	r.start = r.clock.Now()
	return r
}

func (r *replica) journal(t *testing.T) *Journal {
	t.Helper()
	c := Config{
		Dir: r.dir, Name: "evidence.example.org", Replica: "meshvakt-0", Keeper: r.keeper,
		Boot:       record.Boot{Pod: "pod-uid", Node: "node-a", Version: "v0.2.0", BeatSeconds: 60},
		BreakGlass: []string{"breakers"},
		Spool:      spool.Options{SegmentSize: 64 << 10, ReserveSize: 64 << 10, Retry: 5 * time.Millisecond, Budget: time.Minute},
		Now:        r.clock.Now, Since: func() time.Duration { return max(r.clock.Now().Sub(r.start), 0) }, Random: rand.Reader,
		Log: slog.New(slog.NewTextHandler(r.log, nil)),
	}
	if r.edit != nil {
		r.edit(&c)
	}
	j, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// opened is a journal whose log is open.
func (r *replica) opened(t *testing.T) *Journal {
	t.Helper()
	j := r.journal(t)
	j.Tend(t.Context())
	if err := j.health(); err != nil {
		t.Fatalf("the log is not open: %v", err)
	}
	return j
}

func (r *replica) stop(t *testing.T, j *Journal) {
	t.Helper()
	if err := j.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// die leaves the volume as a process does that is killed.
func die(t *testing.T, j *Journal) {
	t.Helper()
	if err := j.open.log.spool.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// records reads the whole log as a verifier does: each shard is a chain that holds.
func (r *replica) records(t *testing.T) []record.Record {
	t.Helper()
	reader, err := spool.OpenReader(r.dir.Spool(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var list []record.Record
	var chain record.Chain
	for line, err := range reader.Lines() {
		if err != nil {
			t.Fatal(err)
		}
		if parsed, err := record.Parse(line.Text); err == nil && parsed.Body.Kind() == record.KindGenesis {
			if len(list) > 0 && !chain.Closed() {
				t.Fatalf("line %d begins a shard, and the one before is not closed", line.Seq)
			}
			g := parsed.Body.(*record.Genesis)
			if len(list) > 0 && (g.PrevSize != chain.Size() || parsed.Prev != chain.Last()) {
				t.Fatalf("line %d begins a shard after %d records; there are %d", line.Seq, g.PrevSize, chain.Size())
			}
			chain = record.Begin(parsed.Prev)
		}
		rec, next, err := chain.Follow(line.Text)
		if err != nil {
			t.Fatalf("line %d: %v\n%s", line.Seq, err, line.Text)
		}
		list, chain = append(list, rec), next
	}
	return list
}

func kinds(list []record.Record) string {
	var words []string
	for _, r := range list {
		words = append(words, string(r.Body.Kind()))
	}
	return strings.Join(words, " ")
}

func all[T record.Body](list []record.Record) []T {
	var found []T
	for _, r := range list {
		if b, is := r.Body.(T); is {
			found = append(found, b)
		}
	}
	return found
}

// review is a request of kind by a user of groups.
func review(kind schema.GroupVersionKind, name string, groups ...string) *facts.Review {
	return &facts.Review{
		UID: "request-" + name, Operation: admissionv1.Create, Kind: kind, Namespace: "payments", Name: name,
		User:    authenticationv1.UserInfo{Username: "ola@example.org", Groups: append(groups, "system:authenticated")},
		Cluster: guarded(),
	}
}

// guarded is a cluster whose guard selects namespace payments.
func guarded() facts.Cluster {
	g, err := facts.NewGuard(&v1alpha1.MeshGuard{
		ObjectMeta: metav1.ObjectMeta{Name: "production"},
		Spec: v1alpha1.MeshGuardSpec{
			NamespaceSelector: metav1.LabelSelector{MatchLabels: map[string]string{"meshvakt.io/guarded": "true"}},
			StrictMTLS:        &v1alpha1.StrictMTLS{},
		},
	})
	if err != nil {
		panic(err)
	}
	return facts.Cluster{
		Guards: []facts.Guard{g},
		Namespaces: map[string]*facts.Namespace{
			"payments": {Name: "payments", Labels: map[string]string{"meshvakt.io/guarded": "true"}},
			"sandbox":  {Name: "sandbox"},
		},
		ControlPlanes: []mesh.ControlPlane{mesh.DefaultControlPlane()},
	}
}

func pod(name, owner string) *facts.Review {
	yes := true
	r := review(schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, name)
	r.Object = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: "payments", Labels: map[string]string{"pod-template-hash": "abc"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: owner, Controller: &yes}},
	}}
	return r
}

func peerAuthentication(name string, groups ...string) *facts.Review {
	return review(schema.GroupVersionKind{Group: "security.istio.io", Version: "v1", Kind: "PeerAuthentication"}, name, groups...)
}

func allow() policies.Decision { return policies.Decision{Outcome: policies.Allow} }

func deny() policies.Decision {
	return policies.Decision{Outcome: policies.Deny, Findings: []policies.Ruling{
		{Finding: policies.Finding{Reason: policies.Reason{Code: "MV103"}}, Action: "Deny"},
		{Finding: policies.Finding{Reason: policies.Reason{Code: "MV103"}}, Action: "Deny"},
		{Finding: policies.Finding{Reason: policies.Reason{Code: "MV104"}}, Action: "Audit"},
	}}
}

func excepted() policies.Decision {
	return policies.Decision{Outcome: policies.Warn, Findings: []policies.Ruling{{
		Finding: policies.Finding{Reason: policies.Reason{Code: "MV201"}}, Action: policies.Excepted,
		Exception: &facts.Exception{Namespace: "payments", Name: "legacy", UID: "exception-uid"},
	}}}
}

func TestALife(t *testing.T) {
	r := newReplica(t.TempDir())
	j := r.opened(t)
	receipt, err := j.Decided(t.Context(), peerAuthentication("default", "platform"), deny(), 3*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if got, err := j.Decided(t.Context(), pod(fmt.Sprint("web-", i), "web"), allow(), time.Millisecond); got != Counted || err != nil {
			t.Fatalf("a pod that is let in: %q, %v; must be counted", got, err)
		}
	}
	j.Failed(t.Context(), pod("x", "web"), time.Millisecond)
	r.stop(t, j)
	j = r.opened(t)
	r.stop(t, j)

	list := r.records(t)
	if got, want := kinds(list), "genesis boot key.created decision decision admitted stop boot stop"; got != want {
		t.Fatalf("records are %s; must be %s", got, want)
	}
	d := all[*record.Decision](list)[0]
	if d.Verdict != "deny" || d.By.Kind != record.User || strings.Contains(fmt.Sprintf("%+v", d), "ola") || d.Micros != 3000 ||
		d.RulesN != 3 || len(d.Rules) != 2 || d.Rules[0] != (record.Rule{Code: "MV103", Action: "deny", N: 2}) ||
		d.GroupsN != 2 || !slices.Contains(d.Groups, "system:authenticated") {
		t.Errorf("the denial is recorded as %+v", d)
	}
	if hash := list[4].Prev; receipt != fmt.Sprintf("evidence.example.org/cluster-uid/meshvakt-0/2026q4#3 %s", hash) {
		t.Errorf("the receipt is %q; must name origin, record 3 and its hash %s", receipt, hash)
	}
	if a := all[*record.Admitted](list)[0]; a.N != 5 || a.OwnerGVK != "apps/v1/ReplicaSet" || a.Owner == "" || a.Template == "" {
		t.Errorf("what was let in is recorded as %+v", a)
	}
	if c := all[*record.Stop](list)[0].Counts; c != (record.Counters{In: 7, Written: 2, Admitted: 5}) {
		t.Errorf("the counts at the stop are %+v", c)
	}
	if b := all[*record.Boot](list); b[0].Why != "start" || b[1].Why != "start" || list[0].Boot == list[7].Boot {
		t.Errorf("the boots are %+v", b)
	}
}

func TestAfterACrash(t *testing.T) {
	r := newReplica(t.TempDir())
	j := r.opened(t)
	if _, err := j.Decided(t.Context(), peerAuthentication("a"), deny(), 0); err != nil {
		t.Fatal(err)
	}
	crashed := r.clock.Now()
	die(t, j)
	r.clock.add(time.Hour)
	r.stop(t, r.opened(t))
	list := r.records(t)
	if got, want := kinds(list), "genesis boot key.created decision boot gap stop"; got != want {
		t.Fatalf("records are %s; must be %s", got, want)
	}
	if g := all[*record.Gap](list)[0]; g.Cause != "crash" || g.Exact || !g.From.Equal(crashed) || !g.To.Equal(r.clock.Now()) {
		t.Errorf("the crash is told as %+v", g)
	}
}

func TestShardsFollowTheClockAndTheirSize(t *testing.T) {
	r := newReplica(t.TempDir())
	r.edit = func(c *Config) { c.MaxRecords = 12 }
	r.clock.set("2026-12-31T23:59:59Z")
	j := r.opened(t)
	write := func(n int) {
		for i := range n {
			if _, err := j.Decided(t.Context(), peerAuthentication(fmt.Sprint(i)), deny(), 0); err != nil {
				t.Fatal(err)
			}
		}
		j.Tend(t.Context())
	}
	write(2)
	if _, err := j.Decided(t.Context(), pod("web-1", "web"), allow(), 0); err != nil {
		t.Fatal(err)
	}
	r.clock.set("2027-01-01T00:00:00Z")
	write(2)
	r.clock.set("2026-12-31T23:00:00Z") // set back: the shard stays
	write(7)
	write(1)
	r.stop(t, j)
	// Another process, behind the clock.
	j = r.opened(t)
	r.stop(t, j)

	var shards []string
	for i, g := range all[*record.Genesis](r.records(t)) {
		shards = append(shards, g.Shard)
		if key, err := r.dir.LogKey(g.Shard, g.Origin, rand.Reader); err != nil || key.Verifier != g.Keys[0] {
			t.Errorf("shard %d is signed by %v, %v; its genesis has %v", i, key.Verifier, err, g.Keys)
		}
	}
	if got := strings.Join(shards, " "); got != "2026q4 2027q1 2027q1-2" {
		t.Errorf("shards are %s", got)
	}
	closed := all[*record.Close](r.records(t))
	if len(closed) != 2 || closed[0].Why != "period" || closed[1].Why != "size" || !strings.HasSuffix(closed[1].Next, "/2027q1-2") {
		t.Errorf("the closes are %+v", closed)
	}
	list := r.records(t)
	at := slices.IndexFunc(list, func(r record.Record) bool { return r.Body.Kind() == record.KindClose })
	if before := kinds(list[:at]); !strings.Contains(before, "admitted") || !strings.HasSuffix(before, "key.created") {
		t.Errorf("before the first close: %s; must have what was counted, and the next key at its end", before)
	}
}

// However far an attempt to open or to change the shard has come, the next one goes on from there.
func TestOpeningGoesOnWhereItStopped(t *testing.T) {
	for failAt := 1; ; failAt++ {
		r := newReplica(t.TempDir())
		j := r.opened(t)
		if _, err := j.Decided(t.Context(), peerAuthentication("a"), deny(), 0); err != nil {
			t.Fatal(err)
		}
		r.keeper.failAt = r.keeper.calls + failAt
		r.clock.set("2027-01-01T00:00:00Z")
		j.Tend(t.Context())
		j.Tend(t.Context())
		if err := j.health(); err != nil {
			t.Fatalf("call %d to the API server fails once: %v", failAt, err)
		}
		r.stop(t, j)
		r.keeper.failAt = r.keeper.calls + failAt
		j = r.journal(t)
		j.Tend(t.Context())
		j.Tend(t.Context())
		r.stop(t, j)
		if got := len(all[*record.Genesis](r.records(t))); got != 2 {
			t.Errorf("call %d: %d shards; must be 2: %s", failAt, got, kinds(r.records(t)))
		}
		if r.keeper.calls < r.keeper.failAt {
			return
		}
	}
}

func TestAVolumeOfAnotherNameGoesOnInAShardOfItsOwn(t *testing.T) {
	r := newReplica(t.TempDir())
	r.stop(t, r.opened(t))
	r.edit = func(c *Config) { c.Name = "other.example.org" }
	r.stop(t, r.opened(t))
	g, c := all[*record.Genesis](r.records(t)), all[*record.Close](r.records(t))
	if len(g) != 2 || len(c) != 1 || c[0].Why != "moved" || g[1].Origin != "other.example.org/cluster-uid/meshvakt-0/2026q4-2" || g[1].PrevOrigin != g[0].Origin {
		t.Errorf("shards are %+v, closed by %+v", g, c)
	}
}

// A spool that is gone, while its logs are still there, is not begun again under the same name.
func TestALostSpoolGoesOnInAnotherShard(t *testing.T) {
	r := newReplica(t.TempDir())
	r.stop(t, r.opened(t))
	if err := os.Mkdir(r.dir.Log("2026q4"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(r.dir.Spool()); err != nil {
		t.Fatal(err)
	}
	r.stop(t, r.opened(t))
	if g := all[*record.Genesis](r.records(t)); len(g) != 1 || g[0].Shard != "2026q4-2" || g[0].PrevSize != 0 {
		t.Errorf("shards are %+v; must be 2026q4-2, with none before it", g)
	}
}

// People are told that there is no log, also when there never was one.
func TestEventsOfTheLog(t *testing.T) {
	r := newReplica(t.TempDir())
	var told []string
	r.edit = func(c *Config) { c.Event = func(_ bool, reason, _ string) { told = append(told, reason) } }
	r.keeper.err = errors.New("connection refused")
	j := r.journal(t)
	j.Tend(t.Context())
	j.Tend(t.Context())
	r.keeper.err = nil
	j.Tend(t.Context())
	r.stop(t, j)
	if want := []string{"EvidenceUnavailable", "EvidenceAvailable"}; !slices.Equal(told, want) {
		t.Errorf("told %q; must be %q", told, want)
	}
}

// A shard has one key of pseudonyms, also where somebody has deleted the Secret.
func TestAnotherKeyBeginsAnotherShard(t *testing.T) {
	r := newReplica(t.TempDir())
	r.stop(t, r.opened(t))
	r.keeper.lost = true
	j := r.opened(t)
	r.stop(t, j)
	j = r.opened(t)
	r.stop(t, j)
	g, c := all[*record.Genesis](r.records(t)), all[*record.Close](r.records(t))
	if len(g) != 2 || len(c) != 1 || c[0].Why != "key" || g[1].Shard != "2026q4-2" || g[0].Pseudonyms == g[1].Pseudonyms {
		t.Errorf("shards are %+v, closed by %+v; must be two, by their keys", g, c)
	}
}

// The spool may have released all but its end when the process starts again.
func TestResumesWhatHasBeenSealedAndReleased(t *testing.T) {
	r := newReplica(t.TempDir())
	j := r.opened(t)
	for i := range 300 {
		if _, err := j.Decided(t.Context(), peerAuthentication(fmt.Sprint(i)), deny(), 0); err != nil {
			t.Fatal(err)
		}
	}
	r.stop(t, j)
	reader, err := spool.OpenReader(r.dir.Spool(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.Release(j.size.Load()); err != nil {
		t.Fatal(err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	size := j.size.Load()
	j = r.opened(t)
	if j.Shard() != "2026q4" || j.size.Load() != size+1 {
		t.Errorf("goes on in %s with line %d; must be 2026q4 with %d", j.Shard(), j.size.Load(), size+1)
	}
	r.stop(t, j)
	if err := os.Remove(string(r.dir) + "/current"); err != nil {
		t.Fatal(err)
	}
	j = r.journal(t)
	j.Tend(t.Context())
	if err := j.health(); err == nil || !strings.Contains(err.Error(), "move the directory away") {
		t.Errorf("nothing says which shard it is, and the log is open: %v", err)
	}
}

// The API server cannot know which namespaces a guard selects at the moment, so it asks about more.
func TestWhatNoGuardSelectsLeavesNothing(t *testing.T) {
	namespace := func(name string, before, after map[string]string) *facts.Review {
		r := review(schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}, name)
		r.Namespace = ""
		r.OldObject = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: before}}
		r.Object = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: after}}
		return r
	}
	in := func(ns string, r *facts.Review) *facts.Review { r.Namespace = ns; return r }
	guarded := map[string]string{"meshvakt.io/guarded": "true"}
	for _, c := range []struct {
		name    string
		review  *facts.Review
		outcome policies.Decision
		records bool
	}{
		{"a policy of a guarded namespace", peerAuthentication("a"), allow(), true},
		{"a policy of another", in("sandbox", peerAuthentication("a")), allow(), false},
		{"a policy of another that is refused", in("sandbox", peerAuthentication("a")), deny(), true},
		{"a policy of a root namespace", in("istio-system", peerAuthentication("a")), allow(), true},
		{"a policy of a namespace that is not known", in("new", peerAuthentication("a")), allow(), true},
		{"a namespace that is not guarded", namespace("sandbox", nil, nil), allow(), false},
		{"a namespace that becomes guarded", namespace("sandbox", nil, guarded), allow(), true},
		{"a namespace that was guarded", namespace("sandbox", guarded, nil), allow(), true},
		{"a guard", in("", review(schema.GroupVersionKind{Group: v1alpha1.Group, Version: "v1alpha1", Kind: "MeshGuard"}, "production")), allow(), true},
		{"an exception", in("sandbox", review(schema.GroupVersionKind{Group: v1alpha1.Group, Version: "v1alpha1", Kind: "GuardException"}, "legacy")), allow(), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newReplica(t.TempDir())
			c.review.Cluster.Namespaces["istio-system"] = &facts.Namespace{Name: "istio-system"}
			j := r.opened(t)
			receipt, err := j.Decided(t.Context(), c.review, c.outcome, 0)
			if err != nil || (receipt != "") != c.records {
				t.Errorf("the receipt is %q, %v; must be there: %v", receipt, err, c.records)
			}
			r.stop(t, j)
			if n := len(all[*record.Decision](r.records(t))); (n == 1) != c.records {
				t.Errorf("%d records", n)
			}
		})
	}
}

// A change that is seen afterwards is found again by the digest of what was asked for.
func TestTheObjectOfADecision(t *testing.T) {
	r := newReplica(t.TempDir())
	j := r.opened(t)
	q := peerAuthentication("default")
	policy := &mesh.PeerAuthentication{Namespace: "payments", Name: "default", UID: "policy-uid", Generation: 7, Mode: mesh.ModeStrict}
	q.Object = policy
	gone := peerAuthentication("default")
	gone.Operation, gone.OldObject = admissionv1.Delete, policy
	for _, q := range []*facts.Review{q, gone} {
		if _, err := j.Decided(t.Context(), q, allow(), 0); err != nil {
			t.Fatal(err)
		}
	}
	pseudonyms := j.open.pseudonyms
	r.stop(t, j)
	text, err := canonical.Of(policy)
	if err != nil {
		t.Fatal(err)
	}
	d := all[*record.Decision](r.records(t))
	want := record.Object{
		GVK: "security.istio.io/v1/PeerAuthentication", Namespace: "payments", UID: "policy-uid", Generation: 7,
		Name: pseudonyms.Object("security.istio.io/v1/PeerAuthentication", "payments", "default"), Digest: pseudonyms.Digest(text),
	}
	if d[0].Object != want {
		t.Errorf("recorded %+v; must be %+v", d[0].Object, want)
	}
	want.Digest = ""
	if d[1].Object != want {
		t.Errorf("a deletion is recorded as %+v; must be %+v", d[1].Object, want)
	}
}

// salts are random, and fail a number of times in a row when it is said.
type salts struct{ asked, failAt, times int }

func (s *salts) Read(b []byte) (int, error) {
	s.asked++
	if s.asked >= s.failAt && s.asked < s.failAt+s.times {
		return 0, errors.New("no randomness")
	}
	return rand.Read(b)
}

// However far a start behind a crash has come when it fails, the next attempt tells of the crash, and once.
func TestACrashIsToldInWhateverAttempt(t *testing.T) {
	for failing := range 3 { // none, that of the boot, that of the gap
		r := newReplica(t.TempDir())
		die(t, r.opened(t))
		s := &salts{}
		r.edit = func(c *Config) { c.Random = s }
		j := r.journal(t)
		s.failAt, s.times = s.asked+failing, 1
		j.Tend(t.Context())
		j.Tend(t.Context())
		if err := j.health(); err != nil {
			t.Fatalf("salt %d fails once: %v", failing, err)
		}
		r.stop(t, j)
		if got, want := kinds(r.records(t)), "genesis boot key.created boot gap stop"; got != want {
			t.Errorf("salt %d fails once: records are %s; must be %s", failing, got, want)
		}
	}
}

// A stop says that all is told. Behind a gap that could not be, there is none, and the next start says that counts are
// missing.
func TestNoStopBehindAGapThatIsUntold(t *testing.T) {
	r := newReplica(t.TempDir())
	s := &salts{}
	r.edit = func(c *Config) { c.Random = s }
	j := r.opened(t)
	now := r.clock.Now()
	j.gap.note("allow", "v1/Pod", "slow", true, 3, now, now)
	s.failAt, s.times = s.asked+1, 2 // as it is flushed, and at the end
	if err := j.stop(t.Context()); err == nil {
		t.Error("the end is said to be in order")
	}
	if !strings.Contains(r.log.String(), "answers=3") {
		t.Errorf("the process does not say how many answers went unrecorded: %s", r.log)
	}
	r.stop(t, r.opened(t))
	if got, want := kinds(r.records(t)), "genesis boot key.created boot gap stop"; got != want {
		t.Errorf("records are %s; must be %s", got, want)
	}
}
