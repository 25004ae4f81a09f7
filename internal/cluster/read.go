package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
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
// The node that a pod is put on, by a Binding or by its own word, is read live: what it
// is at that moment counts. Where a pod could land is told from the cache.
//
// Everything else is rare and read live.
func (s *Source) Read(ctx context.Context, r *facts.Review) (facts.Cluster, error) {
	if !s.Synced() {
		return facts.Cluster{}, ErrNotSynced
	}
	switch r.Kind.Kind {
	case "Node", "PersistentVolume":
		return s.readNode(ctx, r)
	}
	if !makesPods(r) {
		return s.ReadLive(ctx, r)
	}
	asOf := s.policiesAsOf() // before the look at the index
	c, e, newest, err := s.index.around(r.Namespace)
	if err != nil {
		return facts.Cluster{}, err
	}
	s.addCached(&c)
	if e != nil && c.Guarded(r.Namespace, e.namespace.Labels) && (e.verified >= newest || asOf >= newest && s.hasAllPolicies(&c, r.Namespace)) {
		s.addQuotas(ctx, r, &c)
		if r.Operation != admissionv1.Create {
			return c, nil
		}
		return c, s.addNode(ctx, r, &c)
	}
	return s.ReadLive(ctx, r)
}

// makesPods reports whether the request is about a pod, a template of pods, or the node
// of a pod: they come by the thousand.
//
// How sidecars are injected is not part of the trust test: the cached state of it
// may be some milliseconds old, and cannot let a pod stay out of the mesh. A final
// pod is judged by what is in it: without a proxy it is refused whatever the
// webhooks and their configuration say, and the refusal is confirmed live. What an
// old configuration can let pass is what it gave to all pods until just now: an
// image, a port left out of capture. Whoever changes it so that what was good must
// not come in any more has running pods that are no better, and rolls them anew. A
// template is let pass by a prediction; the pods that are made of it come here.
func makesPods(r *facts.Review) bool {
	_, template := r.Object.(*facts.Workload)
	return template || r.Kind.Kind == "Pod" || r.Kind.Kind == "Binding"
}

// policyStore is what the informer of PeerAuthentications holds, nil where it does not tell.
func (s *Source) policyStore() toolscache.Indexer {
	if p, ok := s.policies.(interface{ GetIndexer() toolscache.Indexer }); ok {
		return p.GetIndexer()
	}
	return nil
}

// policiesAsOf is the revision up to which the informer's store has the policies.
func (s *Source) policiesAsOf() uint64 {
	if store := s.policyStore(); store != nil {
		return revision(store.LastStoreSyncResourceVersion())
	}
	return 0
}

// hasAllPolicies reports whether c, which was read from the index, has the policies around a namespace as the informer's
// store has them now. An event is in the store, and counts as seen, before the index is told of it; in between, the index
// may still have a policy that was deleted before the namespace came under its guard.
func (s *Source) hasAllPolicies(c *facts.Cluster, namespace string) bool {
	store := s.policyStore()
	for _, name := range slices.Concat(c.RootNamespaces(), []string{namespace}) {
		list, err := store.ByIndex(toolscache.NamespaceIndex, name)
		if err != nil {
			return false
		}
		versions := make(map[string]string, len(list))
		for _, o := range list {
			if p, ok := o.(*objects.PeerAuthentication); ok {
				versions[p.Name] = p.ResourceVersion
			}
		}
		// In this order: what has not changed since c was read was the same when it was compared.
		if !s.index.holds(name, versions) || !s.index.unchanged(name, c.Namespaces[name]) {
			return false
		}
	}
	return true
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
	live := &liveRead{source: s, cluster: facts.Cluster{Live: true}}
	if err := live.settings(ctx); err != nil {
		return facts.Cluster{}, err
	}
	s.addCached(&live.cluster)
	live.cluster.NodesComplete = true // the one that matters is read below
	roots := live.cluster.RootNamespaces()
	all, pods := concernsAll(r, name, roots, s.cfg.IstioNamespace), live.needsPods(r)
	if all || pods {
		if err := s.lease(ctx); err != nil {
			return facts.Cluster{}, err
		}
	}
	if all {
		err = live.everything(ctx)
	} else {
		err = live.around(ctx, append([]string{name}, roots...), r.OtherNamespaces())
	}
	if err == nil && pods {
		err = live.pods(ctx, name)
	}
	if err == nil {
		err = errors.Join(s.addNode(ctx, r, &live.cluster), s.addBound(ctx, r, &live.cluster))
	}
	if err != nil {
		return facts.Cluster{}, err
	}
	if slices.Equal(roots, cached.RootNamespaces()) && live.agrees() {
		s.index.verify(name, newest)
	}
	s.addQuotas(ctx, r, &live.cluster)
	return live.cluster, nil
}

// concernsAll reports whether the request can change what holds in any namespace: a
// policy of a root namespace and its labels, by which control planes may not read
// its policies, the settings of Istio, and a guard. Other objects in a root namespace concern
// the namespaces that they name.
func concernsAll(r *facts.Review, namespace string, roots []string, istioNamespace string) bool {
	switch r.Kind.Kind {
	case "Namespace", "PeerAuthentication":
		return slices.Contains(roots, namespace)
	case "ConfigMap":
		return namespace == istioNamespace
	case "MeshGuard":
		return true
	}
	return false
}

// liveRead gathers one live snapshot.
type liveRead struct {
	source  *Source
	cluster facts.Cluster
	// versions of the policies read, by namespace and name; only namespaces that
	// were read on their own.
	versions map[string]map[string]string
}

// settings reads the guards, and what Istio's objects say about its control planes
// and about injection.
func (l *liveRead) settings(ctx context.Context) error {
	var guards v1alpha1.MeshGuardList
	var webhooks admissionregistrationv1.MutatingWebhookConfigurationList
	f := newFound()
	names := l.source.index.configMaps()
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.list(groupCtx, &guards) })
	group.Go(func() error { return l.list(groupCtx, &webhooks) })
	group.Go(func() error { return l.configMaps(groupCtx, f, names) })
	if err := group.Wait(); err != nil {
		return err
	}
	l.cluster.Guards = l.source.guards(ctx, guards.Items)
	var more []string
	for i := range webhooks.Items {
		w := &webhooks.Items[i]
		list, err := mesh.ParseInjectionWebhooks(w)
		note(f.webhooks, w.Name, w.ResourceVersion, len(list) > 0 || err != nil, list, err)
		for j := range list {
			more = append(more, configMapsOf(list[j].Revision)...)
		}
	}
	// A revision that was installed a moment ago, of which no watch has told yet.
	slices.Sort(more)
	more = slices.DeleteFunc(slices.Compact(more), func(name string) bool { return slices.Contains(names, name) })
	if err := l.configMaps(ctx, f, more); err != nil {
		return err
	}
	l.source.index.live(f)
	var err error
	if l.cluster.Injection, err = injectionOf(f.webhooks, f.injectors); err != nil && needsInjection(l.cluster.Guards) {
		return err
	}
	l.cluster.ControlPlanes, err = controlPlanes(f.planes)
	return err
}

func (l *liveRead) list(ctx context.Context, list client.ObjectList) error {
	if err := l.source.cfg.Live.List(ctx, list); err != nil {
		return fmt.Errorf("list %T: %w", list, err)
	}
	return nil
}

// configMapsOf are the names that the chart of Istio gives to the ConfigMaps of a
// revision.
func configMapsOf(revision string) []string {
	if revision == mesh.DefaultControlPlane().Revision {
		return []string{"istio", "istio-sidecar-injector"}
	}
	return []string{"istio-" + revision, "istio-sidecar-injector-" + revision}
}

// configMaps reads those of the named ConfigMaps that are there.
func (l *liveRead) configMaps(ctx context.Context, f *found, names []string) error {
	read := make([]*corev1.ConfigMap, len(names))
	group, ctx := errgroup.WithContext(ctx)
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
			read[i] = &cm
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, cm := range read {
		if cm == nil {
			continue
		}
		plane, isPlane, errPlane := l.source.planeIn(cm)
		note(f.planes, cm.Name, cm.ResourceVersion, isPlane, plane, errPlane)
		f.planes.readFrom(cm.Name, cm)
		injector, isInjector, errInjector := l.source.injectorIn(cm)
		note(f.injectors, cm.Name, cm.ResourceVersion, isInjector, injector, errInjector)
	}
	return nil
}

// planeIn returns the settings of the control plane in a ConfigMap, if there are any.
func (s *Source) planeIn(cm *corev1.ConfigMap) (plane mesh.ControlPlane, has bool, err error) {
	if !mesh.IsControlPlane(cm.Name, cm.Data) {
		return mesh.ControlPlane{}, false, nil
	}
	if plane, err = mesh.ParseControlPlane(cm.Name, cm.Labels, cm.Data); err != nil {
		err = fmt.Errorf("read ConfigMap %s/%s: %w", cm.Namespace, cm.Name, err)
		s.cfg.Log.Error("cannot read the settings of an Istio control plane; the last good ones stay", "error", err)
	}
	return plane, true, err
}

// injectorIn returns the configuration of the injector in a ConfigMap, if there is one.
func (s *Source) injectorIn(cm *corev1.ConfigMap) (injector mesh.Injector, has bool, err error) {
	if !mesh.IsInjector(cm.Name, cm.Data) {
		return mesh.Injector{}, false, nil
	}
	if injector, err = mesh.ParseInjector(cm.Name, cm.Labels, cm.Data); err != nil {
		err = fmt.Errorf("read ConfigMap %s/%s: %w", cm.Namespace, cm.Name, err)
		s.cfg.Log.Error("cannot read the configuration of an Istio injector; the last good one stays", "error", err)
	}
	return injector, true, err
}

// around reads the inner namespaces with the policies in them, and of the others
// that they are there and how they are labelled.
func (l *liveRead) around(ctx context.Context, inner, others []string) error {
	names := slices.Concat(inner, others)
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
			read[i] = namespaceOf(m)
			if !slices.Contains(inner, name) {
				return nil
			}
			if read[i].Exceptions, err = l.exceptions(ctx, name); err != nil {
				return err
			}
			var list objects.PeerAuthenticationList
			if err := l.source.cfg.Live.List(ctx, &list, client.InNamespace(name)); err != nil {
				return fmt.Errorf("list PeerAuthentications in namespace %q: %w", name, err)
			}
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
		if slices.Contains(inner, names[i]) {
			l.versions[names[i]] = versions[i]
		}
	}
	return nil
}

// exceptions reads the GuardExceptions of a namespace.
func (l *liveRead) exceptions(ctx context.Context, namespace string) ([]*facts.Exception, error) {
	var list v1alpha1.GuardExceptionList
	if err := l.source.cfg.Live.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list GuardExceptions in namespace %q: %w", namespace, err)
	}
	var exceptions []*facts.Exception
	for i := range list.Items {
		if e := l.source.exception(&list.Items[i]); e != nil {
			exceptions = append(exceptions, e)
		}
	}
	slices.SortFunc(exceptions, func(a, b *facts.Exception) int { return strings.Compare(a.Name, b.Name) })
	return exceptions, nil
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
	defer l.source.ReturnMemory()
	namespaces := map[string]*facts.Namespace{}
	var policies []*mesh.PeerAuthentication
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
		return l.pages(ctx, list, func() error {
			for i := range list.Items {
				namespaces[list.Items[i].Name] = namespaceOf(&list.Items[i])
			}
			return nil
		})
	})
	group.Go(func() error {
		list := &objects.PeerAuthenticationList{}
		return l.pages(ctx, list, func() error {
			for i := range list.Items {
				policies = append(policies, l.policy(&list.Items[i]))
			}
			return nil
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

func (l *liveRead) pages(ctx context.Context, list client.ObjectList, take func() error, options ...client.ListOption) error {
	next := ""
	for {
		if err := l.source.cfg.Live.List(ctx, list, append([]client.ListOption{client.Limit(pageSize), client.Continue(next)}, options...)...); err != nil {
			return fmt.Errorf("list %T: %w", list, err)
		}
		if err := take(); err != nil {
			return err
		}
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
