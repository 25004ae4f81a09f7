package cluster

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// records are the settings of Istio in objects of one kind, by the objects' names.
//
// Watches and live reads both fill them. A watch tells the truth in order, if
// late, so what it says always counts; a live read may have been overtaken by the
// watch while its answer travelled, and then must not put back what has changed or
// gone since. Hence the version, and hence a record of what is gone.
type records[T any] map[string]record[T]

type record[T any] struct {
	value   T
	err     error  // value is not known
	version uint64 // of the object, 0 when that is not known
	gone    bool
	// object is what it was read from, nil where nobody asks for that.
	object *corev1.ConfigMap
}

// readFrom notes what the record of a name was read from.
func (r records[T]) readFrom(name string, object *corev1.ConfigMap) {
	of := r[name]
	of.object = object
	r[name] = of
}

// set takes what an object says now. What cannot be read does not replace what
// could: istiod goes on with the last good settings too.
func (r records[T]) set(name, version string, value T, err error) {
	next := record[T]{value: value, err: err, version: revision(version)}
	if was, ok := r[name]; ok && !was.gone && was.err == nil && err != nil {
		next.value, next.err = was.value, nil
	}
	r[name] = next
}

// remove reports whether there was a record. What nobody has heard of needs none.
func (r records[T]) remove(name, version string) bool {
	was, ok := r[name]
	if !ok {
		return false
	}
	r[name] = record[T]{version: max(was.version, revision(version)), gone: true}
	return !was.gone
}

// meet gives to known what is newer here, and takes from it what is newer there or
// cannot be read here.
func (r records[T]) meet(known records[T]) {
	for name, read := range r {
		was, ok := known[name]
		if !ok && read.gone {
			continue
		}
		if !ok || read.version > was.version {
			if read.err != nil && ok && !was.gone && was.err == nil {
				read.value, read.err = was.value, nil
			}
			known[name] = read
		}
		r[name] = known[name]
	}
}

// names returns the names of what is there, sorted.
func (r records[T]) names() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(r)), func(name string) bool { return r[name].gone })
}

// values returns what is there, sorted by name.
func (r records[T]) values() ([]T, error) {
	names := r.names()
	list := make([]T, 0, len(names))
	for _, name := range names {
		if err := r[name].err; err != nil {
			return nil, err
		}
		list = append(list, r[name].value)
	}
	return list, nil
}

// controlPlanes returns the control planes of the records; Istio's defaults when
// there are none. It errs when one of them cannot be read: what Istio does with
// its namespaces is then unknown.
func controlPlanes(r records[mesh.ControlPlane]) ([]mesh.ControlPlane, error) {
	list, err := r.values()
	if err == nil && len(list) == 0 {
		list = []mesh.ControlPlane{mesh.DefaultControlPlane()}
	}
	return list, err
}

// injectionOf puts the webhooks into the order in which the API server calls them,
// that of the names of their configurations. It errs when something cannot be read
// and never could: which pods get a sidecar, and of which image, is then unknown.
func injectionOf(webhooks records[[]mesh.InjectionWebhook], injectors records[mesh.Injector]) (mesh.Injection, error) {
	lists, err := webhooks.values()
	if err != nil {
		return mesh.Injection{}, err
	}
	i := mesh.Injection{Webhooks: slices.Concat(lists...)}
	if i.Injectors, err = injectors.values(); err != nil {
		return mesh.Injection{}, err
	}
	return i, nil
}

// needsInjection reports whether any guard judges by how sidecars are injected.
func needsInjection(guards []facts.Guard) bool {
	return slices.ContainsFunc(guards, func(g facts.Guard) bool {
		return g.MeshMembership != nil || g.SidecarResources != nil || g.NodePools != nil
	})
}

// found is what a live read has found of Istio's settings.
type found struct {
	planes    records[mesh.ControlPlane]
	injectors records[mesh.Injector]
	webhooks  records[[]mesh.InjectionWebhook]
}

func newFound() *found {
	return &found{records[mesh.ControlPlane]{}, records[mesh.Injector]{}, records[[]mesh.InjectionWebhook]{}}
}

// note takes what a live read says of one object: that it has the value, that this
// cannot be read, or, unless has, that there is none in the object.
func note[T any](r records[T], name, version string, has bool, value T, err error) {
	r[name] = record[T]{value: value, err: err, version: revision(version), gone: !has}
}
