package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/pager"

	"github.com/meshvakt/meshvakt/internal/check"
)

const (
	// pageSize bounds what one answer of the API server may hold.
	pageSize = 500
	// attempts is how often reading a kind is begun.
	attempts = 3
	// atOnce is how many kinds are read at the same time.
	atOnce = 4
)

// DefaultIstioNamespace is where istiod's ConfigMaps usually are.
const DefaultIstioNamespace = "istio-system"

// Read takes a snapshot with the rights of the configuration's user. A kind that the
// cluster does not have is no error, and neither is a right that is missing, by itself:
// all that could be read is returned, and Snapshot.Complete tells the rest. now is when
// the snapshot is taken. progress, if it is not nil, is told how many objects have been
// read; it may be called by several goroutines, one after the other.
func Read(ctx context.Context, config *rest.Config, istioNamespace string, now time.Time, progress func(objects int)) (*Snapshot, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create the client: %w", err)
	}
	server, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create the client: %w", err)
	}
	r := &reading{client: client, server: server, progress: progress, found: map[schema.GroupKind][]check.Document{}}
	version, err := server.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("ask the API server for its version: %w", err)
	}
	r.result.Taken, r.result.Kubernetes = now.UTC().Truncate(time.Second), version.GitVersion
	list := kinds(cmp.Or(istioNamespace, DefaultIstioNamespace))
	if err := r.kind(ctx, list[0]); err != nil {
		return nil, err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, k := range list[1:] {
		group.Go(func() error { return r.kind(groupCtx, k) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return r.snapshot(list), nil
}

// reading is a snapshot in the making.
type reading struct {
	client dynamic.Interface
	server discovery.DiscoveryInterface
	// progress is called with mu held.
	progress func(objects int)

	mu     sync.Mutex
	read   int                                   // guarded by mu
	result Snapshot                              // guarded by mu
	found  map[schema.GroupKind][]check.Document // guarded by mu
}

// kind reads all objects of a kind.
func (r *reading) kind(ctx context.Context, k kind) error {
	version, err := r.served(k)
	if err != nil {
		return err
	}
	if version == "" {
		r.absent(k)
		return nil
	}
	var docs []check.Document
	for range attempts {
		docs, err = r.list(ctx, k, version)
		// The API server keeps what it has begun to list for some minutes only.
		if !apierrors.IsResourceExpired(err) {
			break
		}
	}
	switch {
	case apierrors.IsForbidden(err):
		r.missing(Right{Verb: "list", Group: k.Group, Resource: k.resource, Namespace: k.namespace})
		return nil
	case apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err):
		r.absent(k)
		return nil
	case err != nil:
		return fmt.Errorf("list %s: %w", schema.GroupResource{Group: k.Group, Resource: k.resource}, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found[k.GroupKind] = docs
	return nil
}

// list reads the objects of a kind page by page.
func (r *reading) list(ctx context.Context, k kind, version string) ([]check.Document, error) {
	resource := schema.GroupVersionResource{Group: k.Group, Version: version, Resource: k.resource}
	var docs []check.Document
	pages := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		return r.client.Resource(resource).Namespace(k.namespace).List(ctx, o)
	})
	pages.PageSize = pageSize
	err := pages.EachListItem(ctx, metav1.ListOptions{}, func(o runtime.Object) error {
		object, ok := o.(*unstructured.Unstructured)
		if !ok {
			return fmt.Errorf("got a %T", o)
		}
		r.count()
		d, err := document(k.WithVersion(version), object)
		if err == nil && d != nil {
			docs = append(docs, *d)
		}
		return err
	})
	return docs, err
}

// served returns the first version of the kind that the API server has, "" without any.
// It is asked beforehand, since who may not list a kind is told so whether there is such
// a kind or not.
func (r *reading) served(k kind) (string, error) {
	for _, v := range k.versions {
		list, err := r.server.ServerResourcesForGroupVersion(schema.GroupVersion{Group: k.Group, Version: v}.String())
		switch {
		case apierrors.IsNotFound(err):
			continue
		case apierrors.IsForbidden(err):
			return v, nil
		case err != nil:
			return "", fmt.Errorf("ask the API server for its kinds in %s: %w", cmp.Or(k.Group, "core")+"/"+v, err)
		}
		if slices.ContainsFunc(list.APIResources, func(a metav1.APIResource) bool { return a.Name == k.resource }) {
			return v, nil
		}
	}
	return "", nil
}

func (r *reading) count() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read++
	if r.progress != nil {
		r.progress(r.read)
	}
}

func (r *reading) absent(k kind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Absent = append(r.result.Absent, k.String())
}

func (r *reading) missing(right Right) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Missing = append(r.result.Missing, right)
}

// snapshot puts together what was read: in the order of the kinds, then by name, without
// what is in namespaces that were gone already, or not there yet, when they were read.
func (r *reading) snapshot(list []kind) *Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.result
	slices.Sort(s.Absent)
	slices.SortFunc(s.Missing, func(a, b Right) int { return strings.Compare(a.String(), b.String()) })
	namespaces := map[string]bool{}
	for i := range r.found[list[0].GroupKind] {
		namespaces[r.found[list[0].GroupKind][i].Name] = true
	}
	for _, k := range list {
		docs := slices.DeleteFunc(r.found[k.GroupKind], func(d check.Document) bool { return d.Namespace != "" && !namespaces[d.Namespace] })
		slices.SortFunc(docs, func(a, b check.Document) int {
			return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
		})
		s.Documents = append(s.Documents, docs...)
	}
	withoutNames(s.Documents)
	return s
}
