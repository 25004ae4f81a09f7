package cluster

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// index is the cached state by namespace. Every value it hands out is replaced,
// never changed, when the cluster changes: readers hold no lock.
type index struct {
	mu            sync.RWMutex
	namespaces    map[string]*entry      // guarded by mu
	guards        []facts.Guard          // guarded by mu; sorted by name
	guardsChanged uint64                 // guarded by mu; revision of the newest change of a guard's spec
	planes        map[string]planeRecord // guarded by mu; by ConfigMap name

	injectors  map[string]mesh.Injector           // guarded by mu; by ConfigMap name
	injections map[string][]mesh.InjectionWebhook // guarded by mu; by configuration
	injection  mesh.Injection                     // guarded by mu; both of them, in order
}

// entry is one namespace. It exists without the namespace itself when a policy
// in it was heard of first.
type entry struct {
	namespace *facts.Namespace
	exists    bool
	// labelled is the revision at which the labels were last seen to change.
	labelled uint64
	// policies are the versions of the policies in the namespace, by name.
	policies map[string]policyRecord
	// verified is the value of labelled for which a live read has shown the
	// cached policies to be complete.
	verified uint64
}

type policyRecord struct {
	policy  *mesh.PeerAuthentication
	version string
}

type planeRecord struct {
	plane mesh.ControlPlane
	err   error
}

func newIndex() *index {
	return &index{
		namespaces: map[string]*entry{},
		planes:     map[string]planeRecord{},
		injectors:  map[string]mesh.Injector{},
		injections: map[string][]mesh.InjectionWebhook{},
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
	if !next.exists && len(next.policies) == 0 {
		delete(x.namespaces, name)
		return
	}
	x.namespaces[name] = &next
}

func (x *index) setNamespace(name string, labels map[string]string, proxyUID int64, terminating bool, version string) {
	x.change(name, func(e *entry) {
		if !e.exists || !maps.Equal(e.namespace.Labels, labels) {
			e.labelled = revision(version)
		}
		e.exists = true
		e.namespace.Labels = labels
		e.namespace.ProxyUID = proxyUID
		e.namespace.Terminating = terminating
	})
}

func (x *index) removeNamespace(name string) {
	x.change(name, func(e *entry) { e.exists, e.namespace.Labels = false, nil })
}

func (x *index) setPolicy(p *mesh.PeerAuthentication, version string) {
	x.change(p.Namespace, func(e *entry) {
		e.policies = maps.Clone(e.policies)
		if e.policies == nil {
			e.policies = map[string]policyRecord{}
		}
		e.policies[p.Name] = policyRecord{p, version}
		e.list()
	})
}

func (x *index) removePolicy(namespace, name string) {
	x.change(namespace, func(e *entry) {
		e.policies = maps.Clone(e.policies)
		delete(e.policies, name)
		e.list()
	})
}

// list rebuilds the policies of the namespace, in an order that does not depend
// on the order of events.
func (e *entry) list() {
	e.namespace.PeerAuthentications = make([]*mesh.PeerAuthentication, 0, len(e.policies))
	for _, name := range slices.Sorted(maps.Keys(e.policies)) {
		e.namespace.PeerAuthentications = append(e.namespace.PeerAuthentications, e.policies[name].policy)
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

// setPlane takes the settings of a control plane. Settings that cannot be read
// do not replace those that could: istiod goes on with the last good ones too.
func (x *index) setPlane(configMap string, plane mesh.ControlPlane, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if was, ok := x.planes[configMap]; ok && was.err == nil && err != nil {
		return
	}
	x.planes[configMap] = planeRecord{plane, err}
}

// removePlane reports whether there was one.
func (x *index) removePlane(configMap string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, was := x.planes[configMap]
	delete(x.planes, configMap)
	return was
}

// setInjector takes the configuration of an injector; nil takes it away. One that
// cannot be read does not come here: istiod goes on with the last good one too.
func (x *index) setInjector(configMap string, i *mesh.Injector) (changed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, was := x.injectors[configMap]
	delete(x.injectors, configMap)
	if i != nil {
		x.injectors[configMap] = *i
	}
	x.injection = injectionOf(x.injections, x.injectors)
	return was || i != nil
}

// setInjections takes the entries of a MutatingWebhookConfiguration that lead to an
// injector; none takes them away.
func (x *index) setInjections(configuration string, list []mesh.InjectionWebhook) (changed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, was := x.injections[configuration]
	delete(x.injections, configuration)
	if len(list) > 0 {
		x.injections[configuration] = list
	}
	x.injection = injectionOf(x.injections, x.injectors)
	return was || len(list) > 0
}

// injectionOf puts the webhooks into the order in which the API server calls them,
// that of the names of their configurations.
func injectionOf(webhooks map[string][]mesh.InjectionWebhook, injectors map[string]mesh.Injector) mesh.Injection {
	var i mesh.Injection
	for _, name := range slices.Sorted(maps.Keys(webhooks)) {
		i.Webhooks = append(i.Webhooks, webhooks[name]...)
	}
	for _, name := range slices.Sorted(maps.Keys(injectors)) {
		i.Injectors = append(i.Injectors, injectors[name])
	}
	return i
}

// controlPlanes returns the control planes of the records, sorted by ConfigMap
// name; Istio's defaults when there are none. It errs when one of them cannot be
// read: what Istio does with its namespaces is then unknown.
func controlPlanes(records map[string]planeRecord) ([]mesh.ControlPlane, error) {
	if len(records) == 0 {
		return []mesh.ControlPlane{mesh.DefaultControlPlane()}, nil
	}
	list := make([]mesh.ControlPlane, 0, len(records))
	for _, name := range slices.Sorted(maps.Keys(records)) {
		if err := records[name].err; err != nil {
			return nil, err
		}
		list = append(list, records[name].plane)
	}
	return list, nil
}

// configMaps returns the names of the ConfigMaps with settings of control planes
// and injectors, and always "istio" and "istio-sidecar-injector".
func (x *index) configMaps() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	names := slices.AppendSeq([]string{"istio", "istio-sidecar-injector"}, maps.Keys(x.planes))
	names = slices.AppendSeq(names, maps.Keys(x.injectors))
	slices.Sort(names)
	return slices.Compact(names)
}

// around returns the part of the state that pods of a namespace meet, and the
// entry of that namespace, nil when the namespace is not known.
func (x *index) around(name string) (facts.Cluster, *entry, uint64, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	planes, err := controlPlanes(x.planes)
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
	planes, err := controlPlanes(x.planes)
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
	for name, r := range e.policies {
		if versions[name] != r.version {
			return false
		}
	}
	return true
}

// verify notes that the cached policies around a namespace were complete at the
// given revision.
func (x *index) verify(name string, at uint64) {
	x.change(name, func(e *entry) { e.verified = max(e.verified, at) })
}
