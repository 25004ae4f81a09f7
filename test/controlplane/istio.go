package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
)

// IstioNamespace is where Istio is installed.
const IstioNamespace = "istio-system"

// istiodPorts are the loopback ports of istiod.
type istiodPorts struct{ http, https, grpc, secureGRPC, monitoring, ctrlz int }

// renderIstio renders the manifests of Istio's minimal profile.
func (cp *ControlPlane) renderIstio(ctx context.Context) ([]byte, error) {
	if !cp.options.Istio {
		return nil, nil
	}
	args := []string{"manifest", "generate", "--manifests", cp.istio.Manifests, "--set", "profile=minimal",
		// Objects without a revision label are validated too, as after an installation
		// with Helm or "istioctl install", which adds this only at the cluster.
		"--set", "values.defaultRevision=default",
	}
	for _, value := range cp.options.IstioSet {
		args = append(args, "--set", value)
	}
	cmd := exec.CommandContext(ctx, cp.istio.Istioctl, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+os.DevNull) // not the cluster of whoever runs this
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	manifest, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("istioctl manifest generate: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return manifest, nil
}

// startIstio installs Istio, starts istiod with the rights of its ServiceAccount and
// waits until its webhooks do their work.
func (cp *ControlPlane) startIstio(ctx context.Context, render func() ([]byte, error)) error {
	manifest, err := render()
	if err != nil || !cp.options.Istio {
		return err
	}
	objects, err := decodeManifest(manifest)
	if err != nil {
		return err
	}
	namespace := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       "Namespace",
		"metadata":   map[string]any{"name": IstioNamespace},
	}}
	webhooks, others := splitIstio(objects)
	if err := cp.applyObjects(ctx, append([]*unstructured.Unstructured{namespace}, others...)); err != nil {
		return fmt.Errorf("install istio: %w", err)
	}
	kubeconfig, err := cp.ServiceAccountKubeconfig(ctx, IstioNamespace, "istiod")
	if err != nil {
		return err
	}
	// Several of istiod's paths are relative: it must not find anything there.
	workDir := filepath.Join(cp.Dir, "istiod")
	if err := os.Mkdir(workDir, 0o700); err != nil {
		return fmt.Errorf("create directory: %w", err)
	}
	var ports istiodPorts
	istiod := cp.addIstiod(workDir, kubeconfig, &ports)
	// The webhooks come last: until istiod serves them they would refuse all pods, and
	// their URLs have its port. It fills in their CA within a second or so.
	err = startOnFreePorts(ctx, istiod, []*int{
		&ports.http, &ports.https, &ports.grpc, &ports.secureGRPC, &ports.monitoring, &ports.ctrlz,
	})
	if err != nil {
		return err
	}
	for _, w := range webhooks {
		if err := pointToLoopback(w, ports.https); err != nil {
			return fmt.Errorf("install istio: %s: %w", describe(w), err)
		}
	}
	if err := cp.applyObjects(ctx, webhooks); err != nil {
		return fmt.Errorf("install istio: %w", err)
	}
	admin, err := kubernetes.NewForConfig(cp.RestConfig(Admin))
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	for _, check := range []func(context.Context, kubernetes.Interface) error{istioValidates, istioInjects} {
		err := poll(ctx, func(ctx context.Context) error { return check(ctx, admin) })
		if err != nil {
			return istiod.withLog(fmt.Errorf("wait for istiod's webhooks: %w", err))
		}
	}
	return nil
}

// splitIstio leaves out what cannot be used here: the workload, because istiod runs
// outside, and CRDs, because those of the released API are installed already.
func splitIstio(objects []*unstructured.Unstructured) (webhooks, others []*unstructured.Unstructured) {
	for _, object := range objects {
		switch object.GetKind() {
		case "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "CustomResourceDefinition":
		case "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration":
			webhooks = append(webhooks, object)
		default:
			others = append(others, object)
		}
	}
	return webhooks, others
}

// pointToLoopback replaces the Service in a webhook configuration, behind which nothing
// runs, by a URL.
func pointToLoopback(configuration *unstructured.Unstructured, port int) error {
	webhooks, _, err := unstructured.NestedSlice(configuration.Object, "webhooks")
	if err != nil {
		return fmt.Errorf("read webhooks: %w", err)
	}
	for _, w := range webhooks {
		webhook, ok := w.(map[string]any)
		if !ok {
			return fmt.Errorf("read webhook: it is a %T", w)
		}
		path, _, err := unstructured.NestedString(webhook, "clientConfig", "service", "path")
		if err != nil {
			return fmt.Errorf("read webhook %v: %w", webhook["name"], err)
		}
		if path == "" {
			return fmt.Errorf("read webhook %v: it has no clientConfig.service.path", webhook["name"])
		}
		webhook["clientConfig"] = map[string]any{"url": "https://" + loopback(port) + path}
	}
	return unstructured.SetNestedSlice(configuration.Object, webhooks, "webhooks")
}

func (cp *ControlPlane) addIstiod(workDir, kubeconfig string, ports *istiodPorts) *component {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return cp.add(Istiod, func() *exec.Cmd {
		cmd := exec.Command(cp.istio.Istiod, "discovery",
			"--kubeconfig="+kubeconfig,
			"--httpAddr="+loopback(ports.http),
			"--httpsAddr="+loopback(ports.https),
			"--grpcAddr="+loopback(ports.grpc),
			"--secureGRPCAddr="+loopback(ports.secureGRPC),
			"--monitoringAddr="+loopback(ports.monitoring),
			fmt.Sprintf("--ctrlz_port=%d", ports.ctrlz),
		)
		cmd.Dir = workDir
		cmd.Env = append(os.Environ(),
			"POD_NAMESPACE="+IstioNamespace,
			"POD_NAME=istiod-controlplane",
			"REVISION=default", // empty, no webhook would match it and none get a CA
			"CLUSTER_ID=Kubernetes",
			"PILOT_CERT_PROVIDER=istiod",
			"ISTIOD_CUSTOM_HOST=127.0.0.1", // into the serving certificate
		)
		return cmd
	}, func(ctx context.Context) error {
		return httpOK(ctx, client, "http://"+loopback(ports.http)+"/ready", "")
	})
}

// istioValidates checks that istiod has put its validating webhooks in force, which it
// does by turning their failure policy from Ignore to Fail.
func istioValidates(ctx context.Context, admin kubernetes.Interface) error {
	list, err := admin.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(ctx,
		metav1.ListOptions{LabelSelector: "app=istiod"})
	if err != nil {
		return err
	}
	if len(list.Items) == 0 {
		return errors.New("there is no validating webhook of istiod")
	}
	for _, configuration := range list.Items {
		for _, w := range configuration.Webhooks {
			if len(w.ClientConfig.CABundle) == 0 || *w.FailurePolicy != admissionregistrationv1.Fail {
				return fmt.Errorf("validating webhook %s is not in force", w.Name)
			}
		}
	}
	return nil
}

// istioInjects checks that a pod that asks for a sidecar would get one.
func istioInjects(ctx context.Context, admin kubernetes.Interface) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "injection-probe-",
			Labels:       map[string]string{"sidecar.istio.io/inject": "true"},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "probe", Image: "probe"}}},
	}
	created, err := admin.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, pod,
		metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return err
	}
	if !HasSidecar(created) {
		return errors.New("the sidecar is not injected")
	}
	return nil
}

// HasSidecar tells whether a pod has the container istio-proxy, native or not.
func HasSidecar(pod *corev1.Pod) bool {
	isProxy := func(c corev1.Container) bool { return c.Name == "istio-proxy" }
	return slices.ContainsFunc(pod.Spec.Containers, isProxy) || slices.ContainsFunc(pod.Spec.InitContainers, isProxy)
}
