package policies

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// What others than Meshvakt will refuse because of the proxy's numbers: the API server
// by the resources of the pod as a whole, LimitRanger, and the quota. Their refusals
// come late, at the pod of a ReplicaSet, and do not mention the proxy; so the author of
// the template is told. All of it is remarks: the quota may be raised before the pods
// come, and whoever refuses then knows better.

// refusedElsewhere remarks on what the pods of a request will run into.
func refusedElsewhere(r *facts.Review, ns *facts.Namespace, g *facts.Guard) []Finding {
	if !r.AuthorsPods() || r.Operation == admissionv1.Update && r.Kind.Kind == "Pod" { // which is counted already
		return nil
	}
	s, pods := podsOf(r, ns, r.Object)
	if s == nil || s.refused() {
		return nil
	}
	if s.spec.Resources == nil && len(ns.LimitRanges)+len(ns.Quotas) == 0 {
		return nil
	}
	guards := []*facts.Guard{g}
	cost, before := s.cost(guards), Cost{}
	if was, had := podsOf(r, ns, r.OldObject); was != nil {
		before = was.cost(guards).Times(had)
	}
	return slices.Concat(s.exceedsWholePod(cost), s.exceedsLimitRange(cost, ns.LimitRanges), s.exceedsQuota(cost, before, pods, ns.Quotas))
}

// podsOf are the pods that an object stands for, and how many; nil if there is no
// proxy in them.
func podsOf(r *facts.Review, ns *facts.Namespace, object any) (*sidecars, int32) {
	var s *sidecars
	pods := int32(1)
	switch o := object.(type) {
	case *corev1.Pod:
		if !judgedPod(o) {
			return nil, 0
		}
		s = newSidecars(&r.Cluster, ns, "", &o.ObjectMeta, &o.Spec)
		if !r.Submitted {
			s.final()
		}
	case *facts.Workload:
		if o.Template == nil || o.DeletionTimestamp != nil {
			return nil, 0
		}
		s, pods = newSidecars(&r.Cluster, ns, o.Path, &o.Template.ObjectMeta, &o.Template.Spec), o.Pods
	}
	if s == nil || len(s.containers) == 0 {
		return nil, 0
	}
	return s, pods
}

// Cost is what a pod, or several, are counted for by scheduler and quota.
type Cost struct {
	// Sidecars is the part of Istio's containers in Total.
	Sidecars, Total mesh.Resources
	// Proxy is the container istio-proxy alone, of one pod.
	Proxy mesh.Resources
}

// Times is the cost of so many pods.
func (c Cost) Times(n int32) Cost {
	c.Sidecars, c.Total = c.Sidecars.DeepCopy(), c.Total.DeepCopy()
	for _, r := range [...]*mesh.Resources{&c.Sidecars, &c.Total} {
		for k := range r {
			r[k].Mul(int64(n))
		}
	}
	return c
}

// cost counts a pod with the proxy that it has, or will have under the guards.
func (s *sidecars) cost(guards []*facts.Guard) Cost {
	want := s.settled(guards)
	with, own := &corev1.Pod{}, &corev1.Pod{}
	take := func(list string, containers []corev1.Container, all, rest *[]corev1.Container) {
		for i := range containers {
			c := corev1.Container{Resources: containers[i].Resources, RestartPolicy: containers[i].RestartPolicy}
			if n := s.indexOf(list, i); n >= 0 {
				c.Resources = requirements(want[n])
			} else {
				*rest = append(*rest, c)
			}
			*all = append(*all, c)
		}
	}
	take("initContainers", s.spec.InitContainers, &with.Spec.InitContainers, &own.Spec.InitContainers)
	take("containers", s.spec.Containers, &with.Spec.Containers, &own.Spec.Containers)
	if s.containers[0].declared == nil {
		with.Spec.Containers = append(with.Spec.Containers, corev1.Container{Resources: requirements(want[0])})
	}
	c := Cost{Proxy: want[0], Total: counted(with)}
	c.Sidecars = c.Total.DeepCopy()
	for k, q := range counted(own) {
		c.Sidecars[k].Sub(q)
	}
	return c
}

func (s *sidecars) indexOf(list string, index int) int {
	return slices.IndexFunc(s.containers, func(c sidecar) bool { return c.list == list && c.index == index })
}

func requirements(r mesh.Resources) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: r[mesh.RequestCPU], corev1.ResourceMemory: r[mesh.RequestMemory]},
		Limits:   corev1.ResourceList{corev1.ResourceCPU: r[mesh.LimitCPU], corev1.ResourceMemory: r[mesh.LimitMemory]},
	}
}

// counted sums up the containers. A request that is missing is copied from the limit
// when a pod is created, which templates do not show.
func counted(pod *corev1.Pod) mesh.Resources {
	for _, list := range [...][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			r := mesh.ResourcesOf(&list[i].Resources)
			for _, k := range mesh.ResourceKeys() {
				if r[k].IsZero() {
					r[k] = r[k.Limit()]
				}
			}
			list[i].Resources = requirements(r)
		}
	}
	o := resourcehelper.PodResourcesOptions{}
	return mesh.ResourcesOf(&corev1.ResourceRequirements{
		Requests: resourcehelper.AggregateContainerRequests(pod, o), Limits: resourcehelper.AggregateContainerLimits(pod, o),
	})
}

// exceedsWholePod: the containers together must not request more than the pod does, and
// none may have a greater limit (pkg/apis/core/validation, validatePodResourceConsistency).
func (s *sidecars) exceedsWholePod(c Cost) []Finding {
	if s.spec.Resources == nil {
		return nil
	}
	var found []Finding
	whole := mesh.ResourcesOf(s.spec.Resources)
	for _, k := range mesh.ResourceKeys() {
		if whole[k].IsZero() {
			continue
		}
		have, what := c.Total[k], fmt.Sprintf("containers and proxy together request %s", quoted(c.Total[k]))
		if k.IsLimit() {
			have, what = c.Proxy[k], fmt.Sprintf("the proxy has a limit of %s", quoted(c.Proxy[k]))
		}
		if have.Cmp(whole[k]) > 0 {
			found = append(found, resourcesRemark(reasonPodResourcesExceeded(), s.inPod("spec.resources."+k.String()),
				fmt.Sprintf("%s of the pod is %s, and %s: the API server refuses the pods", k, quoted(whole[k]), what),
				fmt.Sprintf("raise it to %s at least, or state less for the proxy by annotation %s", quoted(have), k.Annotation())))
		}
	}
	return found
}

// exceedsLimitRange: what LimitRanger demands of containers and pods.
func (s *sidecars) exceedsLimitRange(c Cost, ranges []corev1.LimitRange) []Finding {
	var found []Finding
	remark := func(l *corev1.LimitRange, k mesh.ResourceKey, message string) {
		found = append(found, resourcesRemark(reasonLimitRangeRefuses(), s.field(&s.containers[0], k),
			fmt.Sprintf("LimitRange %q refuses the pods: %s", l.Name, message),
			fmt.Sprintf("state another number by annotation %s, or have the LimitRange changed", k.Annotation())))
	}
	for i := range ranges {
		for _, item := range ranges[i].Spec.Limits {
			have, what := c.Proxy, "the proxy"
			switch item.Type {
			case corev1.LimitTypeContainer:
			case corev1.LimitTypePod:
				have, what = c.Total, "the pod with its proxy"
			default:
				continue
			}
			for _, k := range mesh.ResourceKeys() {
				_, name := k.Path()
				minimum, maximum, ratio := item.Min[name], item.Max[name], item.MaxLimitRequestRatio[name]
				switch {
				case !k.IsLimit() && have[k].Cmp(minimum) < 0:
					remark(&ranges[i], k, fmt.Sprintf("%s of %s is %s, its minimum per %s %s", k, what, quoted(have[k]), item.Type, quoted(minimum)))
				case k.IsLimit() && !maximum.IsZero() && have[k].Cmp(maximum) > 0:
					remark(&ranges[i], k, fmt.Sprintf("%s of %s is %s, its maximum per %s %s", k, what, quoted(have[k]), item.Type, quoted(maximum)))
				}
				if limit := k.Limit(); !ratio.IsZero() && have[k].AsApproximateFloat64()*ratio.AsApproximateFloat64() < have[limit].AsApproximateFloat64() {
					remark(&ranges[i], k, fmt.Sprintf("limit and request of %s of %s are %s and %s, its maxLimitRequestRatio %s", k.What(), what, quoted(have[limit]), quoted(have[k]), quoted(ratio)))
				}
			}
		}
	}
	return found
}

// exceedsQuota: whether what is left of the quotas is enough for more pods, in place of
// what was there before.
func (s *sidecars) exceedsQuota(one, before Cost, pods int32, quotas []corev1.ResourceQuota) []Finding {
	total := one.Times(pods)
	var found []Finding
	for i := range quotas {
		q := &quotas[i]
		if !s.inScope(q) {
			continue
		}
		for _, k := range mesh.ResourceKeys() {
			name, hard, ok := hardLimit(q, k)
			if !ok {
				continue
			}
			left, used := hard.DeepCopy(), q.Status.Used[name]
			left.Sub(used)
			needs, proxies := total.Total[k].DeepCopy(), total.Sidecars[k].DeepCopy()
			needs.Sub(before.Total[k])
			proxies.Sub(before.Sidecars[k])
			if needs.Sign() <= 0 || needs.Cmp(left) <= 0 {
				continue
			}
			found = append(found, resourcesRemark(reasonQuotaExceeded(), s.field(&s.containers[0], k),
				fmt.Sprintf("ResourceQuota %q leaves %s of %s (%s of %s is used), and %s %s more, %s of it for proxies: some of them will be refused",
					q.Name, quoted(atLeastZero(left)), name, quoted(used), quoted(hard), podsNeed(pods), quoted(needs), quoted(atLeastZero(proxies))),
				fmt.Sprintf("have the quota raised, run fewer pods, or state less for the proxy by annotation %s", k.Annotation())))
		}
	}
	return found
}

func podsNeed(n int32) string {
	if n == 1 {
		return "1 pod needs"
	}
	return fmt.Sprintf("%d pods need", n)
}

func atLeastZero(q resource.Quantity) resource.Quantity {
	if q.Sign() < 0 {
		return resource.Quantity{}
	}
	return q
}

// hardLimit is what a quota says of a number. "cpu" is another word for "requests.cpu".
func hardLimit(q *corev1.ResourceQuota, k mesh.ResourceKey) (corev1.ResourceName, resource.Quantity, bool) {
	hard := q.Status.Hard
	if hard == nil {
		hard = q.Spec.Hard
	}
	for _, n := range [...]string{k.String(), strings.TrimPrefix(k.String(), "requests.")} {
		if v, ok := hard[corev1.ResourceName(n)]; ok {
			return corev1.ResourceName(n), v, true
		}
	}
	return "", resource.Quantity{}, false
}

// inScope reports whether a quota counts the pods, which have a proxy and so are no
// BestEffort (pkg/quota/v1/evaluator/core, podMatchesScopeFunc).
func (s *sidecars) inScope(q *corev1.ResourceQuota) bool {
	selectors := make([]corev1.ScopedResourceSelectorRequirement, 0, len(q.Spec.Scopes))
	for _, scope := range q.Spec.Scopes {
		selectors = append(selectors, corev1.ScopedResourceSelectorRequirement{ScopeName: scope, Operator: corev1.ScopeSelectorOpExists})
	}
	if q.Spec.ScopeSelector != nil {
		selectors = append(selectors, q.Spec.ScopeSelector.MatchExpressions...)
	}
	ends := s.spec.ActiveDeadlineSeconds != nil
	for _, e := range selectors {
		in := false
		switch e.ScopeName {
		case corev1.ResourceQuotaScopeNotBestEffort:
			in = true
		case corev1.ResourceQuotaScopeTerminating:
			in = ends
		case corev1.ResourceQuotaScopeNotTerminating:
			in = !ends
		case corev1.ResourceQuotaScopePriorityClass:
			class := s.spec.PriorityClassName
			switch e.Operator {
			case corev1.ScopeSelectorOpExists:
				in = class != ""
			case corev1.ScopeSelectorOpDoesNotExist:
				in = class == ""
			case corev1.ScopeSelectorOpIn:
				in = slices.Contains(e.Values, class)
			case corev1.ScopeSelectorOpNotIn:
				in = !slices.Contains(e.Values, class)
			}
		case corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeCrossNamespacePodAffinity, corev1.ResourceQuotaScopeVolumeAttributesClass:
			// The last two count what proxies do not have.
		}
		if !in {
			return false
		}
	}
	return true
}
