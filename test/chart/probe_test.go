package chart

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

const probeName = "meshvakt-probe"

// Where it is not asked for, there is no trace of it: no object, no right, no argument.
func TestProbeIsOffByDefault(t *testing.T) {
	for _, o := range documents(t, render(t)) {
		if strings.Contains(fmt.Sprint(o.Object), probeName) {
			t.Errorf("%s %s names probes", o.GetKind(), o.GetName())
		}
	}
}

func TestProbe(t *testing.T) {
	list := documents(t, render(t, "--set", "probe.enabled=true"))
	d := find[appsv1.DaemonSet](t, list, "DaemonSet", probeName)
	pod := d.Spec.Template.Spec
	if pod.ServiceAccountName != probeName || pod.AutomountServiceAccountToken == nil || !*pod.AutomountServiceAccountToken {
		t.Errorf("ServiceAccount %q, token %v", pod.ServiceAccountName, pod.AutomountServiceAccountToken)
	}
	find[corev1.ServiceAccount](t, list, "ServiceAccount", probeName)
	if !equality.Semantic.DeepEqual(pod.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) {
		t.Errorf("tolerations %v; must be one of everything", pod.Tolerations)
	}
	c := pod.Containers[0]
	args := []string{"probe", "--publish", "--node-name=$(NODE_NAME)", "--interval=10m", "--window=60s", "--contended-at=5", "--dir=/probe", "--disk-interval=6h", "--log-level=info", "--log-format=json"}
	if !slices.Equal(c.Args, args) {
		t.Errorf("arguments %q; must be %q", c.Args, args)
	}
	if c.Env[0].Name != "NODE_NAME" || c.Env[0].ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
		t.Errorf("environment %+v", c.Env)
	}
	restricted(t, &pod)
	if v := pod.Volumes; len(v) != 1 || v[0].EmptyDir == nil || v[0].EmptyDir.Medium != "" || v[0].EmptyDir.SizeLimit == nil || c.VolumeMounts[0].MountPath != "/probe" {
		t.Errorf("volumes %+v; must be one on the node's disk, of limited size", v)
	}
	if c.Resources.Limits.Cpu().Sign() != 0 || c.Resources.Limits.Memory().Sign() == 0 {
		t.Errorf("limits %v; must be memory alone", c.Resources.Limits)
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		t.Fatal(err)
	}
	deployment := find[appsv1.Deployment](t, list, "Deployment", "meshvakt")
	if !selector.Matches(labelSet(d.Spec.Template.Labels)) || selector.Matches(labelSet(deployment.Spec.Template.Labels)) {
		t.Errorf("selector %s; must select its pods, and not those of the Deployment", selector)
	}
	for k, v := range find[corev1.Service](t, list, "Service", "meshvakt").Spec.Selector {
		if k == "app.kubernetes.io/component" && d.Spec.Template.Labels[k] == v {
			t.Error("the Service would send reviews to probes")
		}
	}
	if c.Image != deployment.Spec.Template.Spec.Containers[0].Image {
		t.Errorf("image %s", c.Image)
	}
	job := find[batchv1.Job](t, list, "Job", "meshvakt-uninstall")
	if args := job.Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--probe-daemonset="+probeName) {
		t.Errorf("uninstall %q does not clean Nodes", args)
	}
}

// restricted are the demands of the Pod Security Standard of this name, and a root file
// system that is read-only.
func restricted(t *testing.T, pod *corev1.PodSpec) {
	t.Helper()
	s, c := pod.SecurityContext, pod.Containers[0].SecurityContext
	if s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("security context of the pod %+v", s)
	}
	if c == nil || c.AllowPrivilegeEscalation == nil || *c.AllowPrivilegeEscalation || c.ReadOnlyRootFilesystem == nil || !*c.ReadOnlyRootFilesystem ||
		c.Capabilities == nil || !slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(c.Capabilities.Add) > 0 {
		t.Errorf("security context of the container %+v", c)
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Error("it shares a namespace with the node")
	}
}

func TestProbeWithoutDisk(t *testing.T) {
	d := find[appsv1.DaemonSet](t, documents(t, render(t, "--set", "probe.enabled=true,probe.disk.enabled=false")), "DaemonSet", probeName)
	if pod := d.Spec.Template.Spec; len(pod.Volumes) > 0 || len(pod.Containers[0].VolumeMounts) > 0 || !slices.Contains(pod.Containers[0].Args, "--dir=") {
		t.Errorf("volumes %v, arguments %q", pod.Volumes, pod.Containers[0].Args)
	}
}

// The token of a probe may patch the status of Nodes, and only with the policy that
// narrows it; no value takes the policy away.
func TestProbeRights(t *testing.T) {
	for name, values := range map[string]string{
		"default":                    "probe.enabled=true",
		"without admission policies": "probe.enabled=true,admissionPolicies.enabled=false",
	} {
		t.Run(name, func(t *testing.T) {
			list := documents(t, render(t, "--set", values))
			rules := find[rbacv1.ClusterRole](t, list, "ClusterRole", probeName).Rules
			if !equality.Semantic.DeepEqual(rules, []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes/status"}, Verbs: []string{"patch"}}}) {
				t.Errorf("rules %v", rules)
			}
			subjects := find[rbacv1.ClusterRoleBinding](t, list, "ClusterRoleBinding", probeName).Subjects
			if len(subjects) != 1 || subjects[0].Name != probeName || subjects[0].Namespace != "meshvakt-system" {
				t.Errorf("subjects %v", subjects)
			}
			p := find[admissionregistrationv1.ValidatingAdmissionPolicy](t, list, "ValidatingAdmissionPolicy", probeName).Spec
			if p.FailurePolicy == nil || *p.FailurePolicy != admissionregistrationv1.Fail || len(p.MatchConditions) != 1 ||
				!strings.Contains(p.MatchConditions[0].Expression, "'system:serviceaccount:meshvakt-system:meshvakt-probe'") {
				t.Errorf("failure policy %v, conditions %v", p.FailurePolicy, p.MatchConditions)
			}
			// Written in the template, and in the code that they are about.
			text := fmt.Sprint(p.Variables)
			for _, word := range []string{v1alpha1.AnnotationSteal, v1alpha1.AnnotationMeasuredAt, v1alpha1.AnnotationResult, string(v1alpha1.ConditionCPUContended)} {
				if !strings.Contains(text, "'"+word+"'") {
					t.Errorf("the policy does not know %s", word)
				}
			}
			b := find[admissionregistrationv1.ValidatingAdmissionPolicyBinding](t, list, "ValidatingAdmissionPolicyBinding", probeName).Spec
			if b.PolicyName != probeName || !slices.Equal(b.ValidationActions, []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny}) || b.MatchResources != nil {
				t.Errorf("binding %+v", b)
			}
		})
	}
	for _, o := range documents(t, render(t, "--set", "probe.enabled=true,rbac.create=false")) {
		if strings.HasPrefix(o.GetKind(), "ClusterRole") && o.GetName() == probeName {
			t.Errorf("rbac.create=false renders %s %s", o.GetKind(), o.GetName())
		}
	}
}

// Nobody connects to probes, and without targets they connect to the API server alone.
func TestProbeNetworkPolicy(t *testing.T) {
	for _, c := range []struct {
		set      string
		anywhere bool
	}{{"probe.enabled=true", false}, {"probe.enabled=true,probe.targets={a:1}", true}} {
		p := find[networkingv1.NetworkPolicy](t, documents(t, render(t, "--set", "networkPolicy.enabled=true,"+c.set)), "NetworkPolicy", probeName).Spec
		if len(p.PolicyTypes) != 2 || len(p.Ingress) > 0 || len(p.Egress) != 1 || (len(p.Egress[0].Ports) == 0) != c.anywhere {
			t.Errorf("%s: %+v", c.set, p)
		}
	}
}
