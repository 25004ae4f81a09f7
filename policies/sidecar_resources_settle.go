package policies

import (
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// guardNumbers are the numbers of a guard.
type guardNumbers struct {
	mode v1alpha1.ResourcesMode
	// numbers are what is filled in, minimum and maximum what bounds each of them,
	// zero where there is no bound.
	numbers, minimum, maximum mesh.Resources
	preserve                  bool
}

func numbersOf(g *facts.Guard) guardNumbers {
	s := g.SidecarResources
	n := guardNumbers{mode: s.Mode, preserve: s.QoS == v1alpha1.QoSPreserve}
	set := func(into *mesh.Resources, cpu, memory *resource.Quantity, keys ...mesh.ResourceKey) {
		for _, k := range keys {
			q := cpu
			if k == mesh.RequestMemory || k == mesh.LimitMemory {
				q = memory
			}
			if q != nil {
				into[k] = *q
			}
		}
	}
	set(&n.numbers, s.Requests.CPU, s.Requests.Memory, mesh.RequestCPU, mesh.RequestMemory)
	set(&n.numbers, s.Limits.CPU, s.Limits.Memory, mesh.LimitCPU, mesh.LimitMemory)
	if s.Minimum != nil {
		set(&n.minimum, s.Minimum.CPU, s.Minimum.Memory, mesh.ResourceKeys()...)
	}
	if s.Maximum != nil {
		set(&n.maximum, s.Maximum.CPU, s.Maximum.Memory, mesh.ResourceKeys()...)
	}
	return n
}

// settle returns what a container gets whose workload states these numbers. Limits of
// the pod as a whole cap what is filled in: the API server refuses a container whose
// limit is greater. The outcome settles to itself.
func (n *guardNumbers) settle(stated, wholePod mesh.Resources, guaranteed bool) mesh.Resources {
	want := n.numbers
	if n.mode != v1alpha1.ModeExact {
		want = n.clamped(stated)
		for _, k := range [...]mesh.ResourceKey{mesh.RequestCPU, mesh.RequestMemory} {
			limit := k.Limit()
			if want[limit].IsZero() {
				want[limit] = greater(lesser(n.numbers[limit], wholePod[limit]), want[k])
			}
			if want[k].IsZero() {
				want[k] = lesser(n.numbers[k], want[limit])
			}
		}
		want = n.clamped(want)
	}
	if guaranteed && n.preserve {
		want[mesh.RequestCPU], want[mesh.RequestMemory] = want[mesh.LimitCPU], want[mesh.LimitMemory]
	}
	return want
}

// clamped moves numbers that are there to the nearest bound, in mode Clamp.
func (n *guardNumbers) clamped(r mesh.Resources) mesh.Resources {
	if n.mode != v1alpha1.ModeClamp {
		return r
	}
	for k := range r {
		if !r[k].IsZero() {
			r[k] = greater(lesser(r[k], n.maximum[k]), n.minimum[k])
		}
	}
	return r
}

// lesser and greater pass over what is zero, which is no bound.
func lesser(a, b resource.Quantity) resource.Quantity {
	if !b.IsZero() && b.Cmp(a) < 0 {
		return b
	}
	return a
}

func greater(a, b resource.Quantity) resource.Quantity {
	if b.Cmp(a) > 0 {
		return b
	}
	return a
}

// wholePodLimits are the limits that the pod states as a whole.
func (s *sidecars) wholePodLimits() mesh.Resources {
	if s.spec.Resources == nil {
		return mesh.Resources{}
	}
	return mesh.ResourcesOf(s.spec.Resources)
}

// settled returns the numbers that every container of Istio's gets under the guards.
// Init containers have those of the template, unless something is said of them alone.
func (s *sidecars) settled(guards []*facts.Guard) []mesh.Resources {
	want, template := make([]mesh.Resources, len(s.containers)), s.template(guards)
	for i := range s.containers {
		stated := s.containers[i].stated
		if i > 0 {
			stated = stated.Over(template)
		}
		want[i] = s.under(guards, stated)
	}
	return want
}

// template returns the numbers that the template is to render under the guards: what
// the author states. A number that another webhook has put into the proxy is left to
// it there, and not taken for the author's.
func (s *sidecars) template(guards []*facts.Guard) mesh.Resources {
	authored := s.containers[0].stated
	if s.rendered && !s.coming {
		authored = s.overrides[proxyContainer].Over(s.annotated)
	}
	return s.under(guards, authored)
}

// under settles numbers under the guards, one after the other.
func (s *sidecars) under(guards []*facts.Guard, r mesh.Resources) mesh.Resources {
	guaranteed, whole := s.guaranteed(), s.wholePodLimits()
	for _, g := range guards {
		n := numbersOf(g)
		r = n.settle(r, whole, guaranteed)
	}
	return r
}
