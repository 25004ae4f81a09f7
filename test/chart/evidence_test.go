package chart

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// withEvidence is the least that has to be said.
const withEvidence = "evidence.enabled=true,evidence.name=evidence.example.org,evidence.retention=9504h"

func withEvidenceAnd(t *testing.T, sets ...string) []*unstructured.Unstructured {
	t.Helper()
	return documents(t, render(t, "--set", strings.Join(append([]string{withEvidence}, sets...), ",")))
}

func kinds(list []*unstructured.Unstructured, name string) (kinds []string) {
	for _, o := range list {
		if o.GetName() == name && slices.Contains([]string{"Deployment", "StatefulSet"}, o.GetKind()) {
			kinds = append(kinds, o.GetKind())
		}
	}
	slices.Sort(kinds)
	return kinds
}

// Where it is not asked for, there is no trace of it: no object, no right, no argument, no volume.
func TestEvidenceIsOffByDefault(t *testing.T) {
	for _, o := range documents(t, render(t, "--set", "metrics.prometheusRule.enabled=true,networkPolicy.enabled=true")) {
		// Definitions of kinds, and the image's documentation, are the same for everybody.
		if o.GetKind() != "CustomResourceDefinition" && strings.Contains(strings.ToLower(fmt.Sprint(o.Object)), "evidence") {
			t.Errorf("%s %s has something about evidence", o.GetKind(), o.GetName())
		}
	}
}

// Replicas are of a StatefulSet with evidence, of a Deployment without, and of both for a change.
func TestKindOfReplicas(t *testing.T) {
	for _, c := range []struct {
		sets []string
		want []string
	}{
		{nil, []string{"StatefulSet"}},
		{[]string{"evidence.migration=true"}, []string{"Deployment", "StatefulSet"}},
	} {
		if got := kinds(withEvidenceAnd(t, c.sets...), "meshvakt"); !slices.Equal(got, c.want) {
			t.Errorf("%q renders %q; must be %q", c.sets, got, c.want)
		}
	}
	if got := kinds(documents(t, render(t)), "meshvakt"); !slices.Equal(got, []string{"Deployment"}) {
		t.Errorf("without evidence it renders %q", got)
	}
}

// What the two kinds run differs in nothing but evidence: the Deployment that runs beside the
// StatefulSet is the one that ran before.
func TestDeploymentStaysAsItWas(t *testing.T) {
	before := find[appsv1.Deployment](t, documents(t, render(t)), "Deployment", "meshvakt")
	during := find[appsv1.Deployment](t, withEvidenceAnd(t, "evidence.migration=true"), "Deployment", "meshvakt")
	digest := func(args []string) []string {
		return slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, "--own-objects-digest=") })
	}
	one, other := &before.Spec.Template.Spec.Containers[0], &during.Spec.Template.Spec.Containers[0]
	one.Args, other.Args = digest(one.Args), digest(other.Args)
	if !equal(before.Spec, during.Spec) {
		t.Errorf("the Deployment is\n%+v\nand beside the StatefulSet\n%+v", before.Spec, during.Spec)
	}
}

func TestStatefulSet(t *testing.T) {
	list := withEvidenceAnd(t, "evidence.volume.storageClassName=fast")
	s := find[appsv1.StatefulSet](t, list, "StatefulSet", "meshvakt").Spec
	if *s.Replicas != 3 || s.MinReadySeconds < 5 || s.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		t.Errorf("replicas %d, minReadySeconds %d, update %v", *s.Replicas, s.MinReadySeconds, s.UpdateStrategy)
	}
	if s.PodManagementPolicy != appsv1.ParallelPodManagement {
		t.Errorf("pods are managed %s; a replica would wait for another", s.PodManagementPolicy)
	}
	if keep := s.PersistentVolumeClaimRetentionPolicy; keep == nil || keep.WhenDeleted != appsv1.RetainPersistentVolumeClaimRetentionPolicyType || keep.WhenScaled != appsv1.RetainPersistentVolumeClaimRetentionPolicyType {
		t.Errorf("volumes are kept %v; must be, whatever happens", keep)
	}
	claim := s.VolumeClaimTemplates[0].Spec
	if !slices.Equal(claim.AccessModes, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}) || *claim.StorageClassName != "fast" || claim.Resources.Requests.Storage().String() != "10Gi" {
		t.Errorf("claim %+v", claim)
	}
	webhook, sealer := s.Template.Spec.Containers[0], s.Template.Spec.Containers[1]
	for _, want := range []string{"--evidence-dir=/evidence", "--evidence-name=evidence.example.org", "--evidence-mode=best-effort", "--evidence-retention=9504h", "--evidence-break-glass-group=system:masters"} {
		if !slices.Contains(webhook.Args, want) {
			t.Errorf("arguments %q lack %s", webhook.Args, want)
		}
	}
	fields := map[string]string{}
	for _, e := range webhook.Env {
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			fields[e.Name] = e.ValueFrom.FieldRef.FieldPath
		}
	}
	if want := map[string]string{"POD_NAME": "metadata.name", "POD_UID": "metadata.uid", "POD_NAMESPACE": "metadata.namespace", "NODE_NAME": "spec.nodeName"}; !equal(fields, want) {
		t.Errorf("environment %v; must be %v", fields, want)
	}
	if want := []string{"evidence", "supervise", "--", "evidence", "seal", "--dir=/evidence"}; !slices.Equal(sealer.Args[:len(want)], want) || sealer.Image != webhook.Image {
		t.Errorf("the sealer runs %q of %s", sealer.Args, sealer.Image)
	}
	for _, c := range []corev1.Container{webhook, sealer} {
		if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == "evidence" && m.MountPath == "/evidence" && !m.ReadOnly
		}) {
			t.Errorf("%s mounts %v", c.Name, c.VolumeMounts)
		}
		restricted(t, &corev1.PodSpec{SecurityContext: s.Template.Spec.SecurityContext, Containers: []corev1.Container{c}})
		if c.Resources.Limits.Memory().Sign() == 0 {
			t.Errorf("%s may take all memory", c.Name)
		}
	}
	if c := s.Template.Spec.SecurityContext; c.FSGroup == nil || *c.FSGroup != *c.RunAsGroup || c.FSGroupChangePolicy == nil || *c.FSGroupChangePolicy != corev1.FSGroupChangeOnRootMismatch {
		t.Errorf("security context %+v; the process could not write, or keys would be opened to the group at every start", c)
	}
}

// The sealer reads the volume and talks to witnesses; it has no business with the API server.
func TestSealerHasNoToken(t *testing.T) {
	pod := find[appsv1.StatefulSet](t, withEvidenceAnd(t), "StatefulSet", "meshvakt").Spec.Template.Spec
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("all containers get a token")
	}
	for _, c := range pod.Containers {
		has := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == "token" && m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount" && m.ReadOnly
		})
		if has != (c.Name == "meshvakt") {
			t.Errorf("container %s has a token: %t", c.Name, has)
		}
	}
}

// A pod is ready only while its containers are: nothing about the sealer may be probed, or a full
// disk would take the webhook from the API server.
func TestSealerHoldsUpNobody(t *testing.T) {
	pod := find[appsv1.StatefulSet](t, withEvidenceAnd(t, "evidence.sealer.listen.enabled=true"), "StatefulSet", "meshvakt").Spec.Template.Spec
	if c := pod.Containers[1]; c.Name != "sealer" || c.ReadinessProbe != nil || c.LivenessProbe != nil || c.StartupProbe != nil {
		t.Errorf("container %s is probed: %+v", c.Name, c)
	}
}

// Whoever must not delete evidence must not delete keys either.
func TestRetention(t *testing.T) {
	for _, c := range []struct{ set, want string }{
		{"evidence.retention=9504h", "9504h"},
		{"evidence.retention=forever", "0"},
		{"evidence.legalHold=true", "0"},
	} {
		pod := find[appsv1.StatefulSet](t, withEvidenceAnd(t, c.set), "StatefulSet", "meshvakt").Spec.Template.Spec
		if !slices.Contains(pod.Containers[0].Args, "--evidence-retention="+c.want) || !slices.Contains(pod.Containers[1].Args, "--retention="+c.want) {
			t.Errorf("%s: arguments %q and %q; must keep for %s", c.set, pod.Containers[0].Args, pod.Containers[1].Args, c.want)
		}
	}
}

// With evidence that ends with the pod there is no claim.
func TestEvidenceInEmptyDir(t *testing.T) {
	s := find[appsv1.StatefulSet](t, withEvidenceAnd(t, "evidence.volume.type=emptyDir"), "StatefulSet", "meshvakt").Spec
	i := slices.IndexFunc(s.Template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "evidence" })
	if len(s.VolumeClaimTemplates) > 0 || i < 0 || s.Template.Spec.Volumes[i].EmptyDir == nil || s.Template.Spec.Volumes[i].EmptyDir.SizeLimit == nil {
		t.Errorf("claims %v, volumes %v", s.VolumeClaimTemplates, s.Template.Spec.Volumes)
	}
}

// What evidence needs of the API server is granted twice, by name where there is one, and only
// where there is evidence.
func TestEvidenceRights(t *testing.T) {
	grants := func(list []*unstructured.Unstructured, role, group, resource, verb, name string) bool {
		for _, r := range find[rbacv1.Role](t, list, "Role", role).Rules {
			if slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, resource) && slices.Contains(r.Verbs, verb) &&
				(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, name)) {
				return true
			}
		}
		return false
	}
	for _, c := range []struct {
		group, resource, verb, name string
		without, with               bool
	}{
		{"", "secrets", "get", "meshvakt-evidence", false, true},
		{"", "secrets", "update", "meshvakt-evidence", false, true},
		{"", "secrets", "delete", "meshvakt-evidence", false, false},
		{"", "secrets", "list", "", false, false},
		{"", "secrets", "create", "", false, true}, // with certificates of a Secret of somebody else's
		{"coordination.k8s.io", "leases", "create", "", true, true},
		{"coordination.k8s.io", "leases", "get", "meshvakt-evidence-meshvakt-0", false, true},
		{"coordination.k8s.io", "leases", "update", "meshvakt-evidence-meshvakt-2", false, true},
		{"coordination.k8s.io", "leases", "update", "meshvakt-evidence-meshvakt-3", false, false},
		{"coordination.k8s.io", "leases", "update", "other", false, false},
		{"discovery.k8s.io", "endpointslices", "list", "", false, true},
		{"discovery.k8s.io", "endpointslices", "update", "", false, false},
	} {
		for set, want := range map[string]bool{"certificates.mode=cert-manager": c.without, "certificates.mode=cert-manager," + withEvidence: c.with} {
			list := documents(t, render(t, "--set", set))
			for _, role := range []string{"meshvakt", "meshvakt-spare"} {
				if got := grants(list, role, c.group, c.resource, c.verb, c.name); got != want {
					t.Errorf("%s: Role %s lets %s %s %s: %t; must be %t", set, role, c.verb, c.resource, c.name, got, want)
				}
			}
		}
	}
}

func TestUninstallEndsReplicasOfEitherKind(t *testing.T) {
	for _, c := range []struct {
		set       string
		args      []string
		resources []string
	}{
		{"replicaCount=3", []string{"--deployment=meshvakt"}, []string{"deployments"}},
		{withEvidence, []string{"--deployment=", "--statefulset=meshvakt"}, []string{"statefulsets"}},
		{withEvidence + ",evidence.migration=true", []string{"--deployment=meshvakt", "--statefulset=meshvakt"}, []string{"deployments", "statefulsets"}},
	} {
		list := documents(t, render(t, "--set", c.set))
		args := slices.DeleteFunc(find[batchv1.Job](t, list, "Job", "meshvakt-uninstall").Spec.Template.Spec.Containers[0].Args, func(a string) bool {
			return !strings.HasPrefix(a, "--deployment") && !strings.HasPrefix(a, "--statefulset")
		})
		if !slices.Equal(args, c.args) {
			t.Errorf("%s: it ends %q; must be %q", c.set, args, c.args)
		}
		var got, scales []string
		for _, r := range find[rbacv1.Role](t, list, "Role", "meshvakt-uninstall").Rules {
			if slices.Equal(r.APIGroups, []string{"apps"}) {
				for _, resource := range r.Resources {
					if name, scale := strings.CutSuffix(resource, "/scale"); scale {
						scales = append(scales, name)
					} else {
						got = append(got, resource)
					}
				}
			}
		}
		if !slices.Equal(got, c.resources) || !slices.Equal(scales, c.resources) {
			t.Errorf("%s: it may get %q and scale %q; must be %q", c.set, got, scales, c.resources)
		}
	}
}

// Logs are served where that is asked for: each replica's by its own name, to whom the
// NetworkPolicy lets in.
func TestLogsAreServedOnRequest(t *testing.T) {
	const served = "evidence.sealer.listen.enabled=true"
	has := func(list []*unstructured.Unstructured) bool {
		return slices.ContainsFunc(list, func(o *unstructured.Unstructured) bool {
			return o.GetKind() == "Service" && o.GetName() == "meshvakt-evidence"
		})
	}
	if has(withEvidenceAnd(t)) {
		t.Error("there is a Service although nothing is served")
	}
	list := withEvidenceAnd(t, served, "networkPolicy.enabled=true", "networkPolicy.evidenceFrom[0].ipBlock.cidr=192.0.2.0/24")
	s := find[corev1.Service](t, list, "Service", "meshvakt-evidence")
	set := find[appsv1.StatefulSet](t, list, "StatefulSet", "meshvakt").Spec
	if s.Spec.ClusterIP != corev1.ClusterIPNone || set.ServiceName != s.Name || s.Spec.Ports[0].TargetPort.StrVal != set.Template.Spec.Containers[1].Ports[0].Name {
		t.Errorf("Service %+v of StatefulSet with serviceName %q", s.Spec, set.ServiceName)
	}
	var open []networkingv1.NetworkPolicyPeer
	for _, rule := range find[networkingv1.NetworkPolicy](t, list, "NetworkPolicy", "meshvakt").Spec.Ingress {
		if rule.Ports[0].Port.StrVal == "evidence" {
			open = rule.From
		}
	}
	if len(open) != 1 || open[0].IPBlock == nil || open[0].IPBlock.CIDR != "192.0.2.0/24" {
		t.Errorf("logs are open to %v", open)
	}
}

// Where a mirror is set, the sealer has what it needs for it, and the webhook nothing of that.
func TestMirror(t *testing.T) {
	const s3 = "evidence.sealer.mirror.url=s3://evidence/fleet,evidence.sealer.mirror.endpoint=https://s3.example.org,evidence.sealer.mirror.region=eu-north-1,evidence.sealer.mirror.secret=keys,evidence.sealer.mirror.lock=compliance,evidence.sealer.mirror.caConfigMap=ca"
	for _, c := range []struct {
		set   string
		args  []string
		env   []string
		paths []string
	}{
		{"replicaCount=3", nil, nil, nil},
		{
			s3,
			[]string{"--mirror=s3://evidence/fleet", "--mirror-endpoint=https://s3.example.org", "--mirror-region=eu-north-1", "--mirror-ca-file=/etc/meshvakt/mirror-ca/ca.crt", "--mirror-lock=compliance", "--mirror-lock-for=9504h"},
			[]string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}, []string{"/etc/meshvakt/mirror-ca"},
		},
		{"evidence.legalHold=true," + s3, []string{"--mirror=s3://evidence/fleet", "--mirror-endpoint=https://s3.example.org", "--mirror-region=eu-north-1", "--mirror-ca-file=/etc/meshvakt/mirror-ca/ca.crt", "--mirror-lock=compliance", "--mirror-lock-for=9504h"}, []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}, []string{"/etc/meshvakt/mirror-ca"}},
		{"evidence.sealer.mirror.url=s3://evidence", []string{"--mirror=s3://evidence"}, nil, nil},
		{
			"evidence.sealer.mirror.url=https://mirror.example.org/evidence,evidence.sealer.mirror.secret=keys",
			[]string{"--mirror=https://mirror.example.org/evidence", "--mirror-authorization-file=/etc/meshvakt/mirror/authorization"}, nil, []string{"/etc/meshvakt/mirror"},
		},
	} {
		pod := find[appsv1.StatefulSet](t, withEvidenceAnd(t, c.set), "StatefulSet", "meshvakt").Spec.Template.Spec
		webhook, sealer := pod.Containers[0], pod.Containers[1]
		var args, env, paths []string
		for _, a := range sealer.Args {
			if strings.HasPrefix(a, "--mirror") {
				args = append(args, a)
			}
		}
		for _, e := range sealer.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				env = append(env, e.Name)
				if e.ValueFrom.SecretKeyRef.Name != "keys" || *e.ValueFrom.SecretKeyRef.Optional != (e.Name == "AWS_SESSION_TOKEN") {
					t.Errorf("%s: %s is of %+v", c.set, e.Name, e.ValueFrom.SecretKeyRef)
				}
			}
		}
		for _, m := range sealer.VolumeMounts {
			if !strings.HasPrefix(m.MountPath, "/etc/meshvakt/mirror") {
				continue
			}
			paths = append(paths, m.MountPath)
			if !m.ReadOnly || !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
				t.Errorf("%s: %+v is of no volume, or can be written to", c.set, m)
			}
		}
		if !slices.Equal(args, c.args) || !slices.Equal(env, c.env) || !slices.Equal(paths, c.paths) {
			t.Errorf("%s: arguments %q, environment %q, mounts %q; must be %q, %q, %q", c.set, args, env, paths, c.args, c.env, c.paths)
		}
		if text := fmt.Sprint(webhook); strings.Contains(text, "mirror") || strings.Contains(text, "AWS_") {
			t.Errorf("%s: the webhook has something of the mirror: %s", c.set, text)
		}
	}
	for _, set := range []string{
		"evidence.sealer.mirror.url=https://mirror.example.org,evidence.sealer.mirror.lock=governance",
		"evidence.sealer.mirror.url=s3://evidence,evidence.sealer.mirror.lock=governance,evidence.retention=forever",
		"evidence.sealer.mirror.lock=governance",
	} {
		if _, stderr, err := helm(t, "template", "meshvakt", chart, "--namespace", "meshvakt-system", "--set", withEvidence+","+set); err == nil || !strings.Contains(stderr, "evidence.sealer.mirror.lock is for") {
			t.Errorf("%s is taken: %s", set, stderr)
		}
	}
}

// The way to the mirror is open where there is one, and alerts exist where their metrics do.
func TestMirrorIsReachedAndWatched(t *testing.T) {
	const both = "evidence.sealer.mirror.url=s3://evidence,evidence.sealer.witnessPolicy.configMap=witnesses,networkPolicy.enabled=true,networkPolicy.mirrorPorts={9000},metrics.prometheusRule.enabled=true"
	list := withEvidenceAnd(t, both)
	open := false
	for _, rule := range find[networkingv1.NetworkPolicy](t, list, "NetworkPolicy", "meshvakt").Spec.Egress {
		open = open || slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port.IntVal == 9000 })
	}
	if !open {
		t.Error("the mirror's port is closed")
	}
	for listen, want := range map[string]bool{"false": false, "true": true} {
		list := withEvidenceAnd(t, both, "evidence.sealer.listen.enabled="+listen)
		for _, alert := range []string{"MeshvaktEvidenceUnwitnessed", "MeshvaktEvidenceMirrorBehind"} {
			has := slices.ContainsFunc(list, func(o *unstructured.Unstructured) bool {
				return o.GetKind() == "PrometheusRule" && strings.Contains(fmt.Sprint(o.Object), alert)
			})
			if has != want {
				t.Errorf("with listen.enabled=%s alert %s is there: %t; must be %t", listen, alert, has, want)
			}
		}
	}
}
