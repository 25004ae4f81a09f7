package keyring

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// keyAnnotation is followed by a period, and has the ID of its key until it is recorded that the key is gone: whoever has
// taken it out, and whichever process dies before it could tell.
const keyAnnotation = "keys.evidence.meshvakt.io/"

// register notes the key of a period, unless an earlier one is noted whose end is not told yet. It reports whether it has.
func register(secret *corev1.Secret, p volume.Period) bool {
	id := idOf(secret, p)
	if _, noted := secret.Annotations[keyAnnotation+string(p)]; noted || id == "" {
		return false
	}
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	secret.Annotations[keyAnnotation+string(p)] = id
	return true
}

// idOf is the ID of a key that is there, empty where there is none.
func idOf(secret *corev1.Secret, p volume.Period) string {
	data := secret.Data[string(p)]
	if len(data) != len(record.Key{}) {
		return ""
	}
	return record.Key(data).ID()
}

// Destroyed is a key that is gone for good.
type Destroyed struct {
	Period volume.Period
	ID     string
	// Early: before retention was over, so by somebody else.
	Early bool
}

// Expire destroys the keys of periods that ended longer ago than retention, where there is one. It returns the keys that are
// gone and of which Told was not called, those too that somebody else has taken out once their period was over: before
// that, replicas have them in memory. With an error, what it returns is true nevertheless.
func (k *Keyring) Expire(ctx context.Context, now time.Time, retention time.Duration) (gone []Destroyed, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for range attempts {
		if gone, err = k.expire(ctx, now, retention); !apierrors.IsConflict(err) {
			break
		}
	}
	return gone, err
}

func (k *Keyring) expire(ctx context.Context, now time.Time, retention time.Duration) ([]Destroyed, error) {
	var secret corev1.Secret
	if err := k.Live.Get(ctx, k.Secret, &secret); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("get Secret %s: %w", k.Secret, err)
	}
	over, errs, changed := []volume.Period{}, []error{}, false
	for _, entry := range slices.Sorted(maps.Keys(secret.Data)) {
		p := volume.Period(entry)
		_, end, err := p.Bounds()
		if err != nil {
			errs = append(errs, fmt.Errorf("entry %q of Secret %s: %w", entry, k.Secret, err))
			continue
		}
		changed = register(&secret, p) || changed // one that was made before keys were noted
		noted := secret.Annotations[keyAnnotation+entry]
		if retention <= 0 || now.Before(end.Add(retention)) || noted != idOf(&secret, p) {
			continue // in the last case the one before is told first
		}
		delete(secret.Data, entry)
		over, changed = append(over, p), true
	}
	if changed {
		if err := k.Client.Update(ctx, &secret); err != nil {
			return nil, errors.Join(append(errs, fmt.Errorf("update Secret %s: %w", k.Secret, err))...)
		}
	}
	for _, p := range over {
		delete(k.keys, p)
	}
	return untold(&secret, now, retention), errors.Join(errs...)
}

// untold are the keys that are noted and gone.
func untold(secret *corev1.Secret, now time.Time, retention time.Duration) []Destroyed {
	var gone []Destroyed
	for _, annotation := range slices.Sorted(maps.Keys(secret.Annotations)) {
		entry, is := strings.CutPrefix(annotation, keyAnnotation)
		p := volume.Period(entry)
		_, end, err := p.Bounds()
		id := secret.Annotations[annotation]
		if !is || err != nil || id == idOf(secret, p) || now.Before(end) {
			continue
		}
		gone = append(gone, Destroyed{Period: p, ID: id, Early: retention <= 0 || now.Before(end.Add(retention))})
	}
	return gone
}

// Told is for a key of which it is recorded that it is gone.
func (k *Keyring) Told(ctx context.Context, d Destroyed) error {
	var last error
	for range attempts {
		if last = k.told(ctx, d); !apierrors.IsConflict(last) {
			break
		}
	}
	if last != nil {
		return fmt.Errorf("annotate Secret %s: %w", k.Secret, last)
	}
	return nil
}

func (k *Keyring) told(ctx context.Context, d Destroyed) error {
	var secret corev1.Secret
	if err := k.Live.Get(ctx, k.Secret, &secret); err != nil {
		return err
	}
	if secret.Annotations[keyAnnotation+string(d.Period)] != d.ID {
		return nil
	}
	delete(secret.Annotations, keyAnnotation+string(d.Period))
	register(&secret, d.Period) // another that was made in its place
	return k.Client.Update(ctx, &secret)
}
