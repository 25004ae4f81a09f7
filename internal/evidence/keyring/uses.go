package keyring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// Somebody who looks up what is held about a person says so in an Event about the Secret of the keys. The leader records
// it and then says in the Event where; what was found is shown only behind that.
//
// Who may create Events in the namespace can say that anybody has used a key. Who has the Secret can use its keys and say
// nothing: that the Secret was read is in the audit log of the API server alone.
const (
	useReason     = "KeyUsed"
	useAnnotation = "meshvakt.io/key-use"
	// RecordedAnnotation says where a use was recorded; RefusedAnnotation why it was not.
	RecordedAnnotation = "meshvakt.io/recorded-in"
	RefusedAnnotation  = "meshvakt.io/not-recorded"

	// maxUses bounds the shards of one use, and usesAtOnce how many records are made of uses in usesEvery: a log must not
	// be filled by who may create Events.
	maxUses    = 256
	usesAtOnce = 512
	usesEvery  = time.Minute
	// watchAgain is how long a watch that has ended rests.
	watchAgain = 2 * time.Second
)

// Use is that of the keys of pseudonyms for one person.
type Use struct {
	// By is who has used them, as the API server names them to themselves.
	By     string  `json:"by"`
	Reason string  `json:"reason"`
	Shards []Found `json:"shards"`
}

// Found is how many records of one shard are about the person.
type Found struct {
	Origin string `json:"origin"`
	Key    string `json:"key"` // its ID
	N      uint64 `json:"n"`
}

func (u *Use) records(p record.Pseudonymiser) []*record.KeyUsed {
	list := make([]*record.KeyUsed, 0, len(u.Shards))
	for _, s := range u.Shards {
		list = append(list, &record.KeyUsed{ID: s.Key, Origin: s.Origin, By: p.Subject(u.By), Reason: u.Reason, N: s.N})
	}
	return list
}

// check reports what keeps a use from being recorded.
func (u *Use) check() error {
	switch {
	case u.By == "":
		return errors.New("it does not say who has used the key")
	case strings.TrimSpace(u.Reason) == "":
		return errors.New("it has no reason")
	case len(u.Shards) == 0 || len(u.Shards) > maxUses:
		return fmt.Errorf("it names %d shards; must be 1 to %d", len(u.Shards), maxUses)
	}
	for _, body := range u.records(record.NewPseudonymiser(record.Key{})) {
		if err := record.Check(body); err != nil {
			return err
		}
	}
	return nil
}

// Announce says that keys are used, and returns once that is recorded.
func Announce(ctx context.Context, c client.WithWatch, secret *corev1.Secret, u Use, now time.Time) (recorded string, err error) {
	if err := u.check(); err != nil {
		return "", fmt.Errorf("announce the use of a key: %w", err)
	}
	text, err := json.Marshal(u)
	if err != nil {
		return "", fmt.Errorf("announce the use of a key: %w", err)
	}
	event := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: secret.Namespace, GenerateName: "meshvakt-key-used-", Annotations: map[string]string{useAnnotation: string(text)}},
		EventTime:  metav1.NewMicroTime(now), ReportingController: "meshvakt.io/evidence-subject", ReportingInstance: "meshvakt-evidence-subject", Action: "LookUp", Reason: useReason, Type: corev1.EventTypeNormal,
		Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: secret.Namespace, Name: secret.Name, UID: secret.UID},
		Note:      "Keys of pseudonyms were used to find the records about a person. By whom and why is in the evidence log.",
	}
	if err := c.Create(ctx, event); err != nil {
		return "", fmt.Errorf("announce the use of a key: %w", err)
	}
	for {
		recorded, err := answerTo(ctx, c, event)
		if err != nil || recorded != "" {
			return recorded, err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("no replica has recorded the use of the key (Event %s/%s): %w", event.Namespace, event.Name, ctx.Err())
		case <-time.After(watchAgain / 4):
		}
	}
}

func answerTo(ctx context.Context, c client.Reader, event *eventsv1.Event) (string, error) {
	var now eventsv1.Event
	if err := c.Get(ctx, client.ObjectKeyFromObject(event), &now); err != nil {
		return "", fmt.Errorf("ask whether the use of a key is recorded: %w", err)
	}
	if why := now.Annotations[RefusedAnnotation]; why != "" {
		return "", fmt.Errorf("the use of the key is not recorded: %s", why)
	}
	return now.Annotations[RecordedAnnotation], nil
}

// Uses records what is announced of uses. It runs on the leader.
type Uses struct {
	Client    client.WithWatch
	Namespace string
	// Secret is the name of that of the keys, Replica the name of this one.
	Secret, Replica string
	Log             Log
	Logger          *slog.Logger
	Now             func() time.Time

	told  int // in the minute since
	since time.Time
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (u *Uses) NeedLeaderElection() bool { return true }

// Start implements manager.Runnable.
func (u *Uses) Start(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := u.follow(ctx); err != nil && ctx.Err() == nil {
			u.Logger.WarnContext(ctx, "evidence: uses of keys cannot be watched, and are looked at again", "err", err.Error())
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchAgain):
		}
	}
	return nil
}

// follow goes through what was announced, and what comes. It returns when the watch ends, or what is left has to wait.
func (u *Uses) follow(ctx context.Context) error {
	options := &client.ListOptions{Namespace: u.Namespace, FieldSelector: fields.OneTermEqualSelector("reason", useReason)}
	var list eventsv1.EventList
	if err := u.Client.List(ctx, &list, options); err != nil {
		return fmt.Errorf("list Events: %w", err)
	}
	// The oldest first, as far as clocks say.
	slices.SortStableFunc(list.Items, func(a, b eventsv1.Event) int { return a.EventTime.Compare(b.EventTime.Time) })
	for i := range list.Items {
		if err := u.take(ctx, &list.Items[i]); err != nil {
			return err
		}
	}
	options.Raw = &metav1.ListOptions{ResourceVersion: list.ResourceVersion}
	w, err := u.Client.Watch(ctx, &eventsv1.EventList{}, options)
	if err != nil {
		return fmt.Errorf("watch Events: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case change, open := <-w.ResultChan():
			if !open {
				return nil
			}
			if e, is := change.Object.(*eventsv1.Event); is && change.Type != apiwatch.Deleted {
				if err := u.take(ctx, e); err != nil {
					return err
				}
			}
			if change.Type == apiwatch.Error {
				return fmt.Errorf("watch Events: %w", apierrors.FromObject(change.Object))
			}
		}
	}
}

// take records one that was not yet, and says so in it. Where saying so fails it is recorded again: better twice than not.
func (u *Uses) take(ctx context.Context, e *eventsv1.Event) error {
	text, is := e.Annotations[useAnnotation]
	if !is || e.Reason != useReason || e.Regarding.Name != u.Secret || e.Annotations[RecordedAnnotation] != "" || e.Annotations[RefusedAnnotation] != "" {
		return nil
	}
	var use Use
	err := json.Unmarshal([]byte(text), &use)
	if err == nil {
		err = use.check()
	}
	if err != nil {
		u.Logger.WarnContext(ctx, "evidence: a use of a key cannot be recorded as it was announced", "event", e.Name, "err", err.Error())
		return u.answer(ctx, e, RefusedAnnotation, err.Error())
	}
	if err := u.room(len(use.Shards)); err != nil {
		return err
	}
	shard := u.Log.Shard()
	for i := range use.Shards {
		if err := u.Log.Append(ctx, shard, func(p record.Pseudonymiser) (record.Body, error) { return use.records(p)[i], nil }); err != nil {
			return fmt.Errorf("record the use of a key: %w", err)
		}
	}
	u.Logger.InfoContext(ctx, "evidence: a use of keys of pseudonyms was recorded", "event", e.Name, "shards", len(use.Shards))
	return u.answer(ctx, e, RecordedAnnotation, u.Replica+"/"+shard)
}

// room takes n of what may be recorded in a minute.
func (u *Uses) room(n int) error {
	if now := u.Now(); now.Sub(u.since).Abs() >= usesEvery {
		u.told, u.since = 0, now
	}
	if u.told+n > usesAtOnce {
		return fmt.Errorf("more than %d uses of keys are announced in a minute; the rest waits", usesAtOnce)
	}
	u.told += n
	return nil
}

func (u *Uses) answer(ctx context.Context, e *eventsv1.Event, annotation, value string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{annotation: value}}})
	if err != nil {
		return fmt.Errorf("answer an Event: %w", err)
	}
	if err := u.Client.Patch(ctx, e.DeepCopy(), client.RawPatch("application/merge-patch+json", patch)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("answer Event %s: %w", e.Name, err)
	}
	return nil
}
