package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

// toPlace is a workload and what becomes of its pods.
type toPlace struct {
	name, kind string
	pods       int32
	edit       func(*corev1.PodSpec)
	// bound is how many pods get a node, and why what the events of the others say.
	bound int
	why   []string
	// refused is what the refusal of the workload says; no pods come of it then.
	refused []string
}

// terms are ORed terms of required node affinity.
func terms(list ...[]corev1.NodeSelectorRequirement) func(*corev1.PodSpec) {
	return func(s *corev1.PodSpec) {
		required := &corev1.NodeSelector{}
		for _, requirements := range list {
			required.NodeSelectorTerms = append(required.NodeSelectorTerms, corev1.NodeSelectorTerm{MatchExpressions: requirements})
		}
		s.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: required}}
	}
}

func among(key string, values ...string) []corev1.NodeSelectorRequirement {
	return []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpIn, Values: values}}
}

// edits applies several.
func edits(list ...func(*corev1.PodSpec)) func(*corev1.PodSpec) {
	return func(s *corev1.PodSpec) {
		for _, edit := range list {
			edit(s)
		}
	}
}

func tolerating(s *corev1.PodSpec) {
	s.Tolerations = []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpEqual, Value: "payments", Effect: corev1.TaintEffectNoSchedule}}
}

func cpus(quantity string) func(*corev1.PodSpec) {
	return func(s *corev1.PodSpec) {
		s.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse(quantity)
	}
}

// apart keeps pods of the namespace off each other's nodes.
func apart(s *corev1.PodSpec) {
	s.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
		TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"apart": "true"}},
	}}}}
}

func spread(s *corev1.PodSpec) {
	s.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.DoNotSchedule,
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"spread": "true"}},
	}}
}

const nodeType = corev1.LabelInstanceTypeStable

func toBePlaced() []toPlace {
	return []toPlace{
		{name: "plain", kind: "Deployment", pods: 20, bound: 20},
		{name: "region", kind: "Deployment", pods: 6, edit: func(s *corev1.PodSpec) {
			s.NodeSelector = map[string]string{corev1.LabelTopologyRegion: "europe-north1"}
		}, bound: 6},
		{name: "arm", kind: "Job", pods: 3, edit: func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{corev1.LabelArchStable: "arm64"} }, bound: 3},
		{name: "either", kind: "StatefulSet", pods: 5, edit: terms(among(nodeType, "t3.large"), among(nodeType, "m5.xlarge")), bound: 5},
		{name: "tolerating", kind: "Deployment", pods: 4, edit: edits(inPool("payments"), tolerating), bound: 4},
		{name: "spread", kind: "StatefulSet", pods: 9, edit: edits(terms(among(corev1.LabelTopologyRegion, "eu-north-1")), spread), bound: 9},
		{name: "apart", kind: "Deployment", pods: 30, edit: apart, bound: 26, // m5, n2, arm64
			why: []string{"didn't match pod anti-affinity rules", "didn't match Pod's node affinity/selector", "untolerated taint"}},
		{name: "too-large", kind: "Job", pods: 2, edit: cpus("64"), why: []string{"nodes are available", "Insufficient cpu", "didn't match Pod's node affinity/selector"}},
		{name: "large", kind: "Deployment", pods: 2, edit: cpus("16"), // only burstable nodes are as large
			why: []string{"Insufficient cpu", "didn't match Pod's node affinity/selector"}},
		{name: "not-tolerating", kind: "Job", pods: 1, edit: inPool("payments"), why: []string{"untolerated taint"}},
		{name: "cron", kind: "CronJob", pods: 2, bound: 2},

		{name: "burstable", kind: "Deployment", pods: 1, edit: inPool("t3"), refused: []string{
			`spec.template.spec.nodeSelector: lets pods land only on nodes on which they may not run by MeshGuard "steered": 10 nodes such as "t3-00" are burstable (instance type t3.large); must let them land on others [MV405]`}},
		{name: "shared-core", kind: "StatefulSet", pods: 1, edit: inPool("e2-medium"), refused: []string{`8 nodes such as "e2-medium-00" are burstable (instance type e2-medium)`, "[MV405]"}},
		{name: "abroad", kind: "Job", pods: 1, edit: inPool("abroad"), refused: []string{`6 nodes such as "abroad-00" are in region "us-east-1"`, "[MV405]"}},
		{name: "unlabelled", kind: "CronJob", pods: 1, edit: inPool("unlabelled"), refused: []string{
			`spec.jobTemplate.spec.template.spec.nodeSelector`, `4 nodes such as "unlabelled-00" are of unknown class (no instance type)`, "[MV405]"}},
		{name: "either-bad", kind: "Deployment", pods: 1, edit: terms(among(nodeType, "t3.large"), among("pool", "abroad")), refused: []string{
			`10 nodes such as "t3-00" are burstable`, `6 nodes such as "abroad-00" are in region`, "requiredDuringSchedulingIgnoredDuringExecution", "[MV405]"}},
	}
}

// workload makes an object of the kind that runs the pods.
func (w *toPlace) workload(namespace string) client.Object {
	labels := map[string]string{"app": w.name, w.name: "true"}
	meta := metav1.ObjectMeta{Namespace: namespace, Name: w.name}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: newPod(namespace, w.edit).Spec}
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": w.name}}
	job := template
	job.Spec.RestartPolicy = corev1.RestartPolicyNever
	switch w.kind {
	case "Deployment":
		return &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &w.pods, Selector: selector, Template: template}}
	case "StatefulSet":
		return &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Replicas: &w.pods, Selector: selector, Template: template, PodManagementPolicy: appsv1.ParallelPodManagement}}
	case "DaemonSet":
		return &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Selector: selector, Template: template, UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
			RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &intstr.IntOrString{IntVal: 1}}}}}
	case "CronJob":
		return &batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{Schedule: "0 0 1 1 *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Parallelism: &w.pods, Completions: &w.pods, Template: job}}}}
	}
	return &batchv1.Job{ObjectMeta: meta, Spec: batchv1.JobSpec{Parallelism: &w.pods, Completions: &w.pods, Template: job}}
}

// Every workload is either refused when it is applied, or its pods get nodes on which
// they may run, or they say why they get none.
func (p *placement) workloads(t *testing.T) {
	namespace := p.namespace(t, steered)
	list := toBePlaced()
	for i := range list {
		w := &list[i]
		err := p.dev.Create(t.Context(), w.workload(namespace))
		if w.refused == nil {
			must(t, err)
			continue
		}
		t.Logf("%s: %s", w.name, refused(t, err, w.refused...))
	}
	_, _, err := plane.Kubectl(t.Context(), controlplane.Developer, "", "-n", namespace, "create", "job", "--from=cronjob/cron", "cron-1")
	must(t, err)
	for i := range list {
		w := &list[i]
		if w.refused != nil {
			continue
		}
		eventually(t, 40*time.Second, func() error { return p.placed(t, namespace, w) })
		if w.why != nil {
			pods := slices.DeleteFunc(p.pods(t, namespace, client.MatchingLabels{"app": w.name}), func(pod corev1.Pod) bool { return pod.Spec.NodeName != "" })
			t.Logf("%s: %s", w.name, p.told(t, namespace, pods[0].Name, "FailedScheduling")[0])
		}
	}
	p.nowhereBad(t, namespace)
	zones := map[string]int{}
	zoneOf := map[string]string{}
	for _, n := range p.nodes(t) {
		zoneOf[n.Name] = n.Labels[corev1.LabelTopologyZone]
	}
	for _, pod := range p.pods(t, namespace, client.MatchingLabels{"app": "spread"}) {
		zones[zoneOf[pod.Spec.NodeName]]++
	}
	if len(zones) != 3 || zones["eu-north-1a"] != 3 || zones["eu-north-1b"] != 3 {
		t.Errorf("pods are spread over zones as %v; must be even", zones)
	}
	_, _, err = plane.Kubectl(t.Context(), controlplane.Developer, "", "-n", namespace, "delete", "deployments,statefulsets,jobs,cronjobs", "--all", "--wait=false")
	must(t, err)
}

// placed tells in what the pods of a workload are not as they should be.
func (p *placement) placed(t testing.TB, namespace string, w *toPlace) error {
	pods := p.pods(t, namespace, client.MatchingLabels{"app": w.name})
	if len(pods) != int(w.pods) || on(pods) != w.bound {
		err := fmt.Errorf("%s: %d pods are there, %d have nodes; must be %d and %d", w.name, len(pods), on(pods), w.pods, w.bound)
		for _, pod := range pods {
			if pod.Spec.NodeName == "" {
				err = fmt.Errorf("%w\n%s: %q", err, pod.Name, p.told(t, namespace, pod.Name, "FailedScheduling"))
			}
		}
		return err
	}
	for _, pod := range pods {
		if pod.Spec.NodeName != "" {
			continue
		}
		texts := p.told(t, namespace, pod.Name, "FailedScheduling")
		if !slices.ContainsFunc(texts, func(text string) bool { return saysAll(text, w.why) }) {
			return fmt.Errorf("%s: the events of pod %s say %q; must hold %q", w.name, pod.Name, texts, w.why)
		}
	}
	return nil
}
