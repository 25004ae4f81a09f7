package objects

import (
	"fmt"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// PeerAuthentication is a security.istio.io PeerAuthentication as the API server
// stores it; v1 and v1beta1 have one schema. It is declared here, rather than
// taken from istio.io/client-go, because 10,000 of them stay in memory and
// because one object that a newer schema lets in must not stop the whole list
// from being read.
//
// +kubebuilder:object:root=true
type PeerAuthentication struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              PeerAuthenticationSpec `json:"spec,omitempty"`
}

// PeerAuthenticationSpec is the spec of a PeerAuthentication.
type PeerAuthenticationSpec struct {
	Selector      *WorkloadSelector     `json:"selector,omitempty"`
	MTLS          *MutualTLS            `json:"mtls,omitempty"`
	PortLevelMTLS map[string]*MutualTLS `json:"portLevelMtls,omitempty"`
}

// WorkloadSelector selects pods by labels.
type WorkloadSelector struct {
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
}

// MutualTLS is a mode, empty for UNSET.
type MutualTLS struct {
	Mode string `json:"mode,omitempty"`
}

// PeerAuthenticationList is a list of PeerAuthentications.
//
// +kubebuilder:object:root=true
type PeerAuthenticationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PeerAuthentication `json:"items"`
}

// PeerAuthenticationKind is the kind in the version that istiod watches.
func PeerAuthenticationKind() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: "security.istio.io", Version: "v1", Kind: "PeerAuthentication"}
}

// AddToScheme registers PeerAuthentication in security.istio.io/v1.
func AddToScheme(s *runtime.Scheme) error {
	gv := PeerAuthenticationKind().GroupVersion()
	s.AddKnownTypes(gv, &PeerAuthentication{}, &PeerAuthenticationList{})
	metav1.AddToGroupVersion(s, gv)
	return nil
}

// Mesh returns what resolution reads of the policy. It errs on a mode or port
// that Istio's schema does not know; the value is then complete but for those,
// which count as DISABLE.
func (p *PeerAuthentication) Mesh() (*mesh.PeerAuthentication, error) {
	m := &mesh.PeerAuthentication{
		Namespace:   p.Namespace,
		Name:        p.Name,
		UID:         string(p.UID),
		Generation:  p.Generation,
		Created:     p.CreationTimestamp.Time,
		Terminating: p.DeletionTimestamp != nil,
	}
	m.Revision, m.HasRevision = p.Labels["istio.io/rev"]
	if s := p.Spec.Selector; s != nil {
		m.SelectorSet = true
		m.Selector = s.MatchLabels
	}
	var firstErr error
	mode := func(at string, t *MutualTLS) mesh.Mode {
		if t == nil || t.Mode == "" {
			return mesh.ModeUnset
		}
		parsed, ok := mesh.ParseMode(t.Mode)
		if !ok {
			if firstErr == nil {
				firstErr = fmt.Errorf("%s: unknown mode %q; must be one of UNSET, DISABLE, PERMISSIVE, STRICT", at, t.Mode)
			}
			return mesh.ModeDisable
		}
		return parsed
	}
	m.Mode = mode("spec.mtls.mode", p.Spec.MTLS)
	if len(p.Spec.PortLevelMTLS) > 0 {
		m.Ports = make(map[uint32]mesh.Mode, len(p.Spec.PortLevelMTLS))
	}
	for key, t := range p.Spec.PortLevelMTLS {
		port, err := strconv.ParseUint(key, 10, 16)
		if err != nil || port == 0 {
			if firstErr == nil {
				firstErr = fmt.Errorf("spec.portLevelMtls: key %q; must be a port number from 1 to 65535", key)
			}
			continue
		}
		m.Ports[uint32(port)] = mode("spec.portLevelMtls["+key+"].mode", t)
	}
	return m, firstErr
}
