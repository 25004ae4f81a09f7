// Package cluster turns a Kubernetes cluster into facts: from caches for the
// requests that come by the thousand, from consistent reads of the API server
// for the rare ones and wherever the caches may not know enough.
//
// Trust in the caches is earned per request. A namespace's pods are judged from
// the cache only while the cache of PeerAuthentications is provably as new as
// the labels that put the namespace under its guard; every weakening of a
// namespace that was guarded by then passed a live judgement of its own. See
// Source.Read.
package cluster

import (
	"log/slog"
	"slices"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/internal/objects"
)

// Config is what a Source reads from and which namespaces are special to it.
type Config struct {
	// Cache holds the informers; it is started by its owner.
	Cache cache.Cache
	// Live reads from the API server, never from a cache.
	Live client.Reader
	// IstioNamespace is where istiod's ConfigMaps are, usually istio-system.
	IstioNamespace string
	// OwnNamespace is where Meshvakt runs; it is never guarded.
	OwnNamespace string
	// Catalogue tells the classes of instance types. It is required.
	Catalogue *nodes.Catalogue
	Log       *slog.Logger
	// Now is the clock by which it is told when the API server was heard; time.Now by default.
	Now func() time.Time
	// ShortWatches has the API server say more often how far it is, which evidence needs and others need not pay for.
	ShortWatches bool
}

// AddToScheme registers every kind that Source reads.
func AddToScheme(s *runtime.Scheme) error {
	for _, add := range []func(*runtime.Scheme) error{admissionregistrationv1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, v1alpha1.AddToScheme, objects.AddToScheme, metav1.AddMetaToScheme} {
		if err := add(s); err != nil {
			return err
		}
	}
	return nil
}

// CacheOptions returns what the cache has to be told so that it keeps only what
// Source reads: of namespaces the labels, of nodes labels and taints, of PeerAuthentications the spec, of
// ConfigMaps Istio's own, of MutatingWebhookConfigurations those of injectors.
func CacheOptions(istioNamespace string) map[client.Object]cache.ByObject {
	shared := true
	return map[client.Object]cache.ByObject{
		namespaceMeta():               {Transform: slimNamespace, UnsafeDisableDeepCopy: &shared},
		&corev1.Node{}:                {Transform: slimNode, UnsafeDisableDeepCopy: &shared},
		&objects.PeerAuthentication{}: {Transform: slim, UnsafeDisableDeepCopy: &shared},
		&v1alpha1.MeshGuard{}:         {Transform: cache.TransformStripManagedFields()},
		&v1alpha1.GuardException{}:    {Transform: cache.TransformStripManagedFields()},
		&corev1.ConfigMap{}: {
			// A field selector rather than cache.Config by namespace: the latter
			// makes an informer that does not tell its progress.
			Field:     fields.OneTermEqualSelector("metadata.namespace", istioNamespace),
			Transform: slimConfigMap,
		},
		&admissionregistrationv1.MutatingWebhookConfiguration{}: {Transform: slimWebhooks},
	}
}

func namespaceMeta() *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return m
}

func slim(in any) (any, error) {
	if o, ok := in.(metav1.Object); ok {
		o.SetManagedFields(nil)
		o.SetAnnotations(nil)
		o.SetOwnerReferences(nil)
	}
	return in, nil
}

// slimNamespace keeps the one annotation that says which user proxies run as.
func slimNamespace(in any) (any, error) {
	const uidRange = "openshift.io/sa.scc.uid-range"
	o, ok := in.(metav1.Object)
	if !ok {
		return in, nil
	}
	value, has := o.GetAnnotations()[uidRange]
	out, err := slim(in)
	if has {
		o.SetAnnotations(map[string]string{uidRange: value})
	}
	return out, err
}

// slimWebhooks keeps of a configuration what leads to an injector.
func slimWebhooks(in any) (any, error) {
	if c, ok := in.(*admissionregistrationv1.MutatingWebhookConfiguration); ok {
		c.ManagedFields, c.Annotations = nil, nil
		c.Webhooks = slices.DeleteFunc(c.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool {
			return !strings.HasSuffix(w.Name, "sidecar-injector.istio.io")
		})
		for i := range c.Webhooks {
			c.Webhooks[i].ClientConfig = admissionregistrationv1.WebhookClientConfig{}
		}
	}
	return in, nil
}

func slimConfigMap(in any) (any, error) {
	if cm, ok := in.(*corev1.ConfigMap); ok {
		cm.ManagedFields, cm.Annotations, cm.BinaryData = nil, nil, nil
		if mesh.IsInjector(cm.Name, cm.Data) {
			// The templates in it are large; they are dropped by reading it once.
			config, values := mesh.SlimInjector(cm.Data)
			cm.Data = map[string]string{"config": config, "values": values}
			return in, nil
		}
		if mesh.IsControlPlane(cm.Name, cm.Data) {
			cm.Data = map[string]string{"mesh": cm.Data["mesh"]}
		} else {
			cm.Data = nil
		}
	}
	return in, nil
}

// unwrap returns the object of an informer event, also where the informer
// missed the deletion and only knows the last state.
func unwrap[T any](o any) (T, bool) {
	if d, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	t, ok := o.(T)
	return t, ok
}
