package cluster

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// pageSize bounds what one answer to a list of the whole cluster may hold.
const pageSize = 500

// Read returns the facts for a request. Pods are answered from the cache unless
// it may know less than the API server did when it chose to ask us:
//
//   - the cache does not know the namespace, or not that it is guarded, although
//     the API server only asks about guarded ones;
//   - the cached policies may be older than the labels that put the namespace
//     under its guard, so that a policy deleted just before that is still in them.
//
// Everything else is rare and read live.
func (s *Source) Read(ctx context.Context, r *facts.Review) (facts.Cluster, error) {
	if !s.Synced() {
		return facts.Cluster{}, ErrNotSynced
	}
	if !makesPods(r) {
		return s.ReadLive(ctx, r)
	}
	c, e, newest, err := s.index.around(r.Namespace)
	if err != nil {
		return facts.Cluster{}, err
	}
	c.Unguardable = s.unguardable()
	if e != nil && c.Guarded(r.Namespace, e.namespace.Labels) && (e.verified >= newest || s.policiesAsOf() >= newest) {
		return c, nil
	}
	return s.ReadLive(ctx, r)
}

// makesPods reports whether the request is about a pod or a template of pods: they
// come by the thousand, and rest on their namespace, the policies around it, and
// how sidecars are injected. The last may be some milliseconds old: a pod comes
// here with its sidecar in it, so what an old configuration could let pass is an
// image or a setting that the mesh itself gave all pods a moment ago.
func makesPods(r *facts.Review) bool {
	_, template := r.Object.(*facts.Workload)
	return template || r.Kind.Kind == "Pod"
}

// policiesAsOf is the revision up to which the cached policies are complete.
func (s *Source) policiesAsOf() uint64 {
	if p, ok := s.policies.(interface{ LastSyncResourceVersion() string }); ok {
		return revision(p.LastSyncResourceVersion())
	}
	return 0
}

// ReadLive returns the facts for a request by consistent reads of the API
// server: what any client was told before the request was sent is in them.
func (s *Source) ReadLive(ctx context.Context, r *facts.Review) (facts.Cluster, error) {
	if !s.Synced() {
		return facts.Cluster{}, ErrNotSynced
	}
	name := r.Namespace
	if r.Kind.Kind == "Namespace" {
		name = r.Name
	}
	cached, _, newest, err := s.index.around(name)
	if err != nil {
		return facts.Cluster{}, err
	}
	live := &liveRead{source: s, cluster: facts.Cluster{Unguardable: s.unguardable(), Live: true}}
	if err := live.guardsAndPlanes(ctx); err != nil {
		return facts.Cluster{}, err
	}
	roots := live.cluster.RootNamespaces()
	if slices.Contains(roots, name) && (r.Kind.Kind == "Namespace" || r.Kind.Kind == "PeerAuthentication") {
		err = live.everything(ctx)
	} else {
		err = live.around(ctx, name, roots)
	}
	if err == nil && r.Kind.Kind == "Namespace" && r.Operation == admissionv1.Update {
		err = live.pods(ctx, name)
	}
	if err != nil {
		return facts.Cluster{}, err
	}
	if slices.Equal(roots, cached.RootNamespaces()) && live.agrees() {
		s.index.verify(name, newest)
	}
	return live.cluster, nil
}

// liveRead gathers one live snapshot.
type liveRead struct {
	source  *Source
	cluster facts.Cluster
	// versions of the policies read, by namespace and name; only namespaces that
	// were read on their own.
	versions map[string]map[string]string
}

func (l *liveRead) guardsAndPlanes(ctx context.Context) error {
	var guards v1alpha1.MeshGuardList
	names := l.source.index.configMaps()
	maps := make([]*corev1.ConfigMap, len(names))
	var webhooks admissionregistrationv1.MutatingWebhookConfigurationList
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := l.source.cfg.Live.List(ctx, &webhooks); err != nil {
			return fmt.Errorf("list MutatingWebhookConfigurations: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		if err := l.source.cfg.Live.List(ctx, &guards); err != nil {
			return fmt.Errorf("list MeshGuards: %w", err)
		}
		return nil
	})
	for i, name := range names {
		group.Go(func() error {
			var cm corev1.ConfigMap
			key := client.ObjectKey{Namespace: l.source.cfg.IstioNamespace, Name: name}
			err := l.source.cfg.Live.Get(ctx, key, &cm)
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("get ConfigMap %s: %w", key, err)
			}
			maps[i] = &cm
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	l.cluster.Guards = l.source.guards(ctx, guards.Items)
	for i := range webhooks.Items {
		l.source.takeInjections(&webhooks.Items[i])
	}
	records := map[string]planeRecord{}
	for _, cm := range maps {
		if cm == nil {
			continue
		}
		if mesh.IsInjector(cm.Name, cm.Data) {
			l.source.takeInjector(cm)
		}
		if _, has := cm.Data["mesh"]; has {
			l.source.takePlane(cm)
			records[cm.Name] = l.source.plane(cm.Name)
		}
	}
	l.cluster.Injection = l.source.injectionNow(webhooks.Items, maps)
	var err error
	l.cluster.ControlPlanes, err = controlPlanes(records)
	return err
}

// injectionNow is how sidecars are injected by what was just read: the index has
// taken it, and may still hold what is gone by now.
func (s *Source) injectionNow(webhooks []admissionregistrationv1.MutatingWebhookConfiguration, configMaps []*corev1.ConfigMap) mesh.Injection {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	entries, injectors := map[string][]mesh.InjectionWebhook{}, map[string]mesh.Injector{}
	for i := range webhooks {
		if list := s.index.injections[webhooks[i].Name]; len(list) > 0 {
			entries[webhooks[i].Name] = list
		}
	}
	for _, cm := range configMaps {
		if cm == nil {
			continue
		}
		if injector, ok := s.index.injectors[cm.Name]; ok {
			injectors[cm.Name] = injector
		}
	}
	return injectionOf(entries, injectors)
}

// pods reads the pods that run in a namespace, for the judgement of its labels.
func (l *liveRead) pods(ctx context.Context, namespace string) error {
	ns := l.cluster.Namespaces[namespace]
	if ns == nil {
		return nil
	}
	with := *ns
	list := &corev1.PodList{}
	err := l.pages(ctx, list, func() {
		for i := range list.Items {
			pod := &list.Items[i]
			if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
				continue
			}
			pod.ManagedFields, pod.Status = nil, corev1.PodStatus{Phase: pod.Status.Phase}
			with.Pods = append(with.Pods, pod.DeepCopy())
		}
	}, client.InNamespace(namespace))
	l.cluster.Namespaces[namespace] = &with
	return err
}

// takePlane puts the settings of a control plane into the index.
func (s *Source) takePlane(cm *corev1.ConfigMap) {
	plane, err := mesh.ParseControlPlane(cm.Name, cm.Labels, cm.Data)
	if err != nil {
		err = fmt.Errorf("read ConfigMap %s/%s: %w", cm.Namespace, cm.Name, err)
		s.cfg.Log.Error("cannot read the settings of an Istio control plane; the last good ones stay", "error", err)
	}
	s.index.setPlane(cm.Name, plane, err)
}

func (s *Source) plane(configMap string) planeRecord {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	return s.index.planes[configMap]
}

// around reads one namespace, the mesh root namespaces and the policies in them.
func (l *liveRead) around(ctx context.Context, name string, roots []string) error {
	names := append([]string{name}, roots...)
	slices.Sort(names)
	names = slices.Compact(names)
	read := make([]*facts.Namespace, len(names))
	versions := make([]map[string]string, len(names))
	group, ctx := errgroup.WithContext(ctx)
	for i, name := range names {
		group.Go(func() error {
			m := namespaceMeta()
			err := l.source.cfg.Live.Get(ctx, client.ObjectKey{Name: name}, m)
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("get namespace %q: %w", name, err)
			}
			var list objects.PeerAuthenticationList
			if err := l.source.cfg.Live.List(ctx, &list, client.InNamespace(name)); err != nil {
				return fmt.Errorf("list PeerAuthentications in namespace %q: %w", name, err)
			}
			read[i] = namespaceOf(m)
			versions[i] = make(map[string]string, len(list.Items))
			for j := range list.Items {
				versions[i][list.Items[j].Name] = list.Items[j].ResourceVersion
				read[i].PeerAuthentications = append(read[i].PeerAuthentications, l.policy(&list.Items[j]))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	l.cluster.Namespaces = make(map[string]*facts.Namespace, len(names))
	l.versions = make(map[string]map[string]string, len(names))
	for i, ns := range read {
		if ns != nil {
			l.cluster.Namespaces[names[i]] = ns
		}
		l.versions[names[i]] = versions[i]
	}
	return nil
}

// agrees reports whether the cache holds exactly the policies that were read.
func (l *liveRead) agrees() bool {
	for namespace, versions := range l.versions {
		if !l.source.index.holds(namespace, versions) {
			return false
		}
	}
	return l.versions != nil
}

// everything reads all namespaces and all policies, page by page.
func (l *liveRead) everything(ctx context.Context) error {
	namespaces := map[string]*facts.Namespace{}
	var policies []*mesh.PeerAuthentication
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
		return l.pages(ctx, list, func() {
			for i := range list.Items {
				namespaces[list.Items[i].Name] = namespaceOf(&list.Items[i])
			}
		})
	})
	group.Go(func() error {
		list := &objects.PeerAuthenticationList{}
		return l.pages(ctx, list, func() {
			for i := range list.Items {
				policies = append(policies, l.policy(&list.Items[i]))
			}
		})
	})
	if err := group.Wait(); err != nil {
		return err
	}
	for _, p := range policies {
		if ns := namespaces[p.Namespace]; ns != nil {
			ns.PeerAuthentications = append(ns.PeerAuthentications, p)
		}
	}
	l.cluster.Namespaces = namespaces
	return nil
}

func (l *liveRead) pages(ctx context.Context, list client.ObjectList, take func(), options ...client.ListOption) error {
	next := ""
	for {
		if err := l.source.cfg.Live.List(ctx, list, append(options, client.Limit(pageSize), client.Continue(next))...); err != nil {
			return fmt.Errorf("list %T: %w", list, err)
		}
		take()
		if next = list.GetContinue(); next == "" {
			return nil
		}
	}
}

func (l *liveRead) policy(p *objects.PeerAuthentication) *mesh.PeerAuthentication {
	m, err := p.Mesh()
	if err != nil {
		l.source.cfg.Log.Error("a stored PeerAuthentication has a value that Istio's schema does not know; it counts as DISABLE", "namespace", p.Namespace, "name", p.Name, "error", err)
	}
	return m
}

func namespaceOf(m *metav1.PartialObjectMetadata) *facts.Namespace {
	return &facts.Namespace{Name: m.Name, Labels: m.Labels, Terminating: m.DeletionTimestamp != nil, ProxyUID: mesh.ProxyUID(m.Annotations)}
}
