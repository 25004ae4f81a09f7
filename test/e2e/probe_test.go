package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/probe"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

const (
	nodeA, nodeB  = "probed-a", "probed-b"
	probeName     = "meshvakt-probe"
	ttlAnnotation = "node.alpha.kubernetes.io/ttl"
)

// What the DaemonSet of probes does to Nodes, may do to them, and leaves on them.
func TestProbe(t *testing.T) {
	r := newRelease(t)
	r.kubectl("", "create", "namespace", "istio-system")
	r.kubectl("", "create", "namespace", ownNamespace)
	r.kubectl("", "label", "namespace", ownNamespace, "pod-security.kubernetes.io/enforce=restricted")
	for _, name := range []string{nodeA, nodeB} {
		node := &corev1.Node{}
		node.Name = name
		node.Labels = map[string]string{corev1.LabelOSStable: "linux", "pool": "x"}
		node.Annotations = map[string]string{"somebody.example/note": "stays"}
		node.Spec.Taints = []corev1.Taint{{Key: "dedicated", Value: "db", Effect: corev1.TaintEffectNoSchedule}}
		node.Status.Images = []corev1.ContainerImage{{Names: []string{"registry.example/web:1"}, SizeBytes: 1}}
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
		node.Status.Conditions = []corev1.NodeCondition{
			{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()},
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()},
		}
		if _, err := r.plane.AddNode(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name string
		do   func(t *testing.T, r *release)
	}{
		{"a pod on every node", probePods},
		{"rights are narrow", probeRights},
		{"the policy has no flaws", probePolicyCompiles},
		{"publishes", probePublishes},
		{"writes its own and nothing else", probeIsConfined},
		{"others are not asked", probeLeavesOthersAlone},
		{"uninstall cleans nodes", probeUninstalls},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			step.do(t, &release{t: t, plane: r.plane, client: r.client, helm: r.helm})
		}) {
			return // the next step rests on it
		}
	}
}

func (r *release) node(name string) *corev1.Node {
	r.t.Helper()
	var n corev1.Node
	if err := r.client.Get(r.t.Context(), client.ObjectKey{Name: name}, &n); err != nil {
		r.t.Fatal(err)
	}
	return &n
}

// probePods installs. The namespace enforces "restricted", and both nodes have a taint.
func probePods(t *testing.T, r *release) {
	r.run("install", "meshvakt", "charts/meshvakt", "--set", "probe.enabled=true,guard.create=false")
	eventually(t, 60*time.Second, func() error {
		if pods := r.probePods(); len(pods) != 2 {
			return fmt.Errorf("probes on %v; must be on both nodes", pods)
		}
		return nil
	})
}

// probePods are the names of the pods by that of their node.
func (r *release) probePods() map[string]string {
	r.t.Helper()
	var pods corev1.PodList
	if err := r.client.List(r.t.Context(), &pods, client.InNamespace(ownNamespace), client.MatchingLabels{"app.kubernetes.io/component": "probe"}); err != nil {
		r.t.Fatal(err)
	}
	on := map[string]string{}
	for i := range pods.Items {
		if p := &pods.Items[i]; p.Spec.NodeName != "" {
			on[p.Spec.NodeName] = p.Name
		}
	}
	return on
}

func probeRights(t *testing.T, r *release) {
	var can []string
	for _, resource := range []string{"nodes", "nodes/status", "nodes/proxy", "pods", "pods/eviction", "serviceaccounts/token", "secrets", "configmaps", "events", "namespaces"} {
		for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"} {
			for _, namespace := range []string{"", ownNamespace} {
				name, sub, _ := strings.Cut(resource, "/")
				review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
					User:               "system:serviceaccount:" + ownNamespace + ":" + probeName,
					Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + ownNamespace, "system:authenticated"},
					ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: verb, Version: "v1", Resource: name, Subresource: sub},
				}}
				must(t, r.client.Create(t.Context(), review))
				if review.Status.Allowed {
					can = append(can, verb+" "+resource)
				}
			}
		}
	}
	if slices.Sort(can); !slices.Equal(slices.Compact(can), []string{"patch nodes/status"}) {
		t.Errorf("may %q; must be able to patch nodes/status and nothing else", can)
	}
}

func probePolicyCompiles(t *testing.T, r *release) {
	eventually(t, 60*time.Second, func() error {
		var p admissionregistrationv1.ValidatingAdmissionPolicy
		if err := r.client.Get(t.Context(), client.ObjectKey{Name: probeName}, &p); err != nil {
			return err
		}
		if p.Status.ObservedGeneration != p.Generation || p.Status.TypeChecking == nil {
			return fmt.Errorf("not checked yet: %+v", p.Status)
		}
		for _, w := range p.Status.TypeChecking.ExpressionWarnings {
			t.Errorf("%s: %s", w.FieldRef, w.Warning)
		}
		return nil
	})
}

// probePublishes runs the binary with the arguments of its container, but for time, and
// with the token that its pod would have.
func probePublishes(t *testing.T, r *release) {
	kubeconfig, err := r.plane.PodKubeconfig(t.Context(), ownNamespace, r.probePods()[nodeA])
	must(t, err)
	var d appsv1.DaemonSet
	must(t, r.client.Get(t.Context(), client.ObjectKey{Namespace: ownNamespace, Name: probeName}, &d))
	dir := t.TempDir()
	args := slices.Clone(d.Spec.Template.Spec.Containers[0].Args)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "$(NODE_NAME)", nodeA)
	}
	args = append(args, "--kubeconfig", kubeconfig, "--dir", dir, "--window", "1s", "--interval", "2s")
	before, other := r.node(nodeA), r.node(nodeB)
	eventually(t, 30*time.Second, func() error {
		// The last that the controller manager does about a new node.
		before, other = r.node(nodeA), r.node(nodeB)
		if before.Annotations[ttlAnnotation] == "" || other.Annotations[ttlAnnotation] == "" {
			return errors.New("the nodes are still being prepared")
		}
		return nil
	})

	run := func(check func(after *corev1.Node) error, more ...string) {
		t.Helper()
		var log bytes.Buffer
		cmd := exec.Command(binary, append(slices.Clone(args), more...)...)
		cmd.Stdout, cmd.Stderr = &log, &log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		must(t, cmd.Start())
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		defer func() { _ = cmd.Process.Kill() }() // fails where it has ended
		eventually(t, 60*time.Second, func() error { return check(r.node(nodeA)) })
		must(t, cmd.Process.Signal(syscall.SIGTERM))
		select {
		case err := <-exited:
			if err != nil {
				t.Errorf("SIGTERM ended it with %v; must be status 0\n%s", err, log.String())
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("it goes on after SIGTERM")
		}
		if strings.Contains(log.String(), `"level":"ERROR"`) {
			t.Errorf("it complains:\n%s", log.String())
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left on the disk: %v, %v", left, err)
		}
	}
	published := func(n *corev1.Node) error {
		if n.Annotations[v1alpha1.AnnotationSteal] == "" || contended(n) == nil {
			return fmt.Errorf("annotations %v, conditions %v", n.Annotations, n.Status.Conditions)
		}
		return nil
	}
	run(published)
	after := r.node(nodeA)
	probeSays(t, after)
	if rest, was := withoutProbe(after), withoutProbe(before); !equality.Semantic.DeepEqual(rest, was) {
		t.Errorf("the rest of the node was\n%+v\nand is\n%+v", was, rest)
	}
	if now := r.node(nodeB); now.ResourceVersion != other.ResourceVersion {
		t.Error("the other node was written")
	}

	// Another process takes the transition over that it never saw, without a right to read. None comes meanwhile, whatever
	// the hypervisor takes of the CPU in just this second.
	old := metav1.NewTime(time.Now().Add(-48 * time.Hour).Truncate(time.Second))
	text := fmt.Sprintf(`{"metadata":{"annotations":{%q:null}},"status":{"conditions":[{"type":"CPUContended","status":"False","lastTransitionTime":%q}]}}`, v1alpha1.AnnotationSteal, old.UTC().Format(time.RFC3339))
	must(t, r.client.Status().Patch(t.Context(), r.node(nodeA), client.RawPatch(types.StrategicMergePatchType, []byte(text))))
	run(published, "--contended-at", "100")
	if c := contended(r.node(nodeA)); c.LastTransitionTime.Unix() != old.Unix() || time.Since(c.LastHeartbeatTime.Time) > time.Minute {
		t.Errorf("condition %+v; must have its transition at %v", c, old)
	}
}

func contended(n *corev1.Node) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == v1alpha1.ConditionCPUContended {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// probeSays demands that what the node says fits together.
func probeSays(t *testing.T, n *corev1.Node) {
	t.Helper()
	var steal float64
	if _, err := fmt.Sscanf(n.Annotations[v1alpha1.AnnotationSteal], "%f", &steal); err != nil || fmt.Sprintf("%.1f", steal) != n.Annotations[v1alpha1.AnnotationSteal] {
		t.Errorf("steal %q, %v", n.Annotations[v1alpha1.AnnotationSteal], err)
	}
	at, err := time.Parse(time.RFC3339, n.Annotations[v1alpha1.AnnotationMeasuredAt])
	if err != nil || !strings.HasSuffix(n.Annotations[v1alpha1.AnnotationMeasuredAt], "Z") || time.Since(at).Abs() > time.Minute {
		t.Errorf("measured at %v, %v", at, err)
	}
	var result probe.Result
	if err := json.Unmarshal([]byte(n.Annotations[v1alpha1.AnnotationResult]), &result); err != nil || result.WakeUp.Samples == 0 || result.Sync.Samples == 0 {
		t.Errorf("result %+v, %v", result, err)
	}
	c := contended(n)
	if (c.Status == corev1.ConditionTrue) != (steal >= 5) || !strings.HasPrefix(c.Message, n.Annotations[v1alpha1.AnnotationSteal]+" % ") ||
		c.LastTransitionTime.Time.After(c.LastHeartbeatTime.Time) || c.LastTransitionTime.IsZero() {
		t.Errorf("steal %v, condition %+v", steal, c)
	}
}

// withoutProbe is the node as if there were no probe.
func withoutProbe(n *corev1.Node) *corev1.Node {
	n = n.DeepCopy()
	n.ResourceVersion, n.ManagedFields = "", nil
	for _, key := range []string{v1alpha1.AnnotationSteal, v1alpha1.AnnotationMeasuredAt, v1alpha1.AnnotationResult} {
		delete(n.Annotations, key)
	}
	n.Status.Conditions = slices.DeleteFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == v1alpha1.ConditionCPUContended })
	return n
}

// as returns a client with the identity of a kubeconfig file.
func as(t *testing.T, kubeconfig string) client.Client {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	must(t, err)
	config.QPS = -1
	c, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	return c
}

// probeIsConfined gives the ServiceAccount all rights on nodes, so that it is the policy
// that refuses.
func probeIsConfined(t *testing.T, r *release) {
	wide := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "too-wide"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"nodes", "nodes/status"}, Verbs: []string{"*"}},
	}}
	must(t, r.client.Create(t.Context(), wide))
	must(t, r.client.Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "too-wide"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "too-wide"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: ownNamespace, Name: probeName}},
	}))
	kubeconfig, err := r.plane.PodKubeconfig(t.Context(), ownNamespace, r.probePods()[nodeA])
	must(t, err)
	own := as(t, kubeconfig)
	eventually(t, 30*time.Second, func() error {
		// Both the rights and the policy are in force.
		_, err := patchNode(t.Context(), own, nodeB, `{}`, "")
		if err == nil || !strings.Contains(err.Error(), "must write to its own alone") {
			return fmt.Errorf("a patch of the other node: %w", err)
		}
		return nil
	})
	for _, c := range confinement() {
		t.Run(c.name, func(t *testing.T) {
			before := r.node(nodeA)
			_, err := patchNode(t.Context(), own, nodeA, c.patch, c.sub)
			if c.refused != "" {
				refusedToProbe(t, err, c.refused)
				if after := r.node(nodeA); after.ResourceVersion != before.ResourceVersion {
					t.Error("refused, and written")
				}
				return
			}
			must(t, err)
			after := r.node(nodeA)
			if !equality.Semantic.DeepEqual(withoutProbe(after), withoutProbe(before)) {
				t.Errorf("the rest of the node was\n%+v\nand is\n%+v", before, after)
			}
			if unchanged := after.ResourceVersion == before.ResourceVersion; unchanged != c.idle {
				t.Errorf("unchanged: %t, must be %t", unchanged, c.idle)
			}
		})
	}

	publish := `{"metadata":{"annotations":{"probe.meshvakt.io/cpu-steal-percent":"99.0"}},"status":{"conditions":[{"type":"CPUContended","status":"True"}]}}`
	for _, sub := range []string{"", "status"} {
		for _, patch := range []string{publish, `{}`} {
			_, err = patchNode(t.Context(), own, nodeB, patch, sub)
			refusedToProbe(t, err, `the probe of Meshvakt on node "probed-a" writes to Node "probed-b"; must write to its own alone`)
		}
	}
	refusedToProbe(t, own.Delete(t.Context(), r.node(nodeA)), "may neither create nor delete Nodes")
	created := &corev1.Node{}
	created.Name = "probed-c"
	refusedToProbe(t, own.Create(t.Context(), created), "may neither create nor delete Nodes")

	// A token that was not made for a pod, or for a pod that has no node.
	unbound, err := r.plane.ServiceAccountKubeconfig(t.Context(), ownNamespace, probeName)
	must(t, err)
	for _, sub := range []string{"", "status"} {
		_, err = patchNode(t.Context(), as(t, unbound), nodeA, publish, sub)
		refusedToProbe(t, err, "(unknown: the token is not that of a pod)")
	}
	if now := contended(r.node(nodeB)); now != nil {
		t.Errorf("the other node got %+v", now)
	}
	must(t, r.client.Delete(t.Context(), wide))
}

// patchNode patches the node, or a subresource of it, and returns what it is then.
func patchNode(ctx context.Context, c client.Client, name, patch, sub string) (*corev1.Node, error) {
	n := &corev1.Node{}
	n.Name = name
	p := client.RawPatch(types.StrategicMergePatchType, []byte(patch))
	if sub == "" {
		return n, c.Patch(ctx, n, p)
	}
	return n, c.SubResource(sub).Patch(ctx, n, p)
}

func refusedToProbe(t *testing.T, err error, contains string) {
	t.Helper()
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != http.StatusForbidden ||
		!strings.Contains(err.Error(), "ValidatingAdmissionPolicy 'meshvakt-probe' with binding 'meshvakt-probe' denied request") || !strings.Contains(err.Error(), contains) {
		t.Errorf("got %v; want a refusal by the policy with %q", err, contains)
	}
}

type confined struct {
	name, patch, sub string
	refused          string // what the message contains; "" for what is allowed
	idle             bool   // allowed, and changes nothing
}

// confinement is what the probe of a node tries on its own Node.
func confinement() []confined {
	const steal = `{"metadata":{"annotations":{"probe.meshvakt.io/cpu-steal-percent":%q}}}`
	condition := func(t, status string) string {
		return fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":%q,"reason":"R","message":"m"}]}}`, t, status)
	}
	list := []confined{
		{name: "all of its own at once", sub: "status", patch: `{"metadata":{"annotations":{"probe.meshvakt.io/cpu-steal-percent":"7.0","probe.meshvakt.io/measured-at":"2026-01-01T00:00:00Z","probe.meshvakt.io/result":"{}"}},"status":{"conditions":[{"type":"CPUContended","status":"True"}]}}`},
		{name: "an empty patch of status", sub: "status", patch: `{}`, idle: true},
		{name: "an empty patch", patch: `{}`, idle: true},
		{name: "an annotation by the node itself", patch: fmt.Sprintf(steal, "8.0")},
		{name: "an annotation of 8 KiB", sub: "status", patch: fmt.Sprintf(steal, strings.Repeat("x", 8192))},
		{name: "its condition", sub: "status", patch: condition("CPUContended", "False")},
		{name: "its annotation gone", patch: `{"metadata":{"annotations":{"probe.meshvakt.io/result":null}}}`},
		{name: "its condition gone", sub: "status", patch: `{"status":{"conditions":[{"$patch":"delete","type":"CPUContended"}]}}`},
		{name: "its condition anew", sub: "status", patch: condition("CPUContended", "True")},

		{name: "a larger annotation", sub: "status", patch: fmt.Sprintf(steal, strings.Repeat("x", 8193)), refused: "8,192 characters"},
		{name: "a large condition", sub: "status", patch: condition("CPUContended", strings.Repeat("x", 1025)), refused: "at most 1,024"},
		{name: "taint", patch: `{"spec":{"taints":null}}`, refused: "spec: changed by the probe"},
		{name: "another taint", patch: `{"spec":{"taints":[{"key":"k","effect":"NoExecute"}]}}`, refused: "spec: changed"},
		{name: "cordon", patch: `{"spec":{"unschedulable":true}}`, refused: "spec: changed"},
	}
	for _, sub := range []string{"", "status"} {
		for name, c := range map[string]struct{ patch, path string }{
			"label":                       {`{"metadata":{"labels":{"pool":"y"}}}`, "metadata.labels: changed"},
			"new label":                   {`{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`, "metadata.labels: changed"},
			"no label":                    {`{"metadata":{"labels":null}}`, "metadata.labels: changed"},
			"another annotation":          {`{"metadata":{"annotations":{"somebody.example/note":"x"}}}`, "metadata.annotations[somebody.example/note]: changed"},
			"new annotation":              {`{"metadata":{"annotations":{"probe.meshvakt.io/other":"x"}}}`, "metadata.annotations[probe.meshvakt.io/other]: changed"},
			"annotation gone":             {`{"metadata":{"annotations":{"somebody.example/note":null}}}`, "metadata.annotations[somebody.example/note]: changed"},
			"all annotations gone":        {`{"metadata":{"annotations":null}}`, "metadata.annotations[somebody.example/note]"}, // and the other, in any order,
			"finalizer":                   {`{"metadata":{"finalizers":["x.example/y"]}}`, "metadata.finalizers: changed"},
			"owner":                       {`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"x","uid":"y"}]}}`, "metadata.ownerReferences: changed"},
			"own annotation beside label": {`{"metadata":{"labels":{"pool":"y"},"annotations":{"probe.meshvakt.io/cpu-steal-percent":"1.0"}}}`, "metadata.labels: changed"},
		} {
			list = append(list, confined{name: strings.TrimSpace(sub + " " + name), sub: sub, patch: c.patch, refused: c.path})
		}
	}
	for name, c := range map[string]struct{ patch, path string }{
		"another condition":      {condition("Ready", "False"), "status.conditions: changed"},
		"heartbeat of another":   {`{"status":{"conditions":[{"type":"Ready","lastHeartbeatTime":"2026-01-01T00:00:00Z"}]}}`, "status.conditions: changed"},
		"new condition":          {condition("NetworkUnavailable", "True"), "status.conditions: changed"},
		"condition gone":         {`{"status":{"conditions":[{"$patch":"delete","type":"MemoryPressure"}]}}`, "status.conditions: changed"},
		"its condition alone":    {`{"status":{"conditions":[{"$patch":"replace"},{"type":"CPUContended","status":"True"}]}}`, "status.conditions: changed"},
		"its condition twice":    {`{"status":{"conditions":[{"$patch":"replace"},{"type":"MemoryPressure","status":"False"},{"type":"Ready","status":"True"},{"type":"CPUContended","status":"True"},{"type":"CPUContended","status":"False"}]}}`, "status.conditions: changed"},
		"own and other together": {`{"status":{"conditions":[{"type":"CPUContended","status":"True"},{"type":"Ready","status":"False"}]}}`, "status.conditions: changed"},
		"capacity":               {`{"status":{"capacity":{"cpu":"64"}}}`, "status.capacity: changed"},
		"allocatable":            {`{"status":{"allocatable":{"example.com/gpu":"8"}}}`, "status.allocatable: changed"},
		"address":                {`{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.66"}]}}`, "status.addresses: changed"},
		"images":                 {`{"status":{"images":null}}`, "status.images: changed"},
		"volumes":                {`{"status":{"volumesAttached":[{"name":"x","devicePath":"y"}]}}`, "status.volumesAttached: changed"},
		"node info":              {`{"status":{"nodeInfo":{"kernelVersion":"x"}}}`, "status.nodeInfo: changed"},
		"endpoint of the kubelet": {`{"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":1}}}}`,
			"status.daemonEndpoints: changed"},
	} {
		list = append(list, confined{name: "status " + name, sub: "status", patch: c.patch, refused: c.path})
	}
	return list
}

// The policy is about the ServiceAccount alone: everybody else, kubelets above all, writes
// to nodes as before.
func probeLeavesOthersAlone(t *testing.T, r *release) {
	_, err := patchNode(t.Context(), r.client, nodeA, `{"metadata":{"labels":{"pool":"z"}}}`, "")
	must(t, err)
	_, err = patchNode(t.Context(), r.client, nodeA, `{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Again"}]}}`, "status")
	must(t, err)
	config := r.plane.RestConfig(controlplane.Admin)
	config.Impersonate.UserName = "system:serviceaccount:default:" + probeName
	config.Impersonate.Groups = []string{"system:masters"}
	namesake, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	_, err = patchNode(t.Context(), namesake, nodeB, `{"metadata":{"labels":{"pool":"z"}}}`, "")
	must(t, err)
}

// probeUninstalls has left the objects of the chart and what the nodes said behind it.
func probeUninstalls(t *testing.T, r *release) {
	_, err := patchNode(t.Context(), r.client, nodeB, `{"metadata":{"annotations":{"probe.meshvakt.io/result":"{}"}}}`, "")
	must(t, err)
	if contended(r.node(nodeA)) == nil {
		t.Fatal("nothing to remove")
	}
	before := map[string]*corev1.Node{nodeA: withoutProbe(r.node(nodeA)), nodeB: withoutProbe(r.node(nodeB))}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	played := make(chan error, 1)
	go func() { played <- r.playUninstall(ctx) }()
	_, err = r.try("uninstall", "meshvakt", "--timeout", "2m")
	stop()
	if err := errors.Join(<-played, err); err != nil {
		t.Fatal(err)
	}
	for name, was := range before {
		is := r.node(name)
		is.ResourceVersion, is.ManagedFields = "", nil
		if !equality.Semantic.DeepEqual(is, was) {
			t.Errorf("without the probe the node is\n%+v\nand not\n%+v", is, was)
		}
	}
	// What belongs to the DaemonSet goes by the garbage collector, which nobody waits for.
	eventually(t, 30*time.Second, func() error {
		if left, want := r.left(), []string{"customresourcedefinition.apiextensions.k8s.io/guardexceptions.meshvakt.io", "customresourcedefinition.apiextensions.k8s.io/meshguards.meshvakt.io"}; !slices.Equal(left, want) {
			return fmt.Errorf("left behind: %q; must be %q", left, want)
		}
		return nil
	})
	if pods := r.probePods(); len(pods) > 0 {
		t.Errorf("probes are left: %v", pods)
	}
}
