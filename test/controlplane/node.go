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
	"k8s.io/client-go/metadata"
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

// startKubelet starts the stand-in for kubelets: it confirms that a scheduled pod that
// is being deleted has ended. Without it, such pods and their namespaces would stay.
func (cp *ControlPlane) startKubelet() error {
	client, err := metadata.NewForConfig(cp.RestConfig(kubeletUser))
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			endTerminatingPods(ctx, client)
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
func endTerminatingPods(ctx context.Context, client metadata.Interface) {
	pods := client.Resource(corev1.SchemeGroupVersion.WithResource("pods"))
	scheduled := metav1.ListOptions{
		FieldSelector: fields.OneTermNotEqualSelector("spec.nodeName", "").String(),
	}
	list, err := pods.List(ctx, scheduled)
	if err != nil {
		return
	}
	for i := range list.Items {
		endTerminatingPod(ctx, client, &list.Items[i])
	}
	scheduled.ResourceVersion = list.ResourceVersion
	events, err := pods.Watch(ctx, scheduled)
	if err != nil {
		return
	}
	defer events.Stop()
	for event := range events.ResultChan() {
		pod, ok := event.Object.(*metav1.PartialObjectMetadata)
		if ok && (event.Type == watch.Added || event.Type == watch.Modified) {
			endTerminatingPod(ctx, client, pod)
		}
	}
}

func endTerminatingPod(ctx context.Context, client metadata.Interface, pod *metav1.PartialObjectMetadata) {
	if pod.DeletionTimestamp == nil {
		return
	}
	now := int64(0)
	pods := client.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(pod.Namespace)
	_ = poll(ctx, func(ctx context.Context) error { // fails only when ctx ends
		err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &now,
			Preconditions:      &metav1.Preconditions{UID: &pod.UID},
		})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	})
}
