package keyring

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// logAnnotation is followed by the name of a replica, and says which log it has begun last. It is on the Secret because that
// is what all replicas have in common, and must not be lost anyway.
const logAnnotation = "evidence.meshvakt.io/"

// Last is the last shard that a replica has begun, on whatever volume; empty where none is known.
func (k *Keyring) Last(ctx context.Context, replica string) (string, error) {
	var secret corev1.Secret
	if err := k.Live.Get(ctx, k.Secret, &secret); apierrors.IsNotFound(err) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("get Secret %s: %w", k.Secret, err)
	}
	return secret.Annotations[logAnnotation+replica], nil
}

// Note notes that a replica begins a shard, unless it has begun that, or a later one, before.
func (k *Keyring) Note(ctx context.Context, replica, shard string) error {
	var last error
	for range attempts {
		if last = k.note(ctx, logAnnotation+replica, shard); last == nil || !apierrors.IsConflict(last) && !apierrors.IsAlreadyExists(last) {
			break
		}
	}
	if last != nil {
		return fmt.Errorf("annotate Secret %s: %w", k.Secret, last)
	}
	return nil
}

func (k *Keyring) note(ctx context.Context, annotation, shard string) error {
	var secret corev1.Secret
	err := k.Live.Get(ctx, k.Secret, &secret)
	if apierrors.IsNotFound(err) {
		secret = corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: k.Secret.Namespace, Name: k.Secret.Name, Labels: k.Labels, Annotations: map[string]string{annotation: shard}},
			Type:       corev1.SecretTypeOpaque,
		}
		return k.Client.Create(ctx, &secret)
	}
	if err != nil {
		return err
	}
	later, err := isLater(shard, secret.Annotations[annotation])
	if err != nil || !later {
		return err
	}
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	secret.Annotations[annotation] = shard
	return k.Client.Update(ctx, &secret)
}

// isLater reports whether a shard comes after another, which may be none.
func isLater(shard, other string) (bool, error) {
	p, n, err := volume.ParseShard(shard)
	if err != nil || other == "" {
		return true, err
	}
	q, m, err := volume.ParseShard(other)
	if err != nil {
		return false, err
	}
	return p > q || p == q && n > m, nil
}
