package controller

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/internal/objects"
)

// fakeCache has informers that tell what the test lets them, and otherwise reads
// from the client.
type fakeCache struct {
	cache.Cache // what is not overridden must not be called
	client      client.Client
	informers   map[string]*controllertest.FakeInformer
}

func (c *fakeCache) GetInformer(_ context.Context, o client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	kind := fmt.Sprintf("%T", o)
	if c.informers[kind] == nil {
		c.informers[kind] = controllertest.NewFakeInformer(controllertest.Synced)
	}
	return c.informers[kind], nil
}

func (c *fakeCache) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	return c.client.Get(ctx, key, o, opts...)
}

func (c *fakeCache) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	return c.client.List(ctx, list, opts...)
}

func (c *fakeCache) tell(o client.Object) { c.informers[fmt.Sprintf("%T", o)].Add(o) }

func (c *fakeCache) forget(o client.Object) { c.informers[fmt.Sprintf("%T", o)].Delete(o) }

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{cluster.AddToScheme, admissionregistrationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return scheme
}

// setting is a cluster, and what Meshvakt's caches know of it.
type setting struct {
	client client.Client
	source *cluster.Source
	cache  *fakeCache
}

// newSetting starts a Source over a client that holds the objects.
func newSetting(t *testing.T, funcs interceptor.Funcs, stored ...client.Object) *setting {
	t.Helper()
	s := &setting{client: fake.NewClientBuilder().WithScheme(newScheme(t)).WithObjects(stored...).
		WithStatusSubresource(&v1alpha1.MeshGuard{}, &v1alpha1.GuardException{}).WithInterceptorFuncs(funcs).Build()}
	s.cache = &fakeCache{client: s.client, informers: map[string]*controllertest.FakeInformer{}}
	catalogue, err := nodes.NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	s.source = cluster.New(cluster.Config{Cache: s.cache, Live: s.client, IstioNamespace: "istio-system", OwnNamespace: "meshvakt-system", Catalogue: catalogue, Log: slog.New(slog.DiscardHandler)})
	filled := make(chan struct{}, 1)
	s.source.OnChange(func(string) {
		if s.source.Synced() {
			select {
			case filled <- struct{}{}:
			default:
			}
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.source.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-filled:
	case err := <-ended:
		t.Fatalf("the source ended: %v", err)
	}
	for _, o := range stored {
		switch o := o.(type) {
		case *corev1.Namespace:
			s.cache.tell(&metav1.PartialObjectMetadata{ObjectMeta: o.ObjectMeta})
		case *objects.PeerAuthentication, *v1alpha1.MeshGuard, *v1alpha1.GuardException, *corev1.Node, *corev1.ConfigMap, *admissionregistrationv1.MutatingWebhookConfiguration:
			s.cache.tell(o)
		}
	}
	return s
}

func guardWith(name string, selector metav1.LabelSelector, onMissing v1alpha1.OnMissing) *v1alpha1.MeshGuard {
	g := v1alpha1.DefaultGuard()
	g.Spec.MeshMembership, g.Spec.SidecarResources, g.Spec.NodePools = nil, nil, nil // of strict-mtls alone
	g.Name, g.Generation, g.Spec.NamespaceSelector, g.Spec.StrictMTLS.OnMissing = name, 3, selector, onMissing
	return g
}

func guardedSelector() metav1.LabelSelector { return v1alpha1.DefaultGuard().Spec.NamespaceSelector }

func namespaceOf(name string, guarded bool) *corev1.Namespace {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if guarded {
		ns.Labels = map[string]string{v1alpha1.GuardedLabel: v1alpha1.GuardedValue}
	}
	return ns
}

func policyOf(namespace, name, mode string) *objects.PeerAuthentication {
	return &objects.PeerAuthentication{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       objects.PeerAuthenticationSpec{MTLS: &objects.MutualTLS{Mode: mode}},
	}
}
