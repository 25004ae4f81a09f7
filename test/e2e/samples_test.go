package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

// refusedSamples are those that are out of the mesh by their own design, with
// what they are told.
func refusedSamples() map[string]struct{ code, why string } {
	return map[string]struct{ code, why string }{
		"istio/addons/extras/skywalking.yaml":                {"MV202", "says itself that it has no sidecar"},
		"istio/addons/extras/zipkin.yaml":                    {"MV202", "says itself that it has no sidecar"},
		"istio/addons/extras/prometheus-secure-metrics.yaml": {"MV214", "has the proxy write its keys to a volume, which a guard can permit"},
		"istio/addons/grafana.yaml":                          {"MV202", "says itself that it has no sidecar"},
		"istio/addons/jaeger.yaml":                           {"MV202", "says itself that it has no sidecar"},
		"istio/addons/kiali.yaml":                            {"MV202", "says itself that it has no sidecar"},
		"istio/addons/prometheus.yaml":                       {"MV202", "says itself that it has no sidecar"},
		"istio/custom-bootstrap/example-app.yaml":            {"MV218", "shows how the bootstrap is overridden"},
		"istio/extauthz/ext-authz.yaml":                      {"MV202", "says itself that it has no sidecar"},
		"istio/grpc-echo/grpc-echo.yaml":                     {"MV216", "gRPC without a proxy"},
		"istio/open-telemetry/loki/otel.yaml":                {"MV202", "says itself that it has no sidecar"},
		"istio/open-telemetry/otel.yaml":                     {"MV202", "says itself that it has no sidecar"},
		"istio/proxy-coredump/daemonset.yaml":                {"MV205", "changes the node's kernel"},
		"istio/security/spire/curl-spire.yaml":               {"MV216", "a template of the user's, which a guard can name"},
		"istio/security/spire/sleep-spire.yaml":              {"MV216", "a template of the user's, which a guard can name"},
		"istio/security/spire/spire-quickstart.yaml":         {"MV205", "an agent of the nodes"},
	}
}

// brokenSample is refused by Kubernetes.
const brokenSample = "istio/mtls-echo/mtls-echo.yaml"

// sample is a manifest and where it comes from.
type sample struct{ name, manifest string }

// TestSamples: what everybody deploys goes into a guarded namespace unhindered,
// and so do the pods that controllers make of it.
func TestSamples(t *testing.T) {
	meshPlane(t)
	r := start(t)
	meshGuards(t)
	dev := clientFor(t, controlplane.Developer)
	var samples []sample
	samples = append(samples, istioSampleFiles(t)...)
	samples = append(samples, gatewaySamples(t)...)
	samples = append(samples, applicationSamples(t)...)
	outside := refusedSamples()
	namespaces := map[string]string{}
	for _, s := range samples {
		want, out := outside[s.name]
		delete(outside, s.name)
		t.Run(s.name, func(t *testing.T) {
			if s.name == brokenSample {
				t.Skip("mounts a volume that it does not have")
			}
			ns := meshNamespace(t, "sample", sidecarLabels())
			err := deploy(t, ns, s.manifest)
			if out {
				refusedText(t, err, want.code)
				return
			}
			must(t, err)
			namespaces[s.name] = ns
		})
	}
	for name := range outside {
		t.Errorf("exception %s is no sample", name)
	}
	for _, name := range sortedNames(namespaces) {
		t.Run("pods of "+name, func(t *testing.T) { controllersAreSatisfied(t, namespaces[name]) })
	}
	t.Logf("%d samples, %d of them outside by design", len(samples), len(refusedSamples()))

	t.Run("a Job makes pods", func(t *testing.T) {
		ns := meshNamespace(t, "job", sidecarLabels())
		must(t, dev.Create(t.Context(), workloadOf("batch/v1", "Job", ns, (&vector{}).template(t))))
		controllersAreSatisfied(t, ns)
	})
	t.Run("while nobody answers", func(t *testing.T) {
		guarded, free := meshNamespace(t, "guarded", sidecarLabels()), meshNamespace(t, "free", nil)
		r.kill()
		admin := clientFor(t, controlplane.Admin)
		for _, ns := range []string{"kube-system", free} {
			must(t, admin.Create(t.Context(), podOf(ns, (&vector{spec: "{hostNetwork: true}"}).template(t))))
		}
		if err := dev.Create(t.Context(), podOf(guarded, (&vector{}).template(t))); err == nil {
			t.Error("a pod has landed in a guarded namespace; the webhook must fail closed")
		}
	})
}

func sortedNames(m map[string]string) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// moduleDir returns where the source of a module is that the module in dir pins.
func moduleDir(t testing.TB, dir, module string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", module)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("download %s: %v\n%s", module, err, out)
	}
	var m struct{ Dir string }
	must(t, json.Unmarshal(out, &m))
	return m.Dir
}

// manifestsIn returns the files below a directory that have workloads in them.
func manifestsIn(t testing.TB, prefix, root string) []sample {
	t.Helper()
	workload := regexp.MustCompile(`(?m)^kind: (CronJob|DaemonSet|Deployment|Job|Pod|StatefulSet)\s*$`)
	// Of templates of the end-to-end tests only images are filled in.
	image := regexp.MustCompile(`\{\{[^}]*\}\}`)
	var list []sample
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".yaml") && !strings.HasSuffix(path, ".yaml.in") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil || !workload.Match(text) {
			return err
		}
		name, err := filepath.Rel(root, path)
		list = append(list, sample{prefix + filepath.ToSlash(name), image.ReplaceAllString(string(text), "registry.example/image:1")})
		return err
	}))
	if len(list) == 0 {
		t.Fatalf("no workloads in %s", prefix)
	}
	return list
}

// istioSampleFiles are all sample applications of the Istio that runs here.
func istioSampleFiles(t testing.TB) []sample {
	t.Helper()
	return manifestsIn(t, "istio/", filepath.Join(moduleDir(t, "../controlplane/binaries/istio", "istio.io/istio"), "samples"))
}

// gatewaySamples are Istio's gateways, as its chart renders them.
func gatewaySamples(t testing.TB) []sample {
	t.Helper()
	charts := filepath.Join(moduleDir(t, "../controlplane/binaries/istio", "istio.io/istio"), "manifests", "charts")
	var list []sample
	for name, args := range map[string][]string{
		"gateway":               nil,
		"gateway as DaemonSet":  {"--set", "kind=DaemonSet"},
		"gateway for a network": {"--set", "networkGateway=net1"},
	} {
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"tool", "-modfile=test/tools/helm/go.mod", "helm",
			"template", "gateway", filepath.Join(charts, "gateway"), "--namespace", "any"}, args...)...)
		cmd.Dir = "../.."
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("helm template: %v\n%s", err, stderr.String())
		}
		list = append(list, sample{"istio/" + name, stdout.String()})
	}
	return list
}

// applicationSamples are public applications of several services: the guestbook
// and the databases of Kubernetes' own tests, and podinfo.
func applicationSamples(t testing.TB) []sample {
	t.Helper()
	tests := filepath.Join(moduleDir(t, "../controlplane/binaries/kubernetes", "k8s.io/kubernetes"), "test", "e2e", "testing-manifests")
	podinfo := moduleDir(t, "applications", "github.com/stefanprodan/podinfo")
	var list []sample
	list = append(list, manifestsIn(t, "guestbook/", filepath.Join(tests, "guestbook"))...)
	list = append(list, manifestsIn(t, "databases/", filepath.Join(tests, "statefulset"))...)
	for _, part := range []string{"bases", "secure", "webapp"} {
		list = append(list, sample{"podinfo/" + part, wholeManifest(t, filepath.Join(podinfo, "deploy", part))})
	}
	return list
}

// wholeManifest joins the files of an application whose parts need each other.
func wholeManifest(t testing.TB, root string) string {
	t.Helper()
	var all strings.Builder
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".yaml") {
			return err
		}
		text, err := os.ReadFile(path)
		all.WriteString("\n---\n")
		all.Write(text)
		return err
	}))
	return all.String()
}

// deployable are the kinds of a manifest that somebody may create who has rights
// in one namespace.
func deployable() []string {
	return []string{"ConfigMap", "CronJob", "DaemonSet", "Deployment", "Job", "Pod", "Secret", "Service", "ServiceAccount", "StatefulSet"}
}

// deploy applies what of a manifest belongs into a namespace, as the developer.
func deploy(t testing.TB, namespace, manifest string) error {
	t.Helper()
	var docs []string
	separator := regexp.MustCompile(`(?m)^---.*$`)
	for _, text := range separator.Split(manifest, -1) {
		var o map[string]any
		must(t, yaml.Unmarshal([]byte(text), &o))
		kind, _ := o["kind"].(string)
		metadata, _ := o["metadata"].(map[string]any)
		if !slices.Contains(deployable(), kind) {
			continue
		}
		delete(metadata, "namespace")
		if spec, ok := o["spec"].(map[string]any); ok && kind == "Service" {
			// The control plane has but one family of addresses, and node ports for one.
			delete(spec, "ipFamilyPolicy")
			delete(spec, "ipFamilies")
			delete(spec, "clusterIPs")
		}
		data, err := json.Marshal(o)
		must(t, err)
		docs = append(docs, string(data))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, _, err := plane.Kubectl(ctx, controlplane.Developer, strings.Join(docs, "\n---\n"), "-n", namespace, "apply", "-f", "-")
	return err
}

// controllersAreSatisfied waits until every controller has made the pods it is to
// make while none of them runs: all of a ReplicaSet, the first of a StatefulSet,
// those of a Job. There are no nodes, and so nothing of a DaemonSet.
func controllersAreSatisfied(t testing.TB, namespace string) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	here := client.InNamespace(namespace)
	eventually(t, 60*time.Second, func() error {
		var deployments appsv1.DeploymentList
		var replicaSets appsv1.ReplicaSetList
		var statefulSets appsv1.StatefulSetList
		var pods corev1.PodList
		if err := errors.Join(admin.List(t.Context(), &deployments, here), admin.List(t.Context(), &replicaSets, here),
			admin.List(t.Context(), &statefulSets, here), admin.List(t.Context(), &pods, here)); err != nil {
			return err
		}
		if len(replicaSets.Items) < len(deployments.Items) {
			return fmt.Errorf("%d ReplicaSets of %d Deployments", len(replicaSets.Items), len(deployments.Items))
		}
		made := map[string]int32{}
		for i := range pods.Items {
			if !controlplane.HasSidecar(&pods.Items[i]) {
				return fmt.Errorf("pod %s has no sidecar", pods.Items[i].Name)
			}
			for _, owner := range pods.Items[i].OwnerReferences {
				made[owner.Kind+" "+owner.Name]++
			}
		}
		for _, s := range replicaSets.Items {
			if n := made["ReplicaSet "+s.Name]; n != *s.Spec.Replicas {
				return fmt.Errorf("ReplicaSet %s has %d of %d pods: %v", s.Name, n, *s.Spec.Replicas, s.Status.Conditions)
			}
		}
		for _, s := range statefulSets.Items {
			if made["StatefulSet "+s.Name] == 0 {
				return fmt.Errorf("StatefulSet %s has no pod: %+v", s.Name, s.Status)
			}
		}
		var jobs batchv1.JobList
		if err := admin.List(t.Context(), &jobs, here); err != nil {
			return err
		}
		for _, j := range jobs.Items {
			if made["Job "+j.Name] == 0 {
				return fmt.Errorf("Job %s has no pod: %v", j.Name, j.Status.Conditions)
			}
		}
		return nil
	})
	noRefusals(t, namespace)
}
