package admissionpolicy

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

const probeUser = "system:serviceaccount:meshvakt-system:meshvakt-probe"

// probePolicy is the policy that narrows the rights of the probes, as the chart has it.
func probePolicy(t *testing.T) *admissionregistrationv1.ValidatingAdmissionPolicy {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-modfile=test/tools/helm/go.mod", "helm", "template", "meshvakt",
		"charts/meshvakt", "--namespace", "meshvakt-system", "--set", "probe.enabled=true", "--show-only", "templates/probe.yaml")
	cmd.Dir = "../../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, stderr.String())
	}
	for doc := range strings.SplitSeq(string(out), "\n---") {
		if strings.Contains(doc, "\nkind: ValidatingAdmissionPolicy\n") {
			p := &admissionregistrationv1.ValidatingAdmissionPolicy{}
			if err := yaml.UnmarshalStrict([]byte(doc), p); err != nil {
				t.Fatal(err)
			}
			return p
		}
	}
	t.Fatal("the chart renders no policy for the probes")
	return nil
}

// probed is the policy as an API server runs it.
type probed struct {
	conditions, validations cel.ConditionEvaluator
	lazy                    bool
}

// compileProbe compiles every expression as the oldest API server would.
func compileProbe(t *testing.T, p *admissionregistrationv1.ValidatingAdmissionPolicy, lazy bool) *probed {
	t.Helper()
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(oldest()))
	if err != nil {
		t.Fatal(err)
	}
	var options cel.OptionalVariableDeclarations
	for _, v := range p.Spec.Variables {
		if r := compiler.CompileAndStoreVariable(&validating.Variable{Name: v.Name, Expression: v.Expression}, options, environment.NewExpressions); r.Error != nil {
			t.Errorf("variable %s: %s\n%s", v.Name, r.Error.Detail, v.Expression)
		}
	}
	var conditions, validations, messages []cel.ExpressionAccessor
	for i := range p.Spec.MatchConditions {
		conditions = append(conditions, (*matchconditions.MatchCondition)(&p.Spec.MatchConditions[i]))
	}
	for _, v := range p.Spec.Validations {
		validations = append(validations, &validating.ValidationCondition{Expression: v.Expression})
		if v.MessageExpression != "" {
			messages = append(messages, &validating.MessageExpressionCondition{MessageExpression: v.MessageExpression})
		}
	}
	e := &probed{
		conditions:  compiler.CompileCondition(conditions, options, environment.NewExpressions),
		validations: compiler.CompileCondition(validations, options, environment.NewExpressions),
		lazy:        lazy,
	}
	for _, c := range []cel.ConditionEvaluator{e.conditions, e.validations, compiler.CompileCondition(messages, options, environment.NewExpressions)} {
		for _, err := range c.CompilationErrors() {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	return e
}

// asked is whether the policy is about the request, which validations it fails, counted
// from 1, and what it cost.
func (e *probed) asked(t *testing.T, object, old *corev1.Node, who user.Info) (matched bool, failed []int, cost int64) {
	t.Helper()
	kind := corev1.SchemeGroupVersion.WithKind("Node")
	a := &admission.VersionedAttributes{
		Attributes: admission.NewAttributesRecord(object, old, kind, "", object.Name, corev1.SchemeGroupVersion.WithResource("nodes"),
			"status", admission.Update, nil, false, who),
		VersionedKind:      kind,
		VersionedObject:    admission.NewLazyObject(runtime.Object(object)),
		VersionedOldObject: admission.NewLazyObject(runtime.Object(old)),
	}
	a.VersionedObject.UseSchemalessTypeRef, a.VersionedOldObject.UseSchemalessTypeRef = e.lazy, e.lazy
	ask := func(c cel.ConditionEvaluator) []cel.EvaluationResult {
		request := cel.CreateAdmissionRequest(a.Attributes, gvr(a), gvk(a))
		results, left, err := c.ForInput(t.Context(), a, request, cel.OptionalVariableBindings{}, nil, celconfig.RuntimeCELCostBudget)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if r.Error != nil {
				t.Fatalf("%s: %v", r.ExpressionAccessor.GetExpression(), r.Error)
			}
		}
		cost += celconfig.RuntimeCELCostBudget - left
		return results
	}
	for _, c := range ask(e.conditions) {
		if c.EvalResult.Value() != true {
			return false, nil, cost
		}
	}
	for i, v := range ask(e.validations) {
		if v.EvalResult.Value() != true {
			failed = append(failed, i+1)
		}
	}
	return true, failed, cost
}

// largeNode has more of everything than a node of a real cluster.
func largeNode() *corev1.Node {
	n := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}}
	n.Name, n.UID, n.CreationTimestamp = "a", "0c5b7a3e-0000-0000-0000-000000000000", metav1.Now()
	n.Labels, n.Annotations = map[string]string{}, map[string]string{}
	for i := range 300 {
		n.Labels[fmt.Sprintf("feature.node.kubernetes.io/cpu-%d", i)] = strings.Repeat("x", 63)
		n.Annotations[fmt.Sprintf("somebody.example/note-%d", i)] = strings.Repeat("x", 500)
		n.Status.VolumesInUse = append(n.Status.VolumesInUse, corev1.UniqueVolumeName(fmt.Sprintf("kubernetes.io/csi/driver^%d", i)))
		n.Status.VolumesAttached = append(n.Status.VolumesAttached, corev1.AttachedVolume{Name: n.Status.VolumesInUse[i]})
	}
	n.Status.Capacity = corev1.ResourceList{}
	for i := range 50 {
		n.Status.Capacity[corev1.ResourceName(fmt.Sprintf("example.com/device-%d", i))] = resource.MustParse("8")
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{
			strings.Repeat("a", 200), strings.Repeat("b", 200), strings.Repeat("c", 200), strings.Repeat("d", 200), strings.Repeat("e", 200),
		}, SizeBytes: int64(i)})
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{
			Type: corev1.NodeConditionType(fmt.Sprintf("Somebody%d", i)), Status: corev1.ConditionTrue, Message: strings.Repeat("m", 300), LastHeartbeatTime: metav1.Now(),
		})
	}
	n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
	return n
}

// TestProbePolicy: the policy compiles in the oldest API server, never fails, costs no
// more than it may, and says the same whichever way the API server shows it objects. What
// it refuses is tested against a real one.
func TestProbePolicy(t *testing.T) {
	policy := probePolicy(t)
	pod := &user.DefaultInfo{Name: probeUser, Extra: map[string][]string{
		"authentication.kubernetes.io/node-name": {"a"}, "authentication.kubernetes.io/pod-name": {"meshvakt-probe-x"},
	}}
	bare := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	publishes := func(n *corev1.Node) {
		n.Annotations = map[string]string{}
		for k, v := range largeNode().Annotations {
			n.Annotations[k] = v
		}
		for _, k := range []string{v1alpha1.AnnotationSteal, v1alpha1.AnnotationMeasuredAt, v1alpha1.AnnotationResult} {
			n.Annotations[k] = strings.Repeat("x", 8192)
		}
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: v1alpha1.ConditionCPUContended, Status: corev1.ConditionTrue})
		n.ResourceVersion, n.ManagedFields = "2", []metav1.ManagedFieldsEntry{{Manager: "meshvakt-probe"}}
	}
	for name, c := range map[string]struct {
		old    *corev1.Node
		change func(*corev1.Node)
		who    *user.DefaultInfo
		other  bool  // not about it
		failed []int // of the validations
	}{
		"nothing":        {old: bare, change: func(*corev1.Node) {}, who: pod},
		"nothing, large": {old: largeNode(), change: func(*corev1.Node) {}, who: pod},
		"publishes":      {old: largeNode(), change: publishes, who: pod},
		"condition on a bare node": {old: bare, change: func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: v1alpha1.ConditionCPUContended}}
		}, who: pod},
		"annotation on a bare node": {old: bare, change: func(n *corev1.Node) { n.Annotations = map[string]string{v1alpha1.AnnotationSteal: "1.0"} }, who: pod},
		"label":                     {old: largeNode(), change: func(n *corev1.Node) { n.Labels["feature.node.kubernetes.io/cpu-7"] = "y" }, who: pod, failed: []int{3}},
		"label on a bare node":      {old: bare, change: func(n *corev1.Node) { n.Labels = map[string]string{"x": "y"} }, who: pod, failed: []int{3}},
		"annotation":                {old: largeNode(), change: func(n *corev1.Node) { n.Annotations["somebody.example/note-7"] = "y" }, who: pod, failed: []int{3}},
		"all annotations":           {old: largeNode(), change: func(n *corev1.Node) { n.Annotations = nil }, who: pod, failed: []int{3}},
		"taint":                     {old: largeNode(), change: func(n *corev1.Node) { n.Spec.Taints = nil }, who: pod, failed: []int{3}},
		"image":                     {old: largeNode(), change: func(n *corev1.Node) { n.Status.Images[49].Names[4] = "y" }, who: pod, failed: []int{3}},
		"features":                  {old: largeNode(), change: func(n *corev1.Node) { n.Status.DeclaredFeatures = []string{"x"} }, who: pod, failed: []int{3}},
		"condition":                 {old: largeNode(), change: func(n *corev1.Node) { n.Status.Conditions[49].Status = corev1.ConditionFalse }, who: pod, failed: []int{3}},
		"images gone":               {old: largeNode(), change: func(n *corev1.Node) { n.Status.Images = nil }, who: pod, failed: []int{3}},
		"its condition twice": {old: largeNode(), change: func(n *corev1.Node) {
			n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: v1alpha1.ConditionCPUContended}, corev1.NodeCondition{Type: v1alpha1.ConditionCPUContended})
		}, who: pod, failed: []int{3}},
		"a large condition": {old: bare, change: func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: v1alpha1.ConditionCPUContended, Message: strings.Repeat("x", 1025)}}
		}, who: pod, failed: []int{4}},
		"order of conditions": {old: largeNode(), change: func(n *corev1.Node) {
			c := n.Status.Conditions
			c[0], c[1] = c[1], c[0]
		}, who: pod, failed: []int{3}},
		"no claim":       {old: bare, change: func(*corev1.Node) {}, who: &user.DefaultInfo{Name: probeUser}, failed: []int{2}},
		"other claims":   {old: bare, change: func(*corev1.Node) {}, who: &user.DefaultInfo{Name: probeUser, Extra: map[string][]string{"x": {"a"}}}, failed: []int{2}},
		"another node":   {old: bare, change: func(*corev1.Node) {}, who: &user.DefaultInfo{Name: probeUser, Extra: map[string][]string{"authentication.kubernetes.io/node-name": {"b"}}}, failed: []int{2}},
		"several nodes":  {old: bare, change: func(*corev1.Node) {}, who: &user.DefaultInfo{Name: probeUser, Extra: map[string][]string{"authentication.kubernetes.io/node-name": {"a", "b"}}}, failed: []int{2}},
		"kubelet":        {old: bare, change: publishes, who: &user.DefaultInfo{Name: "system:node:a"}, other: true},
		"nobody":         {old: bare, change: publishes, who: &user.DefaultInfo{}, other: true},
		"a longer name":  {old: bare, change: publishes, who: &user.DefaultInfo{Name: probeUser + "s"}, other: true},
		"everything bad": {old: largeNode(), change: func(n *corev1.Node) { publishes(n); n.Annotations[v1alpha1.AnnotationSteal] += "x"; n.Labels = nil }, who: &user.DefaultInfo{Name: probeUser}, failed: []int{2, 3, 4}},
	} {
		for mode, lazy := range map[string]bool{"converted": false, "as they are": true} {
			t.Run(name+", objects "+mode, func(t *testing.T) {
				object := c.old.DeepCopy()
				c.change(object)
				matched, failed, cost := compileProbe(t, policy, lazy).asked(t, object, c.old, c.who)
				if matched == c.other || fmt.Sprint(failed) != fmt.Sprint(c.failed) {
					t.Errorf("matched %t, fails %v; must match %t, fail %v", matched, failed, !c.other, c.failed)
				}
				if cost > celconfig.RuntimeCELCostBudget/10 {
					t.Errorf("costs %d; must leave most of the budget of %d", cost, celconfig.RuntimeCELCostBudget)
				}
				t.Logf("cost %d", cost)
			})
		}
	}
}
