// Package celpack holds those rules of mesh-membership that need nothing but the
// object, its namespace and the guard, as a ValidatingAdmissionPolicy, which the
// API server evaluates by itself: what it refuses stays refused while no replica of
// Meshvakt answers.
//
// The pack must never refuse what the policy in Go lets pass. Where something is not
// known here, such as the settings of the mesh, it lets pass.
package celpack

import (
	"slices"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
)

// PolicyName is the name of the ValidatingAdmissionPolicy.
const PolicyName = "meshvakt-mesh-membership"

// fallback is what users read where the API server cannot use the message that
// lists the findings.
const fallback = "violates a MeshGuard: the workload is not in the mesh, or part of its traffic goes around the proxy; see what meshvakt check says of it"

// Policy returns the ValidatingAdmissionPolicy. Its parameter is the MeshGuard that
// a binding names.
func Policy() *admissionregistrationv1.ValidatingAdmissionPolicy {
	fail, equivalent, forbidden := admissionregistrationv1.Fail, admissionregistrationv1.Equivalent, metav1.StatusReasonForbidden
	p := &admissionregistrationv1.ValidatingAdmissionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionregistrationv1.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: PolicyName},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
			ParamKind:        &admissionregistrationv1.ParamKind{APIVersion: v1alpha1.GroupVersion().String(), Kind: "MeshGuard"},
			FailurePolicy:    &fail,
			MatchConstraints: &admissionregistrationv1.MatchResources{MatchPolicy: &equivalent, ResourceRules: resourceRules()},
			MatchConditions: []admissionregistrationv1.MatchCondition{
				{Name: "enforced", Expression: "'Deny' in params.spec.?meshMembership.?validationActions.orValue([])"},
				{Name: "changed", Expression: changed},
				{Name: "alive", Expression: alive},
			},
			Variables: sideVariables(),
			Validations: []admissionregistrationv1.Validation{{
				Expression:        "size(variables.findings) == 0",
				Message:           fallback,
				MessageExpression: message,
				Reason:            &forbidden,
			}},
		},
	}
	list := rules()
	after, before := "[", "["
	for i := range list {
		p.Spec.Variables = append(p.Spec.Variables, admissionregistrationv1.Variable{Name: list[i].variable(), Expression: list[i].expression()})
		after += "\nvariables." + list[i].variable() + "[0],"
		before += "\nvariables." + list[i].variable() + "[1],"
	}
	p.Spec.Variables = append(p.Spec.Variables,
		admissionregistrationv1.Variable{Name: "after", Expression: after + "\n].join('\\n').split('\\n').filter(f, f != '')"},
		// What was wrong before does not refuse the change.
		admissionregistrationv1.Variable{Name: "before", Expression: "size(variables.sides) == 1 || size(variables.after) == 0 ? [] : " + before + "\n].join('\\n').split('\\n')"},
		admissionregistrationv1.Variable{Name: "findings", Expression: "variables.after.filter(f, !(f in variables.before))"},
		admissionregistrationv1.Variable{Name: "text", Expression: "'violates MeshGuard ' + variables.guardName + ' (' + string(size(variables.findings)) +\n" +
			"(size(variables.findings) == 1 ? ' finding): ' : ' findings): ') + variables.findings.join(' | ')"},
	)
	return p
}

// resourceRules are what the policy in Go is asked about in guarded namespaces,
// without the status of pods: kubelets write it all the time, and nobody else may.
func resourceRules() []admissionregistrationv1.NamedRuleWithOperations {
	scope := admissionregistrationv1.NamespacedScope
	var list []admissionregistrationv1.NamedRuleWithOperations
	for _, m := range policies.MeshMembership().Matches {
		if m.Scope != policies.ScopeGuarded || len(m.Names) > 0 || m.Kind == "Binding" {
			continue // or no workload
		}
		resources := []string{m.Resource}
		for _, s := range m.Subresources {
			if s != "status" {
				resources = append(resources, m.Resource+"/"+s)
			}
		}
		var operations []admissionregistrationv1.OperationType
		for _, o := range m.Operations {
			operations = append(operations, admissionregistrationv1.OperationType(o))
		}
		list = append(list, admissionregistrationv1.NamedRuleWithOperations{RuleWithOperations: admissionregistrationv1.RuleWithOperations{
			Operations: operations,
			Rule: admissionregistrationv1.Rule{
				APIGroups: []string{m.Group}, APIVersions: slices.Clone(m.Versions), Resources: resources, Scope: &scope,
			},
		}})
	}
	return list
}

const (
	changed = `request.operation != 'UPDATE' || (request.kind.kind == 'Pod'
? object.?metadata.?labels != oldObject.?metadata.?labels ||
  object.?metadata.?annotations != oldObject.?metadata.?annotations || object.?spec != oldObject.?spec
: object.?spec.?template != oldObject.?spec.?template || object.?spec.?jobTemplate != oldObject.?spec.?jobTemplate)`

	// alive: a pod that has ended, or that the kubelet runs from a file, and what is
	// being deleted, are not judged.
	alive = `!has(object.metadata.deletionTimestamp) && (request.kind.kind != 'Pod' ||
!(object.?status.?phase.orValue('') in ['Succeeded', 'Failed']) &&
!('kubernetes.io/config.mirror' in object.metadata.?annotations.orValue({})))`

	// message: the API server takes one line of 5 KiB.
	message = `size(bytes(variables.text)) <= 5000 ? variables.text :
size(variables.text) > 4000 && size(bytes(variables.text.substring(0, 4000))) <= 5000
? variables.text.substring(0, 4000) + ' …' : variables.text.substring(0, 1200) + ' …'`
)

// sideVariables are what all rules read: the pod, or the template of one, as it is to
// be and, on UPDATE, as it was, in this order.
func sideVariables() []admissionregistrationv1.Variable {
	containers := func(field, kind string) string {
		return "p." + kind + ".map(c, {'c': dyn(c), 'kind': dyn('" + kind + "'), 'name': dyn(c.?name.orValue('')),\n" +
			"  'at': dyn('spec." + field + "['),\n" +
			"  'istio': dyn((p.hasProxy || !variables.isPod) && c.?name.orValue('') in " + istioNames(kind) + "),\n" +
			"  'args': dyn(" + array("c.?args") + "),\n" +
			"  'env': dyn(" + array("c.?env") + "),\n" +
			"  'mounts': dyn(" + array("c.?volumeMounts") + "),\n" +
			"  'security': dyn(" + object("c.?securityContext") + ")})"
	}
	names := func(kind string) string {
		return "'" + kind + "': dyn(p." + kind + ".map(c, c.?name.orValue('')))"
	}
	return []admissionregistrationv1.Variable{
		{Name: "guard", Expression: "dyn(params.spec.meshMembership)"},
		{Name: "guardName", Expression: "strings.quote(string(params.metadata.name))"},
		{Name: "outbound", Expression: object("variables.guard.?outbound")},
		{Name: "isPod", Expression: "request.kind.kind == 'Pod'"},
		{Name: "at", Expression: "variables.isPod ? '' : request.kind.kind == 'CronJob' ? 'spec.jobTemplate.spec.template.' : 'spec.template.'"},
		{Name: "ambientNamespace", Expression: "namespaceObject.?metadata.?labels[?'istio.io/dataplane-mode'].orValue('') == 'ambient'"},
		{Name: "ambientAccepted", Expression: "'Ambient' in variables.guard.?dataPlanes.orValue([])"},
		// On OpenShift proxies run as the last user of the namespace's range.
		{Name: "users", Expression: "namespaceObject.?metadata.?annotations[?'openshift.io/sa.scc.uid-range'].orValue('')"},
		{Name: "proxyUID", Expression: `variables.users.matches('^[0-9]{1,10}/0*[1-9][0-9]{0,9}$')
? int(variables.users.split('/')[0]) + int(variables.users.split('/')[1]) - 1
: variables.users.matches('^[0-9]{1,10}-[0-9]{1,10}$') ? int(variables.users.split('-')[1]) : 1337`},
		{Name: "objects", Expression: "request.operation == 'UPDATE' ? [dyn(object), dyn(oldObject)] : [dyn(object)]"},
		{Name: "templates", Expression: "variables.isPod ? variables.objects : request.kind.kind == 'CronJob'\n" +
			"? variables.objects.map(o, dyn(" + object("o.?spec.?jobTemplate.?spec.?template") + "))\n" +
			": variables.objects.map(o, dyn(" + object("o.?spec") + ")).map(o, dyn(" + object("o.?template") + "))"},
		{Name: "pods", Expression: "variables.templates.map(t, {\n" +
			"'metadata': dyn(" + object("t.?metadata") + "),\n'spec': dyn(" + object("t.?spec") + ")}).map(t, {\n" +
			"'labels': dyn(" + object("t.metadata.?labels") + "),\n'annotations': dyn(" + object("t.metadata.?annotations") + "),\n'spec': t.spec,\n" +
			"'inits': dyn(" + array("t.spec.?initContainers") + "),\n'regulars': dyn(" + array("t.spec.?containers") + "),\n" +
			"'ephemerals': dyn(" + array("t.spec.?ephemeralContainers") + "),\n'security': dyn(" + object("t.spec.?securityContext") + "),\n" +
			"'hasProxy': dyn((" + array("t.spec.?initContainers") + " + " + array("t.spec.?containers") + ").exists(c, c.?name.orValue('') == 'istio-proxy'))})"},
		{Name: "sides", Expression: "variables.pods.map(p, {\n'labels': p.labels, 'annotations': p.annotations, 'spec': p.spec, 'security': p.security, 'hasProxy': p.hasProxy,\n" +
			"'enrolled': dyn(p.spec.?hostNetwork.orValue(false) != true && !('sidecar.istio.io/status' in p.annotations) &&\n" +
			"  (p.labels[?'istio.io/dataplane-mode'].orValue('') == 'ambient' || p.labels[?'istio.io/dataplane-mode'].orValue('') != 'none' && variables.ambientNamespace)),\n" +
			"'names': dyn({" + names("inits") + ", " + names("regulars") + ", " + names("ephemerals") + "}),\n" +
			"'containers': dyn(" + containers("initContainers", "inits") + "\n+ " + containers("containers", "regulars") + "\n+ " + containers("ephemeralContainers", "ephemerals") + ")})"},
	}
}

// istioNames are the names of Istio's among the containers of a kind.
func istioNames(kind string) string {
	switch kind {
	case "inits":
		return "['istio-proxy', 'istio-init', 'istio-validation']"
	case "regulars":
		return "['istio-proxy']"
	}
	return "[]"
}

// What rules ask of a side. Whether a template will be injected is not known here.
// Containers of Istio's names are taken for Istio's there, and what the labels would
// enrol in ambient for enrolled, so that rules that do not hold in ambient leave it
// alone.
const (
	// position is the field of container c.
	position  = "c.at + string(s.names[c.kind].indexOf(c.name)) + ']'"
	apps      = "s.containers.filter(c, !c.istio)"
	istios    = "s.containers.filter(c, c.istio)"
	ambient   = "(!s.hasProxy && s.enrolled && variables.ambientAccepted)"
	sidecar   = "(s.hasProxy || !variables.isPod && !" + ambient + ")"
	proxyOnly = "(s.hasProxy && !s.containers.exists(c, !c.istio))"
)

// Covered is what the pack says of one reason.
type Covered struct {
	Reason policies.Reason
	// Templates: templates are judged too, not only pods.
	Templates bool
	// How says by what it decides.
	How string
}

// Coverage lists what the pack covers, in the order of the rules.
func Coverage() []Covered {
	var out []Covered
	for _, r := range rules() {
		out = append(out, Covered{reasonOf(r.reason), r.templates, r.how})
	}
	return out
}
