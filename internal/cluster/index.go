package cluster

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// index is the cached state by namespace. Every value it hands out is replaced,
// never changed, when the cluster changes: readers hold no lock.
type index struct {
	mu            sync.RWMutex
	namespaces    map[string]*entry // guarded by mu
	guards        []facts.Guard     // guarded by mu; sorted by name
	guardsChanged uint64            // guarded by mu; revision of the newest change of a guard's spec

	planes    records[mesh.ControlPlane]       // guarded by mu; by ConfigMap name
	injectors records[mesh.Injector]           // guarded by mu; by ConfigMap name
	webhooks  records[[]mesh.InjectionWebhook] // guarded by mu; by configuration
	// injection is what webhooks and injectors come to, and injectionErr why that
	// is not known.
	injection    mesh.Injection // guarded by mu
	injectionErr error          // guarded by mu
}

// entry is one namespace. It exists without the namespace itself when a policy
// in it was heard of first.
type entry struct {
	namespace *facts.Namespace
	exists    bool
	// uid and version are of the Namespace as it was seen last.
	uid, version string
	// labelled is the revision at which the labels were last seen to change.
	labelled uint64
	// policies are those in the namespace with their versions, sorted by name. Most namespaces have one
	// or none, for which a map would take several times as much memory as what is in it.
	policies []policyRecord
	// exceptions are the GuardExceptions of the namespace, by name.
	exceptions map[string]*facts.Exception
	// verified is the value of labelled for which a live read has shown the
	// cached policies to be complete.
	verified uint64
}

type policyRecord struct {
	policy  *mesh.PeerAuthentication
	version string
}

// find is where the policy of that name is among those of the namespace, or belongs.
func (e *entry) find(policy string) (at int, found bool) {
	return slices.BinarySearchFunc(e.policies, policy, func(r policyRecord, name string) int { return strings.Compare(r.policy.Name, name) })
}

func newIndex() *index {
	return &index{
		namespaces: map[string]*entry{},
		planes:     records[mesh.ControlPlane]{},
		injectors:  records[mesh.Injector]{},
		webhooks:   records[[]mesh.InjectionWebhook]{},
	}
}

// revision reads a resourceVersion, which the API server defines as a decimal
// number that grows with every change of the cluster; 0 when it is not one.
func revision(version string) uint64 {
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// change replaces the entry of a namespace by an edited copy; entries about
// which nothing is known any more are dropped.
func (x *index) change(name string, edit func(*entry)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	next := entry{namespace: &facts.Namespace{Name: name}}
	if old := x.namespaces[name]; old != nil {
		next = *old
		ns := *old.namespace
		next.namespace = &ns
	}
	edit(&next)
	if !next.exists && len(next.policies) == 0 && len(next.exceptions) == 0 {
		delete(x.namespaces, name)
		return
	}
	x.namespaces[name] = &next
}

func (x *index) meetNamespace(ns *metav1.PartialObjectMetadata) {
	x.change(ns.Name, func(e *entry) {
		if !e.exists || !maps.Equal(e.namespace.Labels, ns.Labels) {
			e.labelled = revision(ns.ResourceVersion)
		}
		e.exists, e.uid, e.version = true, string(ns.UID), ns.ResourceVersion
		e.namespace.Labels = ns.Labels
		e.namespace.ProxyUID = mesh.ProxyUID(ns.Annotations)
		e.namespace.Terminating = ns.DeletionTimestamp != nil
	})
}

func (x *index) removeNamespace(name string) {
	x.change(name, func(e *entry) { e.exists, e.namespace.Labels = false, nil })
}

func (x *index) setPolicy(p *mesh.PeerAuthentication, version string) {
	x.change(p.Namespace, func(e *entry) {
		at, found := e.find(p.Name)
		next := make([]policyRecord, 0, len(e.policies)+1) // readers have the old one
		next = append(append(next, e.policies[:at]...), policyRecord{p, version})
		if found {
			at++
		}
		e.policies = append(next, e.policies[at:]...)
		e.list()
	})
}

func (x *index) removePolicy(namespace, name string) {
	x.change(namespace, func(e *entry) {
		if at, found := e.find(name); found {
			e.policies = slices.Delete(slices.Clone(e.policies), at, at+1)
		}
		e.list()
	})
}

func (x *index) setException(exception *facts.Exception) {
	x.change(exception.Namespace, func(e *entry) {
		e.exceptions = maps.Clone(e.exceptions)
		if e.exceptions == nil {
			e.exceptions = map[string]*facts.Exception{}
		}
		e.exceptions[exception.Name] = exception
		e.listExceptions()
	})
}

func (x *index) removeException(namespace, name string) {
	x.change(namespace, func(e *entry) {
		e.exceptions = maps.Clone(e.exceptions)
		delete(e.exceptions, name)
		e.listExceptions()
	})
}

func (e *entry) listExceptions() {
	e.namespace.Exceptions = make([]*facts.Exception, 0, len(e.exceptions))
	for _, name := range slices.Sorted(maps.Keys(e.exceptions)) {
		e.namespace.Exceptions = append(e.namespace.Exceptions, e.exceptions[name])
	}
}

// list rebuilds the policies of the namespace, in an order that does not depend
// on the order of events.
func (e *entry) list() {
	e.namespace.PeerAuthentications = make([]*mesh.PeerAuthentication, 0, len(e.policies))
	for i := range e.policies {
		e.namespace.PeerAuthentications = append(e.namespace.PeerAuthentications, e.policies[i].policy)
	}
}

// setGuards takes the guards as they are now. changed is the revision of the
// newest change of a spec.
func (x *index) setGuards(guards []facts.Guard, changed uint64) {
	slices.SortFunc(guards, func(a, b facts.Guard) int { return strings.Compare(a.Name, b.Name) })
	x.mu.Lock()
	defer x.mu.Unlock()
	x.guards, x.guardsChanged = guards, max(x.guardsChanged, changed)
}

// meetPlane takes the settings of a control plane.
func (x *index) meetPlane(cm *corev1.ConfigMap, plane mesh.ControlPlane, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.planes.set(cm.Name, cm.ResourceVersion, plane, err)
	x.planes.readFrom(cm.Name, cm)
}

// removePlane reports whether there was one.
func (x *index) removePlane(configMap, version string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.planes.remove(configMap, version)
}

// setInjector takes the configuration of an injector.
func (x *index) setInjector(configMap, version string, i mesh.Injector, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.injectors.set(configMap, version, i, err)
	x.inject()
}

// removeInjector reports whether there was one.
func (x *index) removeInjector(configMap, version string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	defer x.inject()
	return x.injectors.remove(configMap, version)
}

// setWebhooks takes the entries of a MutatingWebhookConfiguration that lead to an
// injector, and reports whether there are any or were. Most configurations have
// none, and leave no record.
func (x *index) setWebhooks(configuration, version string, list []mesh.InjectionWebhook, err error) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	defer x.inject()
	if len(list) == 0 && err == nil {
		return x.webhooks.remove(configuration, version)
	}
	x.webhooks.set(configuration, version, list, err)
	return true
}

// removeWebhooks reports whether there were any.
func (x *index) removeWebhooks(configuration, version string) bool {
	return x.setWebhooks(configuration, version, nil, nil)
}

// inject is called with mu held.
func (x *index) inject() { x.injection, x.injectionErr = injectionOf(x.webhooks, x.injectors) }

// live exchanges what is newer with what a live read has found.
func (x *index) live(f *found) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f.planes.meet(x.planes)
	f.injectors.meet(x.injectors)
	f.webhooks.meet(x.webhooks)
	x.inject()
}

// configMaps returns the names of the ConfigMaps with settings of control planes
// and injectors, and always "istio" and "istio-sidecar-injector".
func (x *index) configMaps() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	names := append([]string{"istio", "istio-sidecar-injector"}, x.planes.names()...)
	names = append(names, x.injectors.names()...)
	slices.Sort(names)
	return slices.Compact(names)
}

// settings returns the control planes, and an error when they, or what decides
// about injection, are not known. It is called with mu held.
func (x *index) settings() ([]mesh.ControlPlane, error) {
	if x.injectionErr != nil && needsInjection(x.guards) {
		return nil, x.injectionErr
	}
	return controlPlanes(x.planes)
}

// around returns the part of the state that pods of a namespace meet, and the
// entry of that namespace, nil when the namespace is not known.
func (x *index) around(name string) (facts.Cluster, *entry, uint64, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	planes, err := x.settings()
	if err != nil {
		return facts.Cluster{}, nil, 0, err
	}
	c := facts.Cluster{ControlPlanes: planes, Guards: x.guards, Injection: x.injection, Namespaces: make(map[string]*facts.Namespace, 1+len(planes))}
	newest := x.guardsChanged
	for i := range planes {
		root := planes[i].RootNamespace
		if e := x.namespaces[root]; e != nil && e.exists {
			c.Namespaces[root] = e.namespace
			if len(planes[i].DiscoverySelectors) > 0 {
				newest = max(newest, e.labelled)
			}
		}
	}
	e := x.namespaces[name]
	if e == nil || !e.exists {
		return c, nil, newest, nil
	}
	c.Namespaces[name] = e.namespace
	return c, e, max(newest, e.labelled), nil
}

// all returns the whole cached state.
func (x *index) all() (facts.Cluster, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	planes, err := x.settings()
	if err != nil {
		return facts.Cluster{}, err
	}
	c := facts.Cluster{ControlPlanes: planes, Guards: x.guards, Injection: x.injection, Namespaces: make(map[string]*facts.Namespace, len(x.namespaces))}
	for name, e := range x.namespaces {
		if e.exists {
			c.Namespaces[name] = e.namespace
		}
	}
	return c, nil
}

// holds reports whether the cached policies of a namespace are exactly these, by
// name and version.
func (x *index) holds(namespace string, versions map[string]string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e := x.namespaces[namespace]
	if e == nil {
		return len(versions) == 0
	}
	if len(e.policies) != len(versions) {
		return false
	}
	for _, r := range e.policies {
		if versions[r.policy.Name] != r.version {
			return false
		}
	}
	return true
}

// unchanged reports whether the namespace is still what was read of it, nil for one that is not there: entries are replaced,
// never changed.
func (x *index) unchanged(name string, since *facts.Namespace) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if e := x.namespaces[name]; e != nil && e.exists {
		return e.namespace == since
	}
	return since == nil
}

// verify notes that the cached policies around a namespace were complete at the
// given revision.
func (x *index) verify(name string, at uint64) {
	x.change(name, func(e *entry) { e.verified = max(e.verified, at) })
}
