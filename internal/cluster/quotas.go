package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// addQuotas reads the LimitRanges and ResourceQuotas of the namespace, if the request
// comes from somebody who can be told about them. They are not watched: the status of a
// quota changes with every pod, while authors are few. The API server answers from its
// cache, for what is left of a quota is past the next moment anyway. They feed nothing
// but remarks: nobody is refused because they cannot be read.
func (s *Source) addQuotas(ctx context.Context, r *facts.Review, c *facts.Cluster) {
	ns := c.Namespaces[r.Namespace]
	if ns == nil || !r.AuthorsPods() || !slices.ContainsFunc(c.Guards, func(g facts.Guard) bool {
		return g.SidecarResources != nil && c.Selects(&g, ns.Name, ns.Labels)
	}) {
		return
	}
	var ranges corev1.LimitRangeList
	var quotas corev1.ResourceQuotaList
	group, groupCtx := errgroup.WithContext(ctx)
	for _, list := range []client.ObjectList{&ranges, &quotas} {
		group.Go(func() error {
			cached := &client.ListOptions{Namespace: r.Namespace, Raw: &metav1.ListOptions{ResourceVersion: "0"}}
			if err := s.cfg.Live.List(groupCtx, list, cached); err != nil {
				return fmt.Errorf("list %T in namespace %q: %w", list, r.Namespace, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		s.cfg.Log.ErrorContext(ctx, "cannot read what bounds a namespace; its authors are not told of it", "namespace", r.Namespace, "error", err)
		return
	}
	with := *ns // others share it
	with.LimitRanges, with.Quotas = ranges.Items, quotas.Items
	namespaces := maps.Clone(c.Namespaces)
	namespaces[ns.Name] = &with
	c.Namespaces = namespaces
}
