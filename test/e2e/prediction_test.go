package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// liveInjection is how the control plane injects, as Meshvakt reads it.
func liveInjection(t *testing.T) mesh.Injection {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	var configs admissionregistrationv1.MutatingWebhookConfigurationList
	must(t, admin.List(t.Context(), &configs))
	var injection mesh.Injection
	for i := range configs.Items {
		list, err := mesh.ParseInjectionWebhooks(&configs.Items[i])
		must(t, err)
		injection.Webhooks = append(injection.Webhooks, list...)
	}
	var cm corev1.ConfigMap
	must(t, admin.Get(t.Context(), client.ObjectKey{Namespace: "istio-system", Name: "istio-sidecar-injector"}, &cm))
	injector, err := mesh.ParseInjector(cm.Name, cm.Labels, cm.Data)
	must(t, err)
	injection.Injectors = append(injection.Injectors, injector)
	if len(injection.Webhooks) == 0 {
		t.Fatal("no webhook of an injector")
	}
	return injection
}

// The labels by which injection is asked for.
const (
	injectLabel    = "sidecar.istio.io/inject"
	injectionLabel = "istio-injection"
	revisionLabel  = "istio.io/rev"
	dataplaneLabel = "istio.io/dataplane-mode"
)

// predictions compares what comes out of the injector with what internal/mesh says,
// under one setting of Istio after the other. Each leaves Istio as it was.
func predictions(t *testing.T) {
	namespaces := []map[string]string{
		nil, {injectionLabel: "enabled"}, {injectionLabel: "disabled"}, {injectionLabel: "true"}, {revisionLabel: "default"}, {revisionLabel: "canary"},
		{revisionLabel: "canary", injectionLabel: "enabled"}, {revisionLabel: "default", injectionLabel: "disabled"},
		{dataplaneLabel: "ambient"}, {dataplaneLabel: "ambient", injectionLabel: "enabled"},
	}
	whole := matrix{
		namespaces: namespaces,
		pods: []map[string]string{
			nil, {injectLabel: "true"}, {injectLabel: "false"}, {injectLabel: "False"}, {injectLabel: ""}, {revisionLabel: "default"}, {revisionLabel: "canary"},
			{injectLabel: "true", revisionLabel: "default"}, {injectLabel: "true", revisionLabel: "canary"}, {dataplaneLabel: "none"},
		},
		annotations: []map[string]string{nil, {injectLabel: "false"}, {injectLabel: "true"}},
	}
	t.Run("default settings", whole.holds)
	t.Run("a revision tag", func(t *testing.T) {
		tagged(t, "canary")
		whole.holds(t)
	})
	t.Run("namespaces by default", func(t *testing.T) {
		rendered(t, "values.sidecarInjectorWebhook.enableNamespacesByDefault=true")
		whole.holds(t)
	})
	selected := matrix{
		namespaces: []map[string]string{nil, {injectionLabel: "enabled"}, {revisionLabel: "default"}, {injectionLabel: "disabled"}},
		pods: []map[string]string{
			nil, {"never": "yes"}, {"never": "no"}, {"always": ""}, {"never": "yes", "always": ""}, {"never": "yes", injectLabel: "true"}, {"never": "yes", injectLabel: "0"},
			{"always": "", injectLabel: "false"}, {"always": "", injectLabel: ""}, {"always": "", injectLabel: "true"}, {injectLabel: "true"}, {revisionLabel: "default"},
		},
		annotations: []map[string]string{nil, {injectLabel: "false"}, {injectLabel: "true"}},
	}
	for _, policy := range []string{"enabled", "disabled", "bogus"} {
		t.Run("selectors, policy "+policy, func(t *testing.T) {
			configured(t, func(config map[string]any) {
				config["policy"] = policy
				config["neverInjectSelector"] = []any{map[string]any{"matchLabels": map[string]any{"never": "yes"}}, map[string]any{}}
				config["alwaysInjectSelector"] = []any{map[string]any{"matchExpressions": []any{map[string]any{"key": "always", "operator": "Exists"}}}}
			})
			selected.holds(t)
		})
	}
}

// matrix is a product of namespaces and pods.
type matrix struct{ namespaces, pods, annotations []map[string]string }

// holds creates every pod of the product, as a dry run.
func (m *matrix) holds(t *testing.T) {
	injection := liveInjection(t)
	cases, injected := 0, 0
	for _, labels := range m.namespaces {
		ns := namespace(unique("matrix"), false)
		maps.Copy(ns.Labels, labels)
		create(t, clientFor(t, controlplane.Admin), ns)
		serviceAccount(t, ns.Name)
		for _, podLabels := range m.pods {
			for _, annotations := range m.annotations {
				for _, host := range []bool{false, true} {
					cases++
					if predictedPod(t, &injection, ns, podLabels, annotations, host) {
						injected++
					}
				}
			}
		}
	}
	t.Logf("%d pods came out as predicted, %d of them injected", cases, injected)
	if injected == 0 && !t.Failed() {
		t.Log("no pod is injected under this setting")
	}
}

func predictedPod(t *testing.T, injection *mesh.Injection, ns *corev1.Namespace, labels, annotations map[string]string, host bool) (injected bool) {
	t.Helper()
	p := pod(ns.Name, maps.Clone(labels))
	p.Annotations, p.Spec.HostNetwork = maps.Clone(annotations), host
	predicted := injection.Decide(mesh.Candidate{
		Namespace: ns.Name, NamespaceLabels: ns.Labels, Labels: labels, Annotations: annotations, HostNetwork: host,
	})
	if err := client.NewDryRunClient(clientFor(t, controlplane.Admin)).Create(t.Context(), p); err != nil {
		t.Fatalf("namespace %v, pod %v %v: %v", ns.Labels, labels, annotations, err)
	}
	injected = controlplane.HasSidecar(p)
	if injected != predicted.Injected() {
		t.Errorf("namespace %v, pod %v %v, hostNetwork %t: injected %t, predicted %s", ns.Labels, labels, annotations, host, injected, predicted.Cause)
	}
	return injected
}

// istioctl runs the istioctl of the control plane.
func istioctl(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), plane.IstioctlPath, append(args, "--kubeconfig", plane.Kubeconfig(controlplane.Admin))...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("istioctl %v: %v\n%s", args, err, stderr.String())
	}
	return string(out)
}

// injector is the configuration of the webhooks that Istio was installed with.
func injector(t *testing.T) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	config := &admissionregistrationv1.MutatingWebhookConfiguration{}
	must(t, clientFor(t, controlplane.Admin).Get(t.Context(), client.ObjectKey{Name: "istio-sidecar-injector"}, config))
	return config
}

// webhooksIn reads the configurations of injectors in a manifest, and leads their
// entries to the istiod that runs here.
func webhooksIn(t *testing.T, manifest string) []*admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	here := injector(t).Webhooks[0].ClientConfig
	var list []*admissionregistrationv1.MutatingWebhookConfiguration
	for _, doc := range strings.Split(manifest, "\n---") {
		config := &admissionregistrationv1.MutatingWebhookConfiguration{}
		must(t, yaml.Unmarshal([]byte(doc), config))
		if config.Kind != "MutatingWebhookConfiguration" {
			continue
		}
		for i := range config.Webhooks {
			config.Webhooks[i].ClientConfig = here
		}
		list = append(list, config)
	}
	if len(list) == 0 {
		t.Fatalf("no MutatingWebhookConfiguration in\n%s", manifest)
	}
	return list
}

// tagged sets a revision tag for the test.
func tagged(t *testing.T, tag string) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	configs := webhooksIn(t, istioctl(t, "tag", "generate", tag, "--revision", "default"))
	if len(configs) != 1 || configs[0].Name != "istio-revision-tag-"+tag {
		t.Fatalf("istioctl tag generates %d configurations, the first of them %s", len(configs), configs[0].Name)
	}
	ns := namespace(unique("tagged"), false)
	ns.Labels[revisionLabel] = tag
	until(t, ns, nil, true,
		func(ctx context.Context) error { return admin.Create(ctx, configs[0]) },
		func(ctx context.Context) error { return admin.Delete(ctx, configs[0]) })
}

// rendered gives the injector the webhooks that it is installed with under a value.
func rendered(t *testing.T, value string) {
	t.Helper()
	admin, before := clientFor(t, controlplane.Admin), injector(t)
	configs := webhooksIn(t, istioctl(t, "manifest", "generate", "--set", "profile=minimal", "--set", value))
	i := slices.IndexFunc(configs, func(c *admissionregistrationv1.MutatingWebhookConfiguration) bool { return c.Name == before.Name })
	if i < 0 || len(configs[i].Webhooks) <= len(before.Webhooks) {
		t.Fatalf("%s adds no webhook", value)
	}
	update := func(ctx context.Context, webhooks []admissionregistrationv1.MutatingWebhook) error {
		now := &admissionregistrationv1.MutatingWebhookConfiguration{}
		if err := admin.Get(ctx, client.ObjectKeyFromObject(before), now); err != nil {
			return err
		}
		now.Webhooks = webhooks
		return admin.Update(ctx, now)
	}
	until(t, namespace(unique("default"), false), nil, true,
		func(ctx context.Context) error { return update(ctx, configs[i].Webhooks) },
		func(ctx context.Context) error { return update(ctx, before.Webhooks) })
}

// configured edits the injector's configuration for the test, and waits until
// istiod goes by it.
func configured(t *testing.T, edit func(map[string]any)) {
	t.Helper()
	admin, key := clientFor(t, controlplane.Admin), client.ObjectKey{Namespace: "istio-system", Name: "istio-sidecar-injector"}
	before := &corev1.ConfigMap{}
	must(t, admin.Get(t.Context(), key, before))
	var config map[string]any
	must(t, yaml.Unmarshal([]byte(before.Data["config"]), &config))
	edit(config)
	text, err := yaml.Marshal(config)
	must(t, err)
	update := func(ctx context.Context, text string) error {
		now := &corev1.ConfigMap{}
		if err := admin.Get(ctx, key, now); err != nil {
			return err
		}
		now.Data["config"] = text
		return admin.Update(ctx, now)
	}
	ns := namespace(unique("configured"), false)
	ns.Labels[injectionLabel] = "enabled"
	until(t, ns, map[string]string{"never": "yes"}, false, // under each of the edits
		func(ctx context.Context) error { return update(ctx, string(text)) },
		func(ctx context.Context) error { return update(ctx, before.Data["config"]) })
}

// until puts a setting of Istio in force with change, which comes to be when a pod
// with these labels in a namespace like this one is injected, or is not; and takes it
// back with undo at the end of the test.
func until(t *testing.T, ns *corev1.Namespace, labels map[string]string, injected bool, change, undo func(context.Context) error) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	create(t, admin, ns)
	serviceAccount(t, ns.Name)
	wait := func(ctx context.Context, injected bool) {
		t.Helper()
		eventually(t, 60*time.Second, func() error {
			p := pod(ns.Name, maps.Clone(labels))
			if err := client.NewDryRunClient(admin).Create(ctx, p); err != nil {
				return fmt.Errorf("create a pod: %w", err)
			}
			if controlplane.HasSidecar(p) != injected {
				return errors.New("the injector goes by the old settings")
			}
			return nil
		})
	}
	wait(t.Context(), !injected)
	must(t, change(t.Context()))
	t.Cleanup(func() {
		if err := undo(context.Background()); err != nil {
			t.Fatalf("put the settings of Istio back: %v", err)
		}
		wait(context.Background(), !injected)
	})
	wait(t.Context(), injected)
}
