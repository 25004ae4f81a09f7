package controller

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/policies"
)

// gap is that of a namespace in which there is one.
func (m *Memory) gap(name string) scan.Gap {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Gaps[name]
}

// apply makes one change, and tells of it on the namespace and, where it is somebody
// else's policy, on that.
func (r *Restorer) apply(ctx context.Context, repair *policies.Repair) error {
	want := repair.New
	done := fmt.Sprintf("created PeerAuthentication %s with mode STRICT, for the namespace had ceased to be STRICT", want.Key())
	var object *objects.PeerAuthentication
	var err error
	if repair.Old == nil {
		object = strictPolicy(want.Namespace, want.Name)
		err = r.Client.Create(ctx, object, FieldOwner)
	} else {
		var patch []byte
		if patch, err = strictPatch(repair); err != nil {
			return err
		}
		done = fmt.Sprintf("set PeerAuthentication %s to STRICT where it let plaintext in (%s), for the namespace had ceased to be STRICT", want.Key(), patch)
		object = &objects.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: want.Namespace, Name: want.Name}}
		err = r.Client.Patch(ctx, object, client.RawPatch(types.MergePatchType, patch), FieldOwner)
	}
	switch {
	case apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil // somebody was faster, or the namespace is going away; it is looked at again
	case err != nil:
		return fmt.Errorf("restore STRICT by PeerAuthentication %s: %w", want.Key(), err)
	}
	r.remedied(object, RemedyDone)
	r.Log.WarnContext(ctx, "made a namespace STRICT again", "namespace", want.Namespace, "policy", want.Name, "created", repair.Old == nil)
	r.Events.Eventf(namespaceReference(want.Namespace), object, corev1.EventTypeWarning, "StrictRestored", "Restore", "%s", shortened(done))
	if repair.Old != nil {
		r.Events.Eventf(object, nil, corev1.EventTypeWarning, "StrictRestored", "Restore", "%s", shortened(done))
	}
	return nil
}

// strictPolicy is a STRICT policy of Meshvakt's.
func strictPolicy(namespace, name string) *objects.PeerAuthentication {
	return &objects.PeerAuthentication{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app.kubernetes.io/managed-by": "meshvakt"}},
		Spec:       objects.PeerAuthenticationSpec{MTLS: &objects.MutualTLS{Mode: "STRICT"}},
	}
}

// strictPatch changes the modes that let plaintext in, and nothing else.
func strictPatch(repair *policies.Repair) ([]byte, error) {
	spec := map[string]any{}
	if repair.New.Mode != repair.Old.Mode {
		spec["mtls"] = objects.MutualTLS{Mode: repair.New.Mode.String()}
	}
	ports := map[string]objects.MutualTLS{}
	for port, mode := range repair.New.Ports {
		if mode != repair.Old.Ports[port] {
			ports[fmt.Sprint(port)] = objects.MutualTLS{Mode: mode.String()}
		}
	}
	if len(ports) > 0 {
		spec["portLevelMtls"] = ports
	}
	patch, err := json.Marshal(map[string]any{"spec": spec})
	if err != nil {
		return nil, fmt.Errorf("encode the patch of PeerAuthentication %s: %w", repair.New.Key(), err)
	}
	return patch, nil
}
