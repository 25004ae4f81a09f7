package admissionpolicy

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/cel/environment"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/celpack"
)

// oldest is the oldest version of Kubernetes whose expressions the pack may use.
// An API server takes in new objects what its predecessor knows.
func oldest() *version.Version { return version.MajorMinor(1, 30) }

// evaluator is the policy as an API server runs it.
type evaluator struct {
	conditions, validation, message cel.ConditionEvaluator
	// lazy makes objects visible to expressions the new way, without converting them.
	lazy bool
}

func newEvaluator(t testing.TB, lazy bool) *evaluator {
	t.Helper()
	policy := celpack.Policy()
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(oldest()))
	if err != nil {
		t.Fatal(err)
	}
	options := cel.OptionalVariableDeclarations{HasParams: true}
	for _, v := range policy.Spec.Variables {
		if r := compiler.CompileAndStoreVariable(&validating.Variable{Name: v.Name, Expression: v.Expression}, options, environment.NewExpressions); r.Error != nil {
			t.Errorf("variable %s: %s\n%s", v.Name, r.Error.Detail, v.Expression)
		}
	}
	var conditions []cel.ExpressionAccessor
	for i := range policy.Spec.MatchConditions {
		conditions = append(conditions, (*matchconditions.MatchCondition)(&policy.Spec.MatchConditions[i]))
	}
	v := policy.Spec.Validations[0]
	e := &evaluator{
		conditions: compiler.CompileCondition(conditions, options, environment.NewExpressions),
		validation: compiler.CompileCondition([]cel.ExpressionAccessor{&validating.ValidationCondition{Expression: v.Expression}}, options, environment.NewExpressions),
		message:    compiler.CompileCondition([]cel.ExpressionAccessor{&validating.MessageExpressionCondition{MessageExpression: v.MessageExpression}}, options, environment.NewExpressions),
		lazy:       lazy,
	}
	for _, c := range []cel.ConditionEvaluator{e.conditions, e.validation, e.message} {
		for _, err := range c.CompilationErrors() {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	return e
}

// request is what the API server would be asked to do.
type request struct {
	object, old *unstructured.Unstructured
	operation   admission.Operation
	subresource string
	user        string
	guard       *v1alpha1.MeshGuard
	namespace   *corev1.Namespace
}

// verdict is the answer of the policy.
type verdict struct {
	judged   bool // the match conditions are met
	findings []string
	message  string
	cost     int64 // of what is evaluated for every request
}

func (v *verdict) denied() bool { return v.message != "" }

// evaluate answers as the API server does. An expression that fails is an error.
func (e *evaluator) evaluate(ctx context.Context, r *request) (verdict, error) {
	attributes, err := e.attributes(r)
	if err != nil {
		return verdict{}, err
	}
	param, err := untyped(r.guard, v1alpha1.GroupVersion().WithKind("MeshGuard"))
	if err != nil {
		return verdict{}, err
	}
	bindings := cel.OptionalVariableBindings{VersionedParams: param}
	ask := func(c cel.ConditionEvaluator, ns *corev1.Namespace) ([]cel.EvaluationResult, int64, error) {
		request := cel.CreateAdmissionRequest(attributes.Attributes, gvr(attributes), gvk(attributes))
		results, left, err := c.ForInput(ctx, attributes, request, bindings, ns, celconfig.RuntimeCELCostBudget)
		if err != nil {
			return nil, 0, err
		}
		for _, r := range results {
			if r.Error != nil {
				return nil, 0, fmt.Errorf("%s: %w", strings.SplitN(r.ExpressionAccessor.GetExpression(), "\n", 2)[0], r.Error)
			}
		}
		return results, celconfig.RuntimeCELCostBudget - left, nil
	}
	conditions, _, err := ask(e.conditions, nil)
	if err != nil {
		return verdict{}, err
	}
	for _, c := range conditions {
		if c.EvalResult.Value() != true {
			return verdict{}, nil
		}
	}
	ns := cel.CreateNamespaceObject(r.namespace)
	validation, cost, err := ask(e.validation, ns)
	if err != nil {
		return verdict{}, err
	}
	message, costOfMessage, err := ask(e.message, ns)
	if err != nil {
		return verdict{}, err
	}
	v := verdict{judged: true, cost: cost + costOfMessage}
	if validation[0].EvalResult.Value() != true {
		v.message, _ = message[0].EvalResult.Value().(string)
		if v.message == "" || len(v.message) > celconfig.MaxEvaluatedMessageExpressionSizeBytes || strings.Contains(v.message, "\n") {
			return verdict{}, fmt.Errorf("message %q is none that the API server takes", v.message)
		}
		_, list, _ := strings.Cut(v.message, "): ")
		v.findings = strings.Split(list, " | ")
	}
	return v, nil
}

func (e *evaluator) attributes(r *request) (*admission.VersionedAttributes, error) {
	kind := r.object.GroupVersionKind()
	plural, _ := meta.UnsafeGuessKindToResource(kind)
	object, err := e.typed(r.object)
	if err != nil {
		return nil, err
	}
	var old runtime.Object
	if r.old != nil {
		if old, err = e.typed(r.old); err != nil {
			return nil, err
		}
	}
	a := &admission.VersionedAttributes{
		Attributes: admission.NewAttributesRecord(object, old, kind, r.object.GetNamespace(), r.object.GetName(), plural, r.subresource,
			r.operation, nil, true, &user.DefaultInfo{Name: r.user}),
		VersionedKind:   kind,
		VersionedObject: admission.NewLazyObject(object),
	}
	a.VersionedObject.UseSchemalessTypeRef = e.lazy
	if old != nil {
		a.VersionedOldObject = admission.NewLazyObject(old)
		a.VersionedOldObject.UseSchemalessTypeRef = e.lazy
	}
	return a, nil
}

// typed is the object as the API server holds it.
func (e *evaluator) typed(u *unstructured.Unstructured) (runtime.Object, error) {
	object, err := clientgoscheme.Scheme.New(u.GroupVersionKind())
	if runtime.IsNotRegisteredError(err) {
		return u, nil
	}
	if err != nil {
		return nil, err
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, object); err != nil {
		return nil, err
	}
	clientgoscheme.Scheme.Default(object)
	object.GetObjectKind().SetGroupVersionKind(u.GroupVersionKind())
	return object, nil
}

func untyped(o runtime.Object, kind schema.GroupVersionKind) (*unstructured.Unstructured, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal(text, &u.Object); err != nil {
		return nil, err
	}
	u.SetGroupVersionKind(kind)
	// Numbers as the API server has them.
	text, err = u.MarshalJSON()
	if err != nil {
		return nil, err
	}
	return u, u.UnmarshalJSON(text)
}

func gvr(a *admission.VersionedAttributes) metav1.GroupVersionResource {
	return metav1.GroupVersionResource(a.GetResource())
}

func gvk(a *admission.VersionedAttributes) metav1.GroupVersionKind {
	return metav1.GroupVersionKind(a.VersionedKind)
}
