package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// Keeper puts own objects back. Every replica reads at its start what was installed, and
// the leader keeps it.
type Keeper struct {
	Client client.Client
	Live   client.Reader
	// ConfigMap holds the objects as installed, and Digest is that of its content.
	ConfigMap client.ObjectKey
	Digest    string
	// Manager is the field manager of the installer. What is put back is put back in its
	// name: it would not change again what somebody else owns.
	Manager string
	Ledger  *Ledger
	Log     *slog.Logger
	Now     func() time.Time

	desired atomic.Pointer[Desired]
	// foreign is since when an object has the mark of another installation. One request is
	// reconciled at a time, so nobody else reads it.
	foreign map[Ref]time.Time
	stood   string    // the mark before which this replica has stood down, likewise
	idle    time.Time // since when it has, whatever the marks, likewise
	// tries are when an object was put back in the last minute, likewise.
	tries map[Ref][]time.Time
}

const (
	// resync is how often an object is looked at without an event.
	resync = time.Minute
	// retry is how soon to look again at what has to be waited for.
	retry = 200 * time.Millisecond
	// reload is how soon to look again for a ConfigMap that is not there, or not ours.
	reload = 5 * time.Second
	// installing is how long an installer may take from the first object it changes to
	// the ConfigMap. An object with another mark is left alone for so long.
	installing = 15 * time.Second
	// rollout is how long an upgrade may take until this replica has been replaced, by what
	// Deployments take for it by default. A replica that keeps nothing for longer says so:
	// whoever changes the mark of the ConfigMap would otherwise silence it.
	rollout = 10 * time.Minute
	// often is how many times a minute an object is put back. Whoever changes it more
	// often is a program that wants something else, with which nobody should race.
	often = 10
)

// Load reads what was installed, and tries until it can or ctx ends.
func (k *Keeper) Load(ctx context.Context) error {
	said, since := "", k.Now()
	for {
		err := k.load(ctx)
		if err == nil {
			k.Ledger.AsInstalled(k.configMap(), "ConfigMap")
			return nil
		}
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			k.Log.WarnContext(ctx, "cannot keep Meshvakt's own objects yet", "error", err)
		}
		if ctx.Err() == nil && k.Now().Sub(since) >= rollout {
			k.Ledger.LeftAlone(ctx, k.configMap(), "ConfigMap", fmt.Sprintf(
				"for more than %d minutes it has not been there, or not as a replica was started with it, which keeps no own objects until it is", int(rollout.Minutes())))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reload):
		}
	}
}

func (k *Keeper) load(ctx context.Context) error {
	var cm corev1.ConfigMap
	if err := k.Live.Get(ctx, k.ConfigMap, &cm); err != nil {
		return fmt.Errorf("get ConfigMap %s: %w", k.ConfigMap, err)
	}
	d, err := Read(&cm, k.Digest)
	if err != nil {
		return fmt.Errorf("read ConfigMap %s: %w", k.ConfigMap, err)
	}
	k.desired.Store(d)
	return nil
}

// configMap names the ConfigMap, for the Ledger.
func (k *Keeper) configMap() *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
	u.SetNamespace(k.ConfigMap.Namespace)
	u.SetName(k.ConfigMap.Name)
	return u
}

// Reconcile puts one object back if it has to be.
func (k *Keeper) Reconcile(ctx context.Context, ref Ref) (reconcile.Result, error) {
	d := k.desired.Load()
	if d == nil {
		return reconcile.Result{RequeueAfter: retry}, nil
	}
	o, known := d.objects[ref]
	if !known {
		return reconcile.Result{}, nil
	}
	live := &unstructured.Unstructured{}
	live.SetGroupVersionKind(o.gvk())
	var different []string
	switch err := k.Live.Get(ctx, o.key(), live); {
	case apierrors.IsNotFound(err):
		live = nil
	case err != nil:
		return k.hindered(ctx, ref, o, fmt.Errorf("get %s: %w", ref, err))
	case live.GetDeletionTimestamp() != nil:
		k.Ledger.Unrepaired(ctx, o.want, ref.Kind, "it is being deleted")
		return reconcile.Result{RequeueAfter: retry}, nil
	default:
		different = differences(o.want, live)
	}
	if live != nil && len(different) == 0 {
		delete(k.foreign, ref)
		if o.key() == k.ConfigMap && ref.Kind == "ConfigMap" {
			k.stood, k.idle = "", time.Time{}
		}
		k.Ledger.AsInstalled(o.want, ref.Kind)
		return reconcile.Result{RequeueAfter: resync}, nil
	}
	if wait, err := k.superseded(ctx, d, ref, live); err != nil {
		return k.hindered(ctx, ref, o, err)
	} else if wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	if !o.kept {
		k.Ledger.LeftAlone(ctx, o.want, ref.Kind, wrongness(different)+", and Meshvakt has no right to put it back")
		return reconcile.Result{RequeueAfter: resync}, nil
	}
	if wait := k.tired(ref); wait > 0 {
		k.Ledger.LeftAlone(ctx, o.want, ref.Kind, fmt.Sprintf("somebody changes it again and again; it is put back at most %d times a minute", often))
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	if err := k.repair(ctx, ref, o, live, different); err != nil {
		return k.hindered(ctx, ref, o, err)
	}
	// Once more, for somebody may go on changing it.
	return reconcile.Result{RequeueAfter: time.Second}, nil
}

func wrongness(different []string) string {
	if len(different) == 0 {
		return "it is not there"
	}
	return strings.Join(different[:min(len(different), 5)], ", ") + " is not as installed"
}

// superseded tells for how long to leave an object alone because another version is
// being installed; 0: there is none.
func (k *Keeper) superseded(ctx context.Context, d *Desired, ref Ref, live *unstructured.Unstructured) (time.Duration, error) {
	var cm corev1.ConfigMap
	switch err := k.Live.Get(ctx, k.ConfigMap, &cm); {
	case apierrors.IsNotFound(err):
		// Then that one is put back.
	case err != nil:
		return 0, fmt.Errorf("get ConfigMap %s: %w", k.ConfigMap, err)
	default:
		if mark := cm.Labels[MarkLabel]; mark != "" && mark != d.Mark {
			if k.stood != mark {
				k.stood = mark
				k.Log.InfoContext(ctx, "another version is being installed, whose objects this replica leaves alone", "mark", mark, "own", d.Mark)
			}
			k.standsDown(ctx, mark, d.Mark)
			return reload, nil
		}
	}
	k.stood, k.idle = "", time.Time{}
	if live == nil {
		return 0, nil
	}
	if mark := live.GetLabels()[MarkLabel]; mark == "" || mark == d.Mark {
		return 0, nil
	}
	if k.foreign == nil {
		k.foreign = map[Ref]time.Time{}
	}
	since, seen := k.foreign[ref]
	if !seen {
		since = k.Now()
		k.foreign[ref] = since
	}
	return max(0, min(time.Second, installing-k.Now().Sub(since))), nil
}

// standsDown tells of a replica that has stood down and is not replaced.
func (k *Keeper) standsDown(ctx context.Context, mark, own string) {
	if k.idle.IsZero() {
		k.idle = k.Now()
	}
	if k.Now().Sub(k.idle) < rollout {
		return
	}
	k.Ledger.LeftAlone(ctx, k.configMap(), "ConfigMap", fmt.Sprintf(
		"its label %s is %q and that of the leader %q, for more than %d minutes: an upgrade does not end, or somebody has changed the label; no own objects are kept meanwhile",
		MarkLabel, mark, own, int(rollout.Minutes())))
}

// tired tells for how long not to put an object back that was put back too often; else it
// notes another time.
func (k *Keeper) tired(ref Ref) time.Duration {
	if k.tries == nil {
		k.tries = map[Ref][]time.Time{}
	}
	now := k.Now()
	tries := slices.DeleteFunc(k.tries[ref], func(t time.Time) bool { return now.Sub(t) >= time.Minute })
	if len(tries) >= often {
		k.tries[ref] = tries
		return time.Minute - now.Sub(tries[0])
	}
	k.tries[ref] = append(tries, now)
	return 0
}

// repair applies what is wanted. Apply leaves alone what others have added, so whatever
// still differs after it is replaced.
func (k *Keeper) repair(ctx context.Context, ref Ref, o desired, live *unstructured.Unstructured, different []string) error {
	if live != nil && unchangeable(o.want, live) {
		uid := live.GetUID()
		if err := k.Client.Delete(ctx, live, client.Preconditions{UID: &uid}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete %s, which cannot be changed to what it was: %w", ref, err)
		}
	}
	manager := client.FieldOwner(k.Manager)
	err := k.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(o.want.DeepCopy()), manager, client.ForceOwnership)
	// What others have added can stand in the way of what is wanted, such as another port
	// of the same name. Then it is replaced at once.
	if err != nil && (live == nil || !apierrors.IsInvalid(err)) {
		return fmt.Errorf("apply %s: %w", ref, err)
	}
	now := &unstructured.Unstructured{}
	now.SetGroupVersionKind(o.gvk())
	if err := k.Live.Get(ctx, o.key(), now); err != nil {
		return fmt.Errorf("get %s: %w", ref, err)
	}
	if len(differences(o.want, now)) > 0 {
		now = restored(o.want, now)
		if err := k.Client.Update(ctx, now, manager); err != nil {
			return fmt.Errorf("replace %s: %w", ref, err)
		}
		if still := differences(o.want, now); len(still) > 0 {
			return fmt.Errorf("replace %s: %s does not stay as installed: somebody else changes what is written", ref, strings.Join(still, ", "))
		}
	}
	delete(k.foreign, ref)
	action := Created
	if live != nil {
		action = Changed
	}
	k.Ledger.Repaired(ctx, now, ref.Kind, action, wrongness(different))
	return nil
}

// unchangeable reports whether the API server would not let us put right what is there:
// which role is bound can never be changed, and a role that gathers its rules from others
// only by who has every right. Such an object has to go first.
func unchangeable(want, live *unstructured.Unstructured) bool {
	switch want.GetKind() {
	case "ClusterRoleBinding", "RoleBinding":
		return !reflect.DeepEqual(want.Object["roleRef"], live.Object["roleRef"])
	case "ClusterRole":
		return live.Object["aggregationRule"] != nil
	}
	return false
}

// hindered notes that an object could not be looked at or put back; the queue tries
// again, sooner at first and then at most every few seconds.
func (k *Keeper) hindered(ctx context.Context, ref Ref, o desired, err error) (reconcile.Result, error) {
	switch {
	case ctx.Err() != nil:
		return reconcile.Result{}, nil //nolint:nilerr // somebody has ended us, and that is why
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: retry}, nil
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		k.Ledger.Unrepaired(ctx, o.want, ref.Kind, "Meshvakt has lost the right to look after it")
	default:
		k.Ledger.Unrepaired(ctx, o.want, ref.Kind, "an error of the API server")
	}
	return reconcile.Result{}, err
}
