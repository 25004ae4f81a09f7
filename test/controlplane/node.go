package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// AddNode creates a node that is ready and returns when pods can be scheduled to it.
// Capacity and conditions that node lacks are filled in: 8 CPUs, 32 GiB, 110 pods.
func (cp *ControlPlane) AddNode(ctx context.Context, node *corev1.Node) (*corev1.Node, error) {
	client, err := kubernetes.NewForConfig(cp.RestConfig(Admin))
	if err != nil {
		return nil, fmt.Errorf("create client: %w", err)
	}
	node = node.DeepCopy()
	if node.Status.Capacity == nil {
		node.Status.Capacity = corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("8"),
			corev1.ResourceMemory: resource.MustParse("32Gi"),
			corev1.ResourcePods:   resource.MustParse("110"),
		}
	}
	if node.Status.Allocatable == nil {
		node.Status.Allocatable = node.Status.Capacity.DeepCopy()
	}
	if node.Status.Conditions == nil {
		node.Status.Conditions = []corev1.NodeCondition{{
			Type:               corev1.NodeReady,
			Status:             corev1.ConditionTrue,
			Reason:             "NoKubelet",
			LastHeartbeatTime:  metav1.Now(),
			LastTransitionTime: metav1.Now(),
		}}
	}
	created, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create node %s: %w", node.Name, err)
	}
	// The API server marks every new node not-ready, and the controller manager takes
	// the mark away when it has seen the condition.
	err = poll(ctx, func(ctx context.Context) error {
		if created, err = client.CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{}); err != nil {
			return err
		}
		if slices.ContainsFunc(created.Spec.Taints, func(t corev1.Taint) bool {
			return t.Key == corev1.TaintNodeNotReady
		}) {
			return errors.New("tainted " + corev1.TaintNodeNotReady)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait for node %s: %w", node.Name, err)
	}
	return created, nil
}

// NodeConfig returns a client configuration with the identity of a node's kubelet. It
// may do what a kubelet may: see to its own node and to the pods on it.
func (cp *ControlPlane) NodeConfig(node string) *rest.Config {
	config := cp.RestConfig(Admin)
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + node, Groups: []string{"system:nodes", "system:authenticated"}}
	return config
}

// startKubelet starts the stand-in for kubelets: it confirms that a scheduled pod that
// is being deleted has ended. Without it, such pods and their namespaces would stay.
func (cp *ControlPlane) startKubelet() error {
	client, err := kubernetes.NewForConfig(cp.RestConfig(Admin))
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			cp.endTerminatingPods(ctx, client)
			select { // the API server is away, or ended the watch as it does now and then
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	cp.mu.Lock()
	defer cp.mu.Unlock()
	if cp.stopping {
		cancel()
		return errStopped
	}
	cp.kubelet = func() { cancel(); <-ended }
	return nil
}

// endTerminatingPods does the work of the stand-in until its watch ends.
func (cp *ControlPlane) endTerminatingPods(ctx context.Context, client kubernetes.Interface) {
	scheduled := metav1.ListOptions{
		FieldSelector: fields.OneTermNotEqualSelector("spec.nodeName", "").String(),
	}
	list, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, scheduled)
	if err != nil {
		return
	}
	for i := range list.Items {
		cp.endTerminatingPod(ctx, &list.Items[i])
	}
	scheduled.ResourceVersion = list.ResourceVersion
	events, err := client.CoreV1().Pods(metav1.NamespaceAll).Watch(ctx, scheduled)
	if err != nil {
		return
	}
	defer events.Stop()
	for event := range events.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if ok && (event.Type == watch.Added || event.Type == watch.Modified) {
			cp.endTerminatingPod(ctx, pod)
		}
	}
}

// endTerminatingPod acts as the kubelet of the pod's node: no other may delete the pod,
// and admission webhooks see who it is.
func (cp *ControlPlane) endTerminatingPod(ctx context.Context, pod *corev1.Pod) {
	if pod.DeletionTimestamp == nil {
		return
	}
	client, err := kubernetes.NewForConfig(cp.NodeConfig(pod.Spec.NodeName))
	if err != nil {
		return
	}
	now := int64(0)
	_ = poll(ctx, func(ctx context.Context) error { // fails only when ctx ends
		err := client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &now,
			Preconditions:      &metav1.Preconditions{UID: &pod.UID},
		})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	})
}
