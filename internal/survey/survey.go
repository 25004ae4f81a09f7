package survey

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/preflight"
)

// atOnce is how many requests are under way at the same time.
const atOnce = 4

// Options say what to look at.
type Options struct {
	Names preflight.Names
	// Namespaces are those whose objects are judged; empty: all.
	Namespaces []string
	// Guards are judged by in place of those of the cluster, and Source says where they
	// come from. Guard, when it is not empty, picks one of the cluster's.
	Guards []v1alpha1.MeshGuard
	Source string
	Guard  string
	// Deny judges by the guards as if they denied.
	Deny bool
	Now  time.Time
	// Lacking, unless nil, is told of the rights that the user lacks as soon as they are
	// known, and Judged of every so many objects.
	Lacking func([]preflight.Right)
	Judged  func(kind string, n int)
}

// ErrNoNamespace says that a namespace to look at is not there.
var ErrNoNamespace = errors.New("there is no such namespace")

// ErrNoGuard says that the guard to judge by is not in the cluster.
var ErrNoGuard = errors.New("there is no such MeshGuard")

// Survey reads a cluster with the rights of one user.
type Survey struct {
	server *discovery.DiscoveryClient
	access authorizationclient.SelfSubjectAccessReviewInterface
	served map[schema.GroupResource][]string
	broken error // some groups could not be discovered

	mu     sync.Mutex
	denied []preflight.Right // guarded by mu
}

// New returns a survey of the cluster of a client configuration. It asks nothing yet.
func New(config *rest.Config) (*Survey, error) {
	config = rest.CopyConfig(config)
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	server, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create the client: %w", err)
	}
	access, err := authorizationclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create the client: %w", err)
	}
	return &Survey{server: server, access: access.SelfSubjectAccessReviews(), served: map[schema.GroupResource][]string{}}, nil
}

// Report reads the cluster and judges it. It errs when the API server cannot be asked at
// all, or there is no such guard or namespace; everything else is in the report.
func (s *Survey) Report(ctx context.Context, o Options) (*preflight.Report, error) {
	f := &preflight.Facts{Now: o.Now, Names: o.Names}
	version, err := s.server.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("ask the API server for its version: %w", err)
	}
	f.Version.Value = version.GitVersion
	s.discover()
	f.Served = preflight.Answer[map[schema.GroupResource][]string]{Value: s.served, Err: s.broken}
	s.ask(ctx, append(preflight.ClusterRights(o.Names), preflight.NamespacedRights(o.Namespaces)...))
	if lacking := s.lacking(); len(lacking) > 0 && o.Lacking != nil {
		o.Lacking(lacking)
	}
	r := &reading{Survey: s, facts: f}
	if err := r.all(ctx); err != nil {
		return nil, err
	}
	if err := known(f, o.Namespaces); err != nil {
		return nil, err
	}
	source, err := choose(f, &o)
	if err != nil {
		return nil, err
	}
	forecast, why := r.forecast(ctx, &o, source)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	f.Lacking = s.lacking()
	return preflight.New(f, forecast, why), nil
}

// known errs for a namespace that is not there: that nothing is refused in it says nothing.
func known(f *preflight.Facts, names []string) error {
	if f.Namespaces.Err != nil {
		return nil //nolint:nilerr // the report says so
	}
	for _, name := range names {
		if !slices.ContainsFunc(f.Namespaces.Value, func(ns corev1.Namespace) bool { return ns.Name == name }) {
			return fmt.Errorf("%w: %q", ErrNoNamespace, name)
		}
	}
	return nil
}

// discover learns which resources there are. Groups of aggregated API servers that are
// down are not among those that matter, but it may be that ours are behind them.
func (s *Survey) discover() {
	_, lists, err := s.server.ServerGroupsAndResources()
	if err != nil {
		var partly *discovery.ErrGroupDiscoveryFailed
		if !errors.As(err, &partly) {
			s.broken = fmt.Errorf("ask the API server for its kinds: %w", err)
		} else {
			for gv, e := range partly.Groups {
				if strings.HasSuffix(gv.Group, "istio.io") || gv.Group == v1alpha1.Group {
					s.broken = fmt.Errorf("ask the API server for its kinds in %s: %w", gv, e)
				}
			}
		}
	}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range list.APIResources {
			gr := schema.GroupResource{Group: gv.Group, Resource: r.Name}
			if !slices.Contains(s.served[gr], gv.Version) {
				s.served[gr] = append(s.served[gr], gv.Version)
			}
		}
	}
}

// versionOf is the version to read a resource in, the first that is served; "" when there
// is none. Where discovery failed the first one is tried.
func (s *Survey) versionOf(group, resource string, versions []string) string {
	served := s.served[schema.GroupResource{Group: group, Resource: resource}]
	for _, v := range versions {
		if slices.Contains(served, v) {
			return v
		}
	}
	if s.broken != nil {
		return versions[0]
	}
	return ""
}

// ask learns which rights the user lacks. Where the question itself is refused, what is
// not allowed is learnt by trying.
func (s *Survey) ask(ctx context.Context, rights []preflight.Right) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, r := range rights {
		if len(s.served[schema.GroupResource{Group: r.Group, Resource: r.Resource}]) == 0 {
			continue // there is nothing to be read
		}
		group.Go(func() error {
			review, err := s.access.Create(ctx, &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: r.Verb, Group: r.Group, Resource: r.Resource, Namespace: r.Namespace,
				}},
			}, metav1.CreateOptions{})
			if err == nil && !review.Status.Allowed {
				s.deny(r)
			}
			return nil
		})
	}
	_ = group.Wait() // no member errs
}

func (s *Survey) deny(r preflight.Right) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.denied, r) {
		s.denied = append(s.denied, r)
	}
}

func (s *Survey) lacking() []preflight.Right {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Clone(s.denied)
	slices.SortFunc(list, func(a, b preflight.Right) int { return strings.Compare(a.String(), b.String()) })
	return list
}

func (s *Survey) isDenied(r preflight.Right) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.denied, r)
}

// list reads all objects of a resource, unless the user may not. right is what that takes.
func (s *Survey) list(ctx context.Context, p place, right preflight.Right, take func(raw []byte) error) error {
	if s.isDenied(right) {
		return &preflight.LackingError{Right: right}
	}
	err := s.each(ctx, p, take)
	switch {
	case apierrors.IsForbidden(err):
		s.deny(right)
		return &preflight.LackingError{Right: right}
	case apierrors.IsNotFound(err):
		return nil // the kind has just gone
	}
	return err
}
