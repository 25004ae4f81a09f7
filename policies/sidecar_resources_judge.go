package policies

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// againText is the way out where the mutating half has not been at work: it was not
// asked, or another webhook took away what it had put in.
const againText = "create the pod again: Meshvakt fills it in, unless it was out of reach or another webhook changes the proxy after it"

func resourcesBreach(reason Reason, field, message, remedy string) Finding {
	return Finding{Reason: reason, Type: metav1.CauseTypeFieldValueInvalid, Field: field, Message: message, Remedy: remedy}
}

func resourcesRemark(reason Reason, field, message, remedy string) Finding {
	f := resourcesBreach(reason, field, message, remedy)
	f.Severity = Notice
	return f
}

// final takes the pod for what is to be stored: nothing is injected any more.
func (s *sidecars) final() *sidecars {
	s.coming, s.isFinal = false, true
	if s.hasProxy() && s.containers[0].declared == nil {
		s.containers = nil // no proxy, which is for mesh-membership to judge
	}
	return s
}

// judge judges the numbers that are to be stored.
func (s *sidecars) judge(g *facts.Guard, resized bool) []Finding {
	j := judgement{sidecars: s, guardNumbers: numbersOf(g), guard: g.Name, resized: resized}
	for i := range s.containers {
		j.numbers(&s.containers[i], mesh.ResourcesOf(&s.containers[i].declared.Resources))
	}
	return append(j.found, s.judgeConcurrency(g)...)
}

// judgeComing judges what will come of a template, or of a pod that is still to be
// injected, and remarks on what is replaced on the way.
func (s *sidecars) judgeComing(g *facts.Guard) []Finding {
	j := judgement{sidecars: s, guardNumbers: numbersOf(g), guard: g.Name}
	if s.refused() {
		j.unreadable()
		return j.found
	}
	for i, want := range s.settled([]*facts.Guard{g}) {
		j.numbers(&s.containers[i], want)
		j.replaced(&s.containers[i], want)
	}
	return append(j.found, s.replacedConcurrency(g)...)
}

// judgement holds the numbers of containers against a guard.
type judgement struct {
	*sidecars
	guardNumbers
	guard   string
	resized bool
	found   []Finding
}

func (j *judgement) refuse(reason Reason, c *sidecar, k mesh.ResourceKey, message, remedy string) {
	if j.resized {
		remedy = "resize the container to what the guard allows"
	}
	j.found = append(j.found, resourcesBreach(reason, j.field(c, k), message+fmt.Sprintf(" by MeshGuard %q", j.guard), remedy))
}

// refused reports whether the injector refuses the pods, whatever else is in them.
func (s *sidecars) refused() bool { return s.unreadable != nil && s.coming && s.rendered }

// unreadable: the injector parses what it renders, and the API server what comes out.
func (j *judgement) unreadable() {
	for _, k := range mesh.ResourceKeys() {
		v, ok := j.meta.Annotations[k.Annotation()]
		if ok && !mesh.ReadableResource(v) {
			j.found = append(j.found, resourcesBreach(reasonSidecarAnnotationUnreadable(), j.inPod("metadata.annotations["+k.Annotation()+"]"),
				fmt.Sprintf("%s is no quantity, and no pod can be created with it; must be one, such as %s", quote(v), quoted(j.guardNumbers.numbers[k])), "mend or remove the annotation"))
		}
	}
}

// numbers judges the numbers of one container.
func (j *judgement) numbers(c *sidecar, have mesh.Resources) {
	guaranteed := j.preserve && j.guaranteed()
	for _, k := range mesh.ResourceKeys() {
		value := have[k]
		raised := guaranteed && !k.IsLimit()
		switch {
		case value.IsZero() && k.IsLimit():
			j.refuse(reasonProxyLimitMissing(), c, k, fmt.Sprintf("%s has no limit of %s, or one of 0, which is none; must have one", c.name, k.What()), againText)
		case value.IsZero():
			j.refuse(reasonProxyRequestMissing(), c, k, fmt.Sprintf("%s requests no %s; must request some", c.name, k.What()), againText)
		case j.mode == v1alpha1.ModeExact && !raised && value.Cmp(j.guardNumbers.numbers[k]) != 0:
			j.refuse(reasonProxyNotExact(), c, k, fmt.Sprintf("%s of %s is %s; must be %s", k, c.name, quoted(value), quoted(j.guardNumbers.numbers[k])), againText)
		case value.Cmp(j.minimum[k]) < 0:
			j.refuse(reasonProxyBelowMinimum(), c, k, fmt.Sprintf("%s of %s is %s; must be at least %s", k, c.name, quoted(value), quoted(j.minimum[k])), j.boundRemedy(k, value, j.minimum[k], "more"))
		case !j.maximum[k].IsZero() && value.Cmp(j.maximum[k]) > 0:
			j.refuse(reasonProxyAboveMaximum(), c, k, fmt.Sprintf("%s of %s is %s; must be at most %s", k, c.name, quoted(value), quoted(j.maximum[k])), j.boundRemedy(k, value, j.maximum[k], "less"))
		}
		limit := have[k.Limit()]
		if value.IsZero() || limit.IsZero() || value.Cmp(limit) == 0 {
			continue
		}
		if value.Cmp(limit) > 0 {
			j.refuse(reasonRequestOverLimit(), c, k, fmt.Sprintf("%s of %s is %s, with which no pod can be created; must not be more than its limit %s", k, c.name, quoted(value), quoted(limit)), "lower the request, or raise the limit")
		} else if guaranteed {
			j.refuse(reasonGuaranteedLost(), c, k, fmt.Sprintf("%s of %s is %s, which makes a pod Burstable that is Guaranteed without the proxy; must be its limit %s", k, c.name, quoted(value), quoted(limit)), againText)
		}
	}
}

// boundRemedy names the annotation, if the number comes from it.
func (j *judgement) boundRemedy(k mesh.ResourceKey, value, bound resource.Quantity, direction string) string {
	if j.rendered && value.Cmp(j.annotated[k]) == 0 {
		return fmt.Sprintf("set annotation %s to %s or %s, or leave it out", k.Annotation(), quoted(bound), direction)
	}
	return fmt.Sprintf("let what sets it, be it an autoscaler, state %s or %s, or have the bounds of the guard changed", quoted(bound), direction)
}

// replaced remarks on what the workload states and its pods will not have.
func (j *judgement) replaced(c *sidecar, want mesh.Resources) {
	for _, k := range mesh.ResourceKeys() {
		_, annotated := j.meta.Annotations[k.Annotation()]
		states := j.declares(c, k) || c.name == proxyContainer && j.rendered && (annotated || !c.stated[k].IsZero())
		if !states || c.stated[k].Cmp(want[k]) == 0 {
			continue
		}
		j.found = append(j.found, resourcesRemark(reasonSidecarNumbersReplaced(), j.field(c, k),
			fmt.Sprintf("%s of %s is %s in pods, and not %s by MeshGuard %q", k, c.name, quoted(want[k]), j.why(k, c.stated[k], want[k]), j.guard),
			fmt.Sprintf("state %s, or nothing", quoted(want[k]))))
	}
}

// why says what is replaced, and by what of the guard.
func (j *judgement) why(k mesh.ResourceKey, stated, want resource.Quantity) string {
	because := "spec.sidecarResources.maximum"
	switch {
	case stated.IsZero():
		return quoted(stated) + ", which is none: spec.sidecarResources." + k.String()
	case j.mode == v1alpha1.ModeExact:
		because = "spec.sidecarResources.mode Exact"
	case j.preserve && !k.IsLimit() && j.guaranteed():
		because = "spec.sidecarResources.qos Preserve"
	case stated.Cmp(want) < 0:
		because = "spec.sidecarResources.minimum"
	}
	return quoted(stated) + ": " + because
}

func quoted(q resource.Quantity) string { return quote(q.String()) }
