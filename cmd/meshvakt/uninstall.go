package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/controller"
	"github.com/meshvakt/meshvakt/internal/publish"
)

func newUninstall() *cobra.Command {
	var kubeconfig, namespace, deployment, statefulset, probes string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Stop the replicas and remove the webhook configurations and bindings, in this order",
		Long: `Stop the replicas and remove the webhook configurations and the bindings of the
ValidatingAdmissionPolicy, in this order.

Removed the other way round, the replicas would put them back; left behind, the
validating configuration would refuse every change it is about, since nobody answers
any more.

With --probe-daemonset it then deletes that DaemonSet too, waits for its pods, and takes
from all Nodes what they have written there.
The Helm chart runs this before it deletes anything.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return fmt.Errorf("load the client configuration: %w", err)
			}
			// There may be thousands of nodes to see to.
			config.QPS, config.Burst = clientQPS, clientBurst
			scheme := runtime.NewScheme()
			if err := clientgoscheme.AddToScheme(scheme); err != nil {
				return fmt.Errorf("register kinds: %w", err)
			}
			c, err := client.New(config, client.Options{Scheme: scheme})
			if err != nil {
				return fmt.Errorf("create the client: %w", err)
			}
			replicas := []replicaOwner{
				{&appsv1.Deployment{}, "Deployment", "ReplicaSet", client.ObjectKey{Namespace: namespace, Name: deployment}},
				{&appsv1.StatefulSet{}, "StatefulSet", "StatefulSet", client.ObjectKey{Namespace: namespace, Name: statefulset}},
			}
			if err := uninstall(ctx, c, replicas, cmd.OutOrStdout()); err != nil || probes == "" {
				return err
			}
			api, err := corev1client.NewForConfig(config)
			if err != nil {
				return fmt.Errorf("create the client: %w", err)
			}
			return uninstallProbes(ctx, c, api.Nodes(), client.ObjectKey{Namespace: namespace, Name: probes}, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig file; empty inside a cluster")
	f.StringVar(&namespace, "namespace", cmp.Or(os.Getenv("POD_NAMESPACE"), "meshvakt-system"), "namespace Meshvakt runs in")
	f.StringVar(&deployment, "deployment", "meshvakt", "Deployment of the replicas; empty when there is none")
	f.StringVar(&statefulset, "statefulset", "", "StatefulSet of the replicas, where they keep evidence; empty when there is none")
	f.StringVar(&probes, "probe-daemonset", "", "DaemonSet of meshvakt probe; empty when there is none")
	f.DurationVar(&timeout, "timeout", 2*time.Minute, "how long all of it may take")
	return cmd
}

// replicaOwner is what has replicas.
type replicaOwner struct {
	object client.Object // empty; is read into
	kind   string
	owner  string // kind that the pods are controlled by
	key    client.ObjectKey
}

// uninstall scales those that have replicas to nothing, waits for the last pod of each, and deletes
// the webhook configurations and the bindings. Each step may have been done already. Pods are waited
// for, not the count of replicas: that leaves out the ones that are
// still draining, and one of them may lead and put the configuration back.
func uninstall(ctx context.Context, c client.Client, replicas []replicaOwner, out io.Writer) error {
	for _, r := range replicas {
		if r.key.Name == "" {
			continue
		}
		switch err := c.Get(ctx, r.key, r.object); {
		case apierrors.IsNotFound(err):
			fmt.Fprintf(out, "there is no %s %s\n", r.kind, r.key)
		case err != nil:
			return fmt.Errorf("get %s %s: %w", r.kind, r.key, err)
		default:
			if err := stopReplicas(ctx, c, &r, out); err != nil {
				return err
			}
		}
	}
	config := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: controller.WebhookName}}
	if err := c.Delete(ctx, config); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete ValidatingWebhookConfiguration %s: %w", controller.WebhookName, err)
	}
	fmt.Fprintf(out, "removed ValidatingWebhookConfiguration %s\n", controller.WebhookName)
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: controller.MutatingName}}
	if err := c.Delete(ctx, mutating); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete MutatingWebhookConfiguration %s: %w", controller.MutatingName, err)
	}
	fmt.Fprintf(out, "removed MutatingWebhookConfiguration %s\n", controller.MutatingName)
	if err := controller.DeleteBindings(ctx, c); err != nil {
		return err
	}
	fmt.Fprintln(out, "removed the ValidatingAdmissionPolicyBindings of the guards")
	if err := controller.EraseNodeClasses(ctx, c); err != nil {
		return err
	}
	fmt.Fprintln(out, "removed the classes from the nodes")
	return nil
}

func stopReplicas(ctx context.Context, c client.Client, r *replicaOwner, out io.Writer) error {
	var selected *metav1.LabelSelector
	switch o := r.object.(type) {
	case *appsv1.Deployment:
		selected = o.Spec.Selector
	case *appsv1.StatefulSet:
		selected = o.Spec.Selector
	}
	selector, err := metav1.LabelSelectorAsSelector(selected)
	if err != nil {
		return fmt.Errorf("read the selector of %s %s: %w", r.kind, r.key, err)
	}
	scale := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"replicas":0}}`))
	if err := c.SubResource("scale").Patch(ctx, r.object, scale); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("scale %s %s to 0: %w", r.kind, r.key, err)
	}
	fmt.Fprintf(out, "waiting for the pods of %s %s to end\n", r.kind, r.key)
	// The pod this runs in may carry the same labels.
	if err := waitForPods(ctx, c, r.key.Namespace, selector, r.owner); err != nil {
		return fmt.Errorf("wait for the replicas to end: %w", err)
	}
	return nil
}

// waitForPods waits until no pod is left that the selector selects and a controller of
// the kind owns.
func waitForPods(ctx context.Context, c client.Client, namespace string, selector labels.Selector, kind string) error {
	return wait.PollUntilContextCancel(ctx, 500*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		var pods corev1.PodList
		if err := c.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabelsSelector{Selector: selector}); err != nil {
			return false, fmt.Errorf("list pods: %w", err)
		}
		return !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool {
			owner := metav1.GetControllerOf(&p)
			return owner != nil && owner.Kind == kind
		}), nil
	})
}

// uninstallProbes deletes the DaemonSet, waits for its last pod, which would write to its
// Node again, and cleans the Nodes. Each step may have been done already.
func uninstallProbes(ctx context.Context, c client.Client, nodes publish.AllNodes, key client.ObjectKey, out io.Writer) error {
	var d appsv1.DaemonSet
	switch err := c.Get(ctx, key, &d); {
	case apierrors.IsNotFound(err):
		fmt.Fprintf(out, "there is no DaemonSet %s\n", key)
	case err != nil:
		return fmt.Errorf("get DaemonSet %s: %w", key, err)
	default:
		selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
		if err != nil {
			return fmt.Errorf("read the selector of DaemonSet %s: %w", key, err)
		}
		// In the foreground the DaemonSet stays until its pods are gone, so that they are
		// waited for again where this is cut short.
		if err := c.Delete(ctx, &d, client.PropagationPolicy(metav1.DeletePropagationForeground)); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete DaemonSet %s: %w", key, err)
		}
		fmt.Fprintf(out, "waiting for the pods of DaemonSet %s to end\n", key)
		if err := waitForPods(ctx, c, key.Namespace, selector, "DaemonSet"); err != nil {
			return fmt.Errorf("wait for the probes to end: %w", err)
		}
	}
	n, err := publish.Withdraw(ctx, nodes)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "removed what the probes had written from %d Nodes\n", n)
	return nil
}
