// Package keyring keeps the keys of pseudonyms, which all replicas share, in one Secret: an entry
// of 32 bytes for each period. Whoever reads the Secret can find out whom a pseudonym stands for;
// once an entry is gone, nobody can.
package keyring

import (
	"context"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// attempts is how often an entry is added to a Secret that others change at the same time.
const attempts = 10

// Config is what a Keyring needs.
type Config struct {
	// Live reads from the API server, not from a cache: an entry that another replica has just
	// made must not be made again.
	Live   client.Reader
	Client client.Writer
	// Secret is made where it is not there.
	Secret client.ObjectKey
	Labels map[string]string
	Random io.Reader
}

// Keyring gives each replica the same key for a period. What it has once answered it answers from
// memory. Its methods may be called by many at once.
type Keyring struct {
	Config

	mu      sync.Mutex
	cluster string
	user    string
	keys    map[volume.Period]record.Key
}

// New makes a Keyring.
func New(c Config) *Keyring { return &Keyring{Config: c, keys: map[volume.Period]record.Key{}} }

// Cluster is the UID of namespace kube-system, which is as old as the cluster and is never made
// again.
func (k *Keyring) Cluster(ctx context.Context) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cluster != "" {
		return k.cluster, nil
	}
	var ns corev1.Namespace
	if err := k.Live.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem}, &ns); err != nil {
		return "", fmt.Errorf("get namespace %s: %w", metav1.NamespaceSystem, err)
	}
	k.cluster = string(ns.UID)
	return k.cluster, nil
}

// User is who Meshvakt itself is to the API server.
func (k *Keyring) User(ctx context.Context) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.user != "" {
		return k.user, nil
	}
	review, err := k.ask(ctx)
	if err != nil {
		return "", err
	}
	k.user = review.Status.UserInfo.Username
	return k.user, nil
}

func (k *Keyring) ask(ctx context.Context) (*authenticationv1.SelfSubjectReview, error) {
	var review authenticationv1.SelfSubjectReview
	if err := k.Client.Create(ctx, &review); err != nil {
		return nil, fmt.Errorf("ask who this is: %w", err)
	}
	return &review, nil
}

// ServerTime is what the clock of an API server says, to the second; zero from one that does not tell.
func (k *Keyring) ServerTime(ctx context.Context) (time.Time, error) {
	review, err := k.ask(ctx)
	if err != nil {
		return time.Time{}, err
	}
	return review.CreationTimestamp.Time, nil
}

// Key returns the key of a period and makes it where there is none yet.
func (k *Keyring) Key(ctx context.Context, p volume.Period) (record.Key, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if key, known := k.keys[p]; known {
		return key, nil
	}
	var last error
	for range attempts {
		key, err := k.readOrMake(ctx, p)
		if err == nil {
			// An older one must not outlive its end in the memory of a process that runs for long.
			maps.DeleteFunc(k.keys, func(q volume.Period, _ record.Key) bool { return q < p })
			k.keys[p] = key
			return key, nil
		}
		if last = err; !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	return record.Key{}, fmt.Errorf("key of pseudonyms in Secret %s: %w", k.Secret, last)
}

func (k *Keyring) readOrMake(ctx context.Context, p volume.Period) (record.Key, error) {
	var secret corev1.Secret
	err := k.Live.Get(ctx, k.Secret, &secret)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return record.Key{}, err
	}
	if data, there := secret.Data[string(p)]; there {
		if len(data) != len(record.Key{}) {
			return record.Key{}, fmt.Errorf("entry %q has %d bytes; must have %d; a key that was in use cannot be made again, put it back from a backup", string(p), len(data), len(record.Key{}))
		}
		return record.Key(data), nil
	}
	key, err := record.NewKey(k.Random)
	if err != nil {
		return record.Key{}, err
	}
	if missing {
		secret = corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: k.Secret.Namespace, Name: k.Secret.Name, Labels: k.Labels},
			Type:       corev1.SecretTypeOpaque,
			Data:       map[string][]byte{string(p): key[:]},
		}
		register(&secret, p)
		return key, k.Client.Create(ctx, &secret)
	}
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	secret.Data[string(p)] = key[:]
	register(&secret, p)
	// It fails where somebody has written since: the resourceVersion that was read goes along.
	return key, k.Client.Update(ctx, &secret)
}
