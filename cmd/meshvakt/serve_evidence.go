package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/controller"
	"github.com/meshvakt/meshvakt/internal/evidence/journal"
	"github.com/meshvakt/meshvakt/internal/evidence/keyring"
	"github.com/meshvakt/meshvakt/internal/evidence/observe"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
	"github.com/meshvakt/meshvakt/internal/keeper"
	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/internal/telemetry"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/webhook"
	"github.com/meshvakt/meshvakt/webhook/server"
)

// The modes of evidence.
const (
	evidenceBestEffort = "best-effort"
	evidenceRequired   = "required"
)

// evidenceOptions are the flags of `meshvakt serve` about evidence.
type evidenceOptions struct {
	dir        string
	name       string
	mode       string
	breakGlass []string
	secret     string
	retention  time.Duration
	beat       time.Duration
	clockError time.Duration
	clock      string
	replica    string // name of the pod
	podUID     string
	node       string
}

// unknown stands for what the environment does not say.
const unknown = "unknown"

func (o *evidenceOptions) addFlags(f *pflag.FlagSet) {
	host, _ := os.Hostname()
	f.StringVar(&o.dir, "evidence-dir", "", "directory of this replica's evidence, on a volume of its own; empty: none is kept")
	f.StringVar(&o.name, "evidence-name", "", "first part of the names of the evidence logs, such as evidence.example.org")
	f.StringVar(&o.mode, "evidence-mode", evidenceBestEffort, "what becomes of compliant workloads while no record can be written: best-effort lets them in and counts them, required refuses them")
	f.StringArrayVar(&o.breakGlass, "evidence-break-glass-group", []string{"system:masters"}, "group that may change the mesh while no record can be written; may be repeated")
	f.StringVar(&o.secret, "evidence-secret", "meshvakt-evidence", "Secret of the keys of pseudonyms, in the own namespace")
	f.DurationVar(&o.retention, "evidence-retention", 0, "how long after its quarter a key of pseudonyms is destroyed; 0: never")
	f.DurationVar(&o.beat, "evidence-beat", time.Minute, "how often a replica records that it is there and what it knows; whole seconds")
	f.DurationVar(&o.clockError, "evidence-clock-error", 0, "how wrong the clock is at most, where the kernel cannot tell and you know; recorded as your word, by which auditors may go or not; 0: nothing is said")
	f.StringVar(&o.clock, "evidence-clock-source", "", "what keeps the clock, for --evidence-clock-error, such as 'chrony on the node'")
	f.StringVar(&o.replica, "evidence-replica", cmp.Or(os.Getenv("POD_NAME"), host), "name of this replica, which stays the same when it is restarted")
	o.podUID = cmp.Or(os.Getenv("POD_UID"), unknown)
	o.node = cmp.Or(os.Getenv("NODE_NAME"), unknown)
}

func (o *evidenceOptions) check() error {
	var errs []error
	if o.mode != evidenceBestEffort && o.mode != evidenceRequired {
		errs = append(errs, fmt.Errorf("--evidence-mode: %q; must be %s or %s", o.mode, evidenceBestEffort, evidenceRequired))
	}
	if o.dir != "" && o.name == "" {
		errs = append(errs, errors.New("--evidence-dir: --evidence-name must be given"))
	}
	if o.beat < time.Second || o.beat%time.Second != 0 {
		errs = append(errs, fmt.Errorf("--evidence-beat: %s; must be whole seconds, at least 1s", o.beat))
	}
	if err := o.checkClock(); err != nil {
		errs = append(errs, err)
	}
	if o.retention < 0 {
		errs = append(errs, fmt.Errorf("--evidence-retention: %s; must not be negative", o.retention))
	}
	if o.dir != "" && o.replica == "" {
		errs = append(errs, errors.New("--evidence-replica: must be given, or POD_NAME be set"))
	}
	return errors.Join(errs...)
}

func (o *evidenceOptions) checkClock() error {
	switch {
	case (o.clockError == 0) != (o.clock == ""):
		return fmt.Errorf("--evidence-clock-error %s and --evidence-clock-source %q; must be given together, or neither", o.clockError, o.clock)
	case o.clockError < 0 || o.clockError%time.Microsecond != 0:
		return fmt.Errorf("--evidence-clock-error: %s; must be whole microseconds, at least 1µs", o.clockError)
	case o.clockError == 0:
		return nil
	}
	if err := record.Check(o.declared()); err != nil {
		return fmt.Errorf("--evidence-clock-source: %w", err)
	}
	return nil
}

// declared is what is said of the clock, nil where that is nothing.
func (o *evidenceOptions) declared() *record.ClockDeclared {
	if o.clockError == 0 {
		return nil
	}
	return &record.ClockDeclared{Source: o.clock, MaxErrorMicros: uint64(o.clockError / time.Microsecond)}
}

// newEvidence makes the journal, where evidence is kept.
func (p *process) newEvidence(context.Context) error {
	o := &p.options.evidence
	if o.dir == "" {
		return nil
	}
	boot, err := o.boot()
	if err != nil {
		return err
	}
	p.keys = keyring.New(keyring.Config{
		Live:   p.manager.GetAPIReader(),
		Client: p.manager.GetClient(),
		Secret: client.ObjectKey{Namespace: p.options.namespace, Name: o.secret},
		Labels: map[string]string{"app.kubernetes.io/managed-by": "meshvakt"},
		Random: rand.Reader,
	})
	events := p.manager.GetEventRecorder("meshvakt")
	self := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.options.namespace, Name: o.replica, UID: types.UID(o.podUID)}
	p.journal, err = journal.New(journal.Config{
		Dir:        volume.Dir(o.dir),
		Name:       o.name,
		Replica:    o.replica,
		Keeper:     p.keys,
		Book:       p.keys,
		Boot:       boot,
		Required:   o.mode == evidenceRequired,
		BreakGlass: slices.Clone(o.breakGlass),
		Now:        p.clock.now,
		Since:      p.clock.since,
		Ticker:     p.clock.ticker,
		Spool:      spool.Options{Budget: p.clock.disk},
		Random:     rand.Reader,
		Log:        p.log,
		Event: func(warning bool, reason, text string) {
			kind := corev1.EventTypeNormal
			if warning {
				kind = corev1.EventTypeWarning
			}
			events.Eventf(self, nil, kind, reason, "Recording", "%s", text)
		},
	})
	if err != nil {
		return err
	}
	return errors.Join(p.addRetainer(), p.addUses())
}

// addUses lets the leader record who has used keys of pseudonyms.
func (p *process) addUses() error {
	watching, err := client.NewWithWatch(p.config, client.Options{Scheme: p.manager.GetScheme(), Mapper: p.manager.GetRESTMapper()})
	if err != nil {
		return fmt.Errorf("create the client for uses of keys: %w", err)
	}
	o := &p.options.evidence
	return p.manager.Add(&keyring.Uses{
		Client: watching, Namespace: p.options.namespace, Secret: o.secret, Replica: o.replica, Log: p.journal, Logger: p.log, Now: p.clock.now,
	})
}

// newObserver lets this replica record what it sees of the cluster.
func (p *process) newObserver(context.Context) error {
	if p.journal == nil {
		return nil
	}
	o, m := &p.options.evidence, p.manager
	watching, err := client.NewWithWatch(p.config, client.Options{Scheme: m.GetScheme(), Mapper: m.GetRESTMapper()})
	if err != nil {
		return fmt.Errorf("create the client of the observer: %w", err)
	}
	podUID := o.podUID
	if podUID == unknown {
		podUID = ""
	}
	p.observer, err = observe.New(observe.Config{
		FailsOpen: controller.FailsOpen,
		Log:       p.journal, Source: p.source, Cache: m.GetCache(), Client: watching, Canary: p.canary,
		Namespace: p.options.namespace, Service: p.options.service, Pod: o.replica, PodUID: podUID,
		User: p.keys.User, Boot: p.journal.BootID(), Beat: o.beat, Logger: p.log, Now: p.clock.now, Since: p.clock.since, Ticker: p.clock.ticker, Clock: p.clock.quality,
		Own: p.ownWatched(), Declared: o.declared(),
	})
	if err != nil {
		return err
	}
	p.repairs.OnRepair(func(object client.Object, r keeper.Repair) {
		outcome := observe.Failed
		if r.Done {
			outcome = observe.Done
		} else if r.GivenUp {
			outcome = observe.GivenUp
		}
		p.observer.Remedied(observe.Remedy{What: observe.Own, Outcome: outcome, Object: object, At: r.At})
	})
	return m.Add(p.observer)
}

// ownWatched are the objects of the chart that can be watched: the rights to come with those to put them back.
func (p *process) ownWatched() []observe.OwnObject {
	if p.options.ownObjects == "" {
		return nil
	}
	var list []observe.OwnObject
	for _, o := range []struct {
		group, kind string
		names       []string
	}{
		{"apiextensions.k8s.io", "CustomResourceDefinition", []string{"meshguards.meshvakt.io", "guardexceptions.meshvakt.io"}},
		{"rbac.authorization.k8s.io", "ClusterRole", []string{"meshvakt", "meshvakt-spare"}},
		{"rbac.authorization.k8s.io", "ClusterRoleBinding", []string{"meshvakt", "meshvakt-spare"}},
		{"admissionregistration.k8s.io", "ValidatingAdmissionPolicy", []string{"meshvakt-mesh-membership", "meshvakt-nodes", "meshvakt-own-objects"}},
	} {
		for _, name := range o.names {
			list = append(list, observe.OwnObject{Kind: schema.GroupVersionKind{Group: o.group, Version: "v1", Kind: o.kind}, Name: name})
		}
	}
	return list
}

// remedies records what the leader does about namespaces that are not STRICT, or not any more.
type remedies struct{ observer *observe.Observer }

// Remedied implements controller.RemedyLog.
func (r remedies) Remedied(m controller.Remedy) {
	what, outcome := observe.Restored, observe.Done
	if m.Provisioned {
		what = observe.Provisioned
	}
	switch m.Outcome {
	case controller.RemedyFailed:
		outcome = observe.Failed
	case controller.RemedyGivenUp:
		outcome = observe.GivenUp
	case controller.RemedyDone:
	}
	r.observer.Remedied(observe.Remedy{What: what, Outcome: outcome, Object: m.Object, After: m.After, Found: m.Found, At: m.At})
}

// remedies is nil where no evidence is kept.
func (p *process) remedies() controller.RemedyLog {
	if p.observer == nil {
		return nil
	}
	return remedies{p.observer}
}

// relied records what the scan has found standing by exceptions.
func (p *process) relied(namespace string, now *scan.Standing) {
	switch {
	case p.observer == nil:
	case now == nil:
		p.observer.Relied(namespace, time.Time{}, nil)
	default:
		p.observer.Relied(namespace, now.Began, now.Relied)
	}
}

// addRetainer lets the leader destroy keys at the end of retention, and record that one is gone.
func (p *process) addRetainer() error {
	o := &p.options.evidence
	return p.manager.Add(&keyring.Retainer{
		Keys: p.keys,
		Log:  p.journal,
		Origin: func(ctx context.Context, period volume.Period) (string, error) {
			cluster, err := p.keys.Cluster(ctx)
			return volume.Origin(o.name, cluster, o.replica, volume.Shard(period, 1)), err
		},
		Retention: o.retention,
		Logger:    p.log,
		Now:       p.clock.now,
		Ticker:    p.clock.ticker,
	})
}

// evidence is nil where none is kept.
func (p *process) evidence() webhook.Evidence {
	if p.journal == nil {
		return nil
	}
	return p.journal
}

// checks are what has to be in order before reviews are sent here.
func (p *process) checks() []server.Check {
	list := []server.Check{{Name: "certificate", Ready: p.certificateReady}, {Name: "facts", Ready: p.factsReady}}
	if p.journal != nil {
		list = append(list, server.Check{Name: "evidence", Ready: p.journal.Ready})
	}
	return list
}

func (p *process) evidenceMetrics(registry *prometheus.Registry) error {
	if p.journal == nil {
		return nil
	}
	return telemetry.Evidence(registry, journal.Causes(), func() telemetry.EvidenceState {
		s := p.journal.State()
		unsealed, lag := p.journal.Sealed()
		return telemetry.EvidenceState{
			Available: s.Available, Cause: s.Cause,
			In: s.Counts.In, Written: s.Counts.Written, Admitted: s.Counts.Admitted, Unlogged: s.Counts.Unlogged,
			Lines: s.Records, Unsealed: unsealed, LagSeconds: lag.Seconds(),
		}
	})
}

// boot says what is running.
func (o *evidenceOptions) boot() (record.Boot, error) {
	rules, err := rulesHash(policies.All())
	if err != nil {
		return record.Boot{}, err
	}
	binary, err := binaryHash()
	if err != nil {
		return record.Boot{}, fmt.Errorf("hash the binary: %w", err)
	}
	return record.Boot{
		Pod: o.podUID, Node: o.node, Version: version(), Binary: binary, Policies: rules,
		BeatSeconds: uint64(o.beat / time.Second),
	}, nil
}

// rulesHash is over what policies are and may find. What their code does is in the hash of the
// binary.
func rulesHash(list []policies.Policy) (record.Hash, error) {
	type rule struct {
		ID, Title string
		Reasons   []policies.Reason
		Matches   []policies.Match
	}
	rules := make([]rule, 0, len(list))
	for i := range list {
		rules = append(rules, rule{list[i].ID, list[i].Title, list[i].Reasons, list[i].Matches})
	}
	text, err := json.Marshal(rules)
	if err != nil {
		return record.Hash{}, fmt.Errorf("hash the policies: %w", err)
	}
	return record.HashOf(text), nil
}

func binaryHash() (h record.Hash, err error) {
	path, err := os.Executable()
	if err != nil {
		return record.Hash{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return record.Hash{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return record.Hash{}, err
	}
	return record.Hash(sum.Sum(nil)), nil
}
