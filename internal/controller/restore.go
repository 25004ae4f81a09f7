package controller

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

const (
	// lookAgain is how long a restoration is given to be seen by the caches.
	lookAgain = time.Second
	// obstacleEvery is how often it is tried again where something is in the way.
	obstacleEvery = 5 * time.Minute
)

// Outcomes of a restoration, as they are counted.
const (
	outcomeRestored   = "restored"
	outcomeImpossible = "impossible"
	outcomeFailed     = "failed"
)

// RestoreRecorder counts restorations.
type RestoreRecorder interface {
	// Remediated tells what came of an attempt: restored, impossible or failed.
	Remediated(outcome string)
}

// Restorer watches over the namespaces that are STRICT. One that ceases to be has a gap,
// which is told of with its bounds when it ends; and it is made STRICT again if its
// guard says so. What it must know to tell such a namespace from one that never was
// STRICT is in a Memory, and so outlives the leader: a gap is written down before
// anything is done about it.
type Restorer struct {
	Client   client.Client
	Source   *cluster.Source
	Memory   *Memory
	Events   events.EventRecorder
	Recorder RestoreRecorder
	// Remedies is told of each attempt; nil where nobody wants to know.
	Remedies RemedyLog
	Log      *slog.Logger
	Now      func() time.Time
}

// AddRestorer adds the controller of the restorations, and what keeps its memory.
func AddRestorer(m manager.Manager, s *cluster.Source, r *Restorer) error {
	c, err := controller.New("restore", m, controller.Options{Reconciler: r, MaxConcurrentReconciles: 4})
	if err != nil {
		return fmt.Errorf("create the restore controller: %w", err)
	}
	if err := c.Watch(feed(s, func(namespace string, q queue) {
		each(s, namespace, func(name string) { q.Add(request(name)) })
	})); err != nil {
		return fmt.Errorf("feed the restore controller: %w", err)
	}
	return m.Add(r.Memory)
}

// Reconcile looks at the namespace named by the request.
func (r *Restorer) Reconcile(ctx context.Context, q reconcile.Request) (reconcile.Result, error) {
	name := q.Name
	cached, err := r.Source.Cached(name)
	if err != nil {
		return reconcile.Result{RequeueAfter: retryAfter}, nil //nolint:nilerr // caches that are not filled yet are waited for
	}
	if err := r.Memory.load(ctx); err != nil {
		return reconcile.Result{}, err
	}
	now := r.Now()
	demanded, _ := policies.Demanded(&cached, name)
	if !demanded {
		r.Memory.forget(name)
		return reconcile.Result{}, nil
	}
	if policies.Open(&cached, name, now, false) == "" {
		r.closed(ctx, name, policies.Strict(&cached, name), now)
		return reconcile.Result{RequeueAfter: untilExceptionEnds(&cached, name, now)}, nil
	}
	if !r.Memory.wasStrict(name) {
		return reconcile.Result{}, nil // it is on its way, or was there before its guard
	}
	// The cache may be behind a policy that somebody has just created.
	live, err := r.Source.ReadLive(ctx, &facts.Review{Kind: corev1.SchemeGroupVersion.WithKind("Pod"), Namespace: name})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read namespace %q: %w", name, err)
	}
	why := policies.Open(&live, name, now, false)
	if demanded, _ := policies.Demanded(&live, name); !demanded || why == "" {
		return reconcile.Result{RequeueAfter: lookAgain}, nil
	}
	if err := r.lost(ctx, name, why, now); err != nil {
		return reconcile.Result{}, err
	}
	return r.restore(ctx, &live, name, now)
}

// untilExceptionEnds is how long the namespace can stand as it does by the clock alone.
func untilExceptionEnds(c *facts.Cluster, name string, now time.Time) time.Duration {
	var first time.Duration
	for _, e := range c.Namespaces[name].Exceptions {
		if left := e.Spec.ExpiresAt.Sub(now); left > 0 && (first == 0 || left < first) {
			first = left
		}
	}
	return first
}

// closed notes that a namespace is as it must be, and tells of the gap that ends by it. One
// that is so by an exception alone has not been STRICT.
func (r *Restorer) closed(ctx context.Context, name string, strict bool, now time.Time) {
	if strict {
		r.Memory.noteStrict(name)
	}
	gap, ended := r.Memory.closeGap(name)
	if !ended {
		return
	}
	r.Log.WarnContext(ctx, "a guarded namespace took plaintext", "namespace", name, "after", gap.After.UTC(), "found", gap.Found.UTC(), "until", now.UTC(), "strict", strict)
	goesOn := ""
	if !strict {
		goesOn = ", and takes it from then on by a GuardException"
	}
	r.Events.Eventf(namespaceReference(name), nil, corev1.EventTypeWarning, "StrictGap", "Observe",
		"the namespace took plaintext from some moment after %s, found at %s, until %s%s", moment(gap.After), moment(gap.Found), moment(now), goesOn)
}

// moment is a time as events state it.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// lost takes down that a namespace is not STRICT any more, before anything is done.
func (r *Restorer) lost(ctx context.Context, name, why string, now time.Time) error {
	gap, news := r.Memory.openGap(name, now)
	if !news {
		return nil
	}
	if r.Memory.urgent(now) {
		if err := r.Memory.save(ctx); err != nil {
			return err
		}
	}
	r.Memory.noted(name)
	r.Log.WarnContext(ctx, "a guarded namespace is not STRICT any more", "namespace", name, "after", gap.After.UTC(), "found", gap.Found.UTC(), "cause", why)
	r.Events.Eventf(namespaceReference(name), nil, corev1.EventTypeWarning, "StrictLost", "Observe", "%s", shortened("the namespace was STRICT and is not any more: "+why))
	return nil
}

// restore makes the namespace STRICT again, if a guard says so and nobody has undone that
// too often.
func (r *Restorer) restore(ctx context.Context, live *facts.Cluster, name string, now time.Time) (reconcile.Result, error) {
	if policies.Open(live, name, now, true) == "" {
		return reconcile.Result{}, nil // nobody wants it restored
	}
	if wait := r.Memory.wait(name, now); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	repairs, obstacle := policies.Repairs(live, name, now)
	if obstacle != "" {
		if r.Memory.tell(name) {
			r.Recorder.Remediated(outcomeImpossible)
			r.remedied(asNamespace(live.Namespaces[name]), RemedyGivenUp)
			r.Log.ErrorContext(ctx, "cannot make a namespace STRICT again", "namespace", name, "cause", obstacle)
			r.Events.Eventf(namespaceReference(name), nil, corev1.EventTypeWarning, "StrictNotRestored", "Restore",
				"%s", shortened("Meshvakt changes policies of this namespace alone, and none that it could makes it STRICT: "+obstacle))
		}
		return reconcile.Result{RequeueAfter: obstacleEvery}, nil
	}
	for _, repair := range repairs {
		if err := r.apply(ctx, &repair); err != nil {
			r.Recorder.Remediated(outcomeFailed)
			r.remedied(strictPolicy(repair.New.Namespace, repair.New.Name), RemedyFailed)
			return reconcile.Result{}, err
		}
	}
	r.Memory.tried(name, now) // and not what failed, which nobody has undone
	r.Recorder.Remediated(outcomeRestored)
	return reconcile.Result{RequeueAfter: lookAgain}, nil
}

func namespaceReference(name string) *corev1.ObjectReference {
	return objectReference(name, scan.Object{Kind: corev1.SchemeGroupVersion.WithKind("Namespace"), Name: name})
}

// Undone names the namespaces of a guard in which somebody undoes what is restored.
func (r *Restorer) Undone(guard string) []string {
	state, err := r.Source.Snapshot()
	if err != nil {
		return nil
	}
	at := slices.IndexFunc(state.Guards, func(g facts.Guard) bool { return g.Name == guard })
	if at < 0 {
		return nil
	}
	return slices.DeleteFunc(r.Memory.undone(), func(name string) bool {
		ns := state.Namespaces[name]
		return ns == nil || !state.Selects(&state.Guards[at], name, ns.Labels)
	})
}

// memoryName is the ConfigMap that holds the Memory.
const memoryName = "meshvakt-standing"

// The pace of the memory.
const (
	saveEvery    = 5 * time.Second // at most, for what can wait
	confirmEvery = time.Minute     // at least
	// heardOf is how long ago something must have happened for it to have been heard of
	// and looked at by now.
	heardOf = 5 * time.Second
)

// Memory keeps a scan.Record in a ConfigMap. Only the leader has one.
type Memory struct {
	Client    client.Client
	Live      client.Reader // the cache holds no ConfigMaps but Istio's
	Namespace string
	// Healthy returns nil while the caches are known to be up to date, so that every
	// namespace in the record whose loss nobody has told of is STRICT.
	Healthy func() error
	Log     *slog.Logger
	Now     func() time.Time

	mu        sync.Mutex
	record    *scan.Record    // guarded by mu; nil until it is read
	changed   bool            // guarded by mu; since it was written
	fresh     map[string]bool // guarded by mu; gaps that have yet to be written down, and told of
	saved     time.Time       // guarded by mu
	confirmed time.Time       // guarded by mu
	writing   sync.Mutex      // held while it is written
}

// Start writes what can wait, until ctx ends.
func (m *Memory) Start(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if !m.due() {
			continue
		}
		if err := m.save(ctx); err != nil {
			m.Log.WarnContext(ctx, "cannot write down which namespaces are STRICT", "error", err)
		}
	}
}

// due notes until when what is known holds, and reports whether it is time to write.
func (m *Memory) due() bool {
	now := m.Now()
	healthy := m.Healthy() == nil
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.record == nil {
		return false
	}
	if healthy {
		m.confirmed = later(m.confirmed, now.Add(-heardOf))
	}
	m.changed = m.record.Prune(now) || m.changed
	age := now.Sub(m.saved)
	return m.changed && age >= saveEvery || age >= confirmEvery
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// load reads the record, once.
func (m *Memory) load(ctx context.Context) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	known := m.record != nil
	m.mu.Unlock()
	if known {
		return nil
	}
	cm, err := m.read(ctx)
	if err != nil {
		return err
	}
	record, err := scan.ParseRecord(cm.Data["record"])
	if err != nil {
		// Somebody has written there. What was known is lost, which is worse than to go on.
		m.Log.ErrorContext(ctx, "begins anew with what it knows of STRICT namespaces", "error", err)
		record, _ = scan.ParseRecord("")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.record, m.confirmed = record, record.Confirmed
	return nil
}

func (m *Memory) read(ctx context.Context) (*corev1.ConfigMap, error) {
	cm := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: m.Namespace, Name: memoryName}
	if err := m.Live.Get(ctx, key, cm); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("get ConfigMap %s: %w", key, err)
	}
	return cm, nil
}

// save writes the record. There is one writer, so what else is there is overwritten.
func (m *Memory) save(ctx context.Context) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	m.record.Confirmed = m.confirmed
	text, err := m.record.Encode()
	m.changed = false
	m.mu.Unlock()
	if err == nil {
		err = m.write(ctx, text)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saved = m.Now()
	m.changed = m.changed || err != nil
	return err
}

func (m *Memory) write(ctx context.Context, text string) error {
	cm, err := m.read(ctx)
	if err != nil {
		return err
	}
	there := cm.ResourceVersion != ""
	cm.Namespace, cm.Name = m.Namespace, memoryName
	cm.Labels = map[string]string{"app.kubernetes.io/managed-by": "meshvakt"}
	cm.Data = map[string]string{"record": text}
	if there {
		err = m.Client.Update(ctx, cm, FieldOwner)
	} else {
		err = m.Client.Create(ctx, cm, FieldOwner)
	}
	if err != nil {
		return fmt.Errorf("write ConfigMap %s/%s: %w", m.Namespace, memoryName, err)
	}
	return nil
}

func (m *Memory) noteStrict(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changed = m.record.NoteStrict(name) || m.changed
}

func (m *Memory) wasStrict(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.WasStrict(name)
}

func (m *Memory) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.fresh, name)
	m.changed = m.record.Forget(name) || m.changed
}

// openGap returns the gap of the namespace, and whether it is news, which it stays until
// it is noted: where it cannot be written down, it is found again.
func (m *Memory) openGap(name string, now time.Time) (scan.Gap, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.record.OpenGap(name, scan.Gap{After: m.confirmed, Found: now}) {
		if m.fresh == nil {
			m.fresh = map[string]bool{}
		}
		m.fresh[name] = true
	}
	return m.record.Gaps[name], m.fresh[name]
}

// noted notes that a gap is written down, or is about to be.
func (m *Memory) noted(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.fresh, name)
}

// urgent reports whether what has changed is to be written at once: unless so much has
// that others are about to write it.
func (m *Memory) urgent(now time.Time) bool {
	const few = 10
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.record.Gaps) <= few || now.Sub(m.saved) >= time.Second
}

func (m *Memory) closeGap(name string) (scan.Gap, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	gap, open := m.record.Gaps[name]
	delete(m.record.Gaps, name)
	delete(m.fresh, name)
	m.changed = m.changed || open
	return gap, open
}

// tell reports whether it has yet to be told that nothing can be done about the gap.
func (m *Memory) tell(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	gap, open := m.record.Gaps[name]
	if !open || gap.Told {
		return false
	}
	gap.Told, m.changed = true, true
	m.record.Gaps[name] = gap
	return true
}

func (m *Memory) wait(name string, now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Wait(name, now)
}

func (m *Memory) tried(name string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.record.Tried(name, now)
	m.changed = true
}

func (m *Memory) undone() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.record == nil {
		return nil
	}
	return m.record.Undone()
}
