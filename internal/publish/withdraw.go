package publish

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// page is how many Nodes are read at a time: they are large.
const page = 200

// AllNodes reads Nodes as well.
type AllNodes interface {
	Nodes
	List(ctx context.Context, opts metav1.ListOptions) (*corev1.NodeList, error)
}

// Withdraw takes from all Nodes what Publishers have written there, and returns how many
// Nodes had it. The Publishers must have ended. It may be repeated.
func Withdraw(ctx context.Context, nodes AllNodes) (int, error) {
	names, err := carriers(ctx, nodes)
	if err != nil {
		return 0, err
	}
	data, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{
			v1alpha1.AnnotationSteal: nil, v1alpha1.AnnotationMeasuredAt: nil, v1alpha1.AnnotationResult: nil,
		}},
		"status": map[string]any{"conditions": []any{map[string]any{"$patch": "delete", "type": v1alpha1.ConditionCPUContended}}},
	})
	if err != nil {
		return 0, fmt.Errorf("encode the patch: %w", err)
	}
	for i, name := range names {
		_, err := nodes.Patch(ctx, name, types.StrategicMergePatchType, data, metav1.PatchOptions{FieldManager: fieldManager}, "status")
		if err != nil && !apierrors.IsNotFound(err) {
			return i, fmt.Errorf("patch Node %s: %w", name, err)
		}
	}
	return len(names), nil
}

// carriers are the names of the Nodes on which something is published.
func carriers(ctx context.Context, nodes AllNodes) ([]string, error) {
	var names []string
	for next := ""; ; {
		list, err := nodes.List(ctx, metav1.ListOptions{Limit: page, Continue: next})
		if err != nil {
			return nil, fmt.Errorf("list Nodes: %w", err)
		}
		for i := range list.Items {
			n := &list.Items[i]
			_, steal := n.Annotations[v1alpha1.AnnotationSteal]
			_, at := n.Annotations[v1alpha1.AnnotationMeasuredAt]
			_, result := n.Annotations[v1alpha1.AnnotationResult]
			if steal || at || result || conditionOf(n) != nil {
				names = append(names, n.Name)
			}
		}
		if next = list.Continue; next == "" {
			return names, nil
		}
	}
}
