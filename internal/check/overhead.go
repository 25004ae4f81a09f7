package check

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Overhead is what the sidecars of a namespace cost.
type Overhead struct {
	Namespace string `json:"namespace"`
	// Pods is how many pods run at a time, WithSidecar how many of them have one.
	Pods        int64 `json:"pods"`
	WithSidecar int64 `json:"withSidecar"`

	Requests Shares `json:"requests"`
	Limits   Shares `json:"limits"`
}

// Shares are the sidecars' parts of CPU and memory.
type Shares struct {
	CPU    Share `json:"cpu"`
	Memory Share `json:"memory"`
}

// Share is the sidecars' part of a sum.
type Share struct {
	Sidecars string `json:"sidecars"`
	Total    string `json:"total"`
	// Percent of the total, rounded; 0 of nothing.
	Percent int `json:"percent"`
}

// overheads sums up what the pods of namespaces cost.
type overheads struct {
	of map[string]*overhead
	// daemons: some of the pods are counted once, and run on every node.
	daemons bool
}

type overhead struct {
	pods, withSidecar int64
	cost              policies.Cost
}

func newOverheads() *overheads { return &overheads{of: map[string]*overhead{}} }

// add counts the pods of an object, unless a controller makes them of another object,
// which counts for them.
func (o *overheads) add(r *facts.Review) {
	if !r.AuthorsPods() {
		return
	}
	one, pods, ok := policies.PodCost(r)
	if !ok {
		return
	}
	sum := o.of[r.Namespace]
	if sum == nil {
		sum = &overhead{}
		o.of[r.Namespace] = sum
	}
	sum.pods += int64(pods)
	if !one.Sidecars.Equal(mesh.Resources{}) {
		sum.withSidecar += int64(pods)
	}
	all := one.Times(pods)
	for k := range sum.cost.Total {
		sum.cost.Total[k].Add(all.Total[k])
		sum.cost.Sidecars[k].Add(all.Sidecars[k])
	}
	o.daemons = o.daemons || r.Kind.Kind == "DaemonSet"
}

// list is sorted by namespace, without those where no pod has a sidecar.
func (o *overheads) list() []Overhead {
	var list []Overhead
	for _, name := range slices.Sorted(maps.Keys(o.of)) {
		sum := o.of[name]
		if sum.withSidecar == 0 {
			continue
		}
		share := func(k mesh.ResourceKey) Share { return shareOf(sum.cost.Sidecars[k], sum.cost.Total[k]) }
		list = append(list, Overhead{
			Namespace: name, Pods: sum.pods, WithSidecar: sum.withSidecar,
			Requests: Shares{share(mesh.RequestCPU), share(mesh.RequestMemory)},
			Limits:   Shares{share(mesh.LimitCPU), share(mesh.LimitMemory)},
		})
	}
	return list
}

func (o *overheads) notes() []string {
	if !o.daemons {
		return nil
	}
	return []string{"the sidecar overhead counts a DaemonSet as one pod: it runs one on every node"}
}

func shareOf(part, total resource.Quantity) Share {
	s := Share{Sidecars: part.String(), Total: total.String()}
	if !total.IsZero() {
		s.Percent = int(100*part.AsApproximateFloat64()/total.AsApproximateFloat64() + 0.5)
	}
	return s
}

func (s Share) text() string { return fmt.Sprintf("%s of %s (%d %%)", s.Sidecars, s.Total, s.Percent) }

// writeOverhead prints the overhead as a table.
func writeOverhead(w io.Writer, list []Overhead) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "sidecars in\tpods\tCPU requested\tmemory requested\tCPU limit\tmemory limit")
	for _, o := range list {
		fmt.Fprintln(t, strings.Join([]string{
			o.Namespace, fmt.Sprintf("%d of %d", o.WithSidecar, o.Pods),
			o.Requests.CPU.text(), o.Requests.Memory.text(), o.Limits.CPU.text(), o.Limits.Memory.text(),
		}, "\t"))
	}
	return t.Flush()
}
