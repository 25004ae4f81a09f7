package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/evidence/keyring"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// keyCluster is where the keys of pseudonyms are, and their use is recorded.
type keyCluster struct {
	client client.WithWatch
	secret corev1.Secret
	user   string
}

// openCluster reads the Secret of the keys, and asks who that is to the API server.
func (f *evidenceSubjectFlags) openCluster(ctx context.Context) (*keyCluster, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cluster.timeout)
	defer cancel()
	config, err := f.cluster.config()
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register kinds: %w", err)
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("create a client: %w", err)
	}
	k := &keyCluster{client: c}
	var self authenticationv1.SelfSubjectReview
	if err := c.Create(ctx, &self); err != nil {
		return nil, fmt.Errorf("ask the API server who you are: %w", err)
	}
	k.user = self.Status.UserInfo.Username
	key := client.ObjectKey{Namespace: f.cluster.ownNamespace, Name: f.secret}
	if err := c.Get(ctx, key, &k.secret); err != nil {
		return nil, fmt.Errorf("get the keys of pseudonyms in Secret %s: %w", key, err)
	}
	if len(k.keys()) == 0 {
		return nil, fmt.Errorf("read Secret %s: it holds no key of pseudonyms; must have entries as 2026q4, of 32 bytes", key)
	}
	return k, nil
}

func (k *keyCluster) keys() []record.Key {
	var list []record.Key
	for _, entry := range slices.Sorted(maps.Keys(k.secret.Data)) {
		if data := k.secret.Data[entry]; len(data) == len(record.Key{}) {
			list = append(list, record.Key(data))
		}
	}
	return list
}

// announce returns where the use was recorded.
func (k *keyCluster) announce(ctx context.Context, u keyring.Use, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	u.By = k.user
	return keyring.Announce(ctx, k.client, &k.secret, u, time.Now())
}
