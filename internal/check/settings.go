package check

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// decodeGuard reads a MeshGuard as strictly as the API server does with
// fieldValidation=Strict: a misspelt field must not weaken a guard.
func decodeGuard(d *Document) (facts.Guard, error) {
	if d.Stored {
		return storedGuard(d)
	}
	if d.Kind.Version != v1alpha1.Version {
		return facts.Guard{}, d.errorf("apiVersion %q of MeshGuard; must be %q", d.Kind.GroupVersion(), v1alpha1.GroupVersion())
	}
	var g v1alpha1.MeshGuard
	strict, err := kjson.UnmarshalStrict(d.JSON, &g)
	if err != nil {
		return facts.Guard{}, d.errorf("decode MeshGuard %q: %w", d.Name, err)
	}
	errs := make([]error, 0, len(strict))
	for _, e := range strict {
		errs = append(errs, d.errorf("MeshGuard %q: %w%s", d.Name, e, d.atLine(lastField(e.Error()))))
	}
	if err := requireSelector(d); err != nil {
		errs = append(errs, err)
	}
	// An empty list is refused, while an absent one has a default.
	if s := g.Spec.StrictMTLS; s != nil && s.ValidationActions != nil && len(s.ValidationActions) == 0 {
		errs = append(errs, d.errorf("MeshGuard %q: spec.strictMTLS.validationActions: []; must name at least one of Deny, Warn and Audit", d.Name))
	}
	v1alpha1.SetDefaults(&g)
	for _, e := range v1alpha1.Validate(&g) {
		errs = append(errs, d.errorf("MeshGuard %q: %w%s", d.Name, e, d.atLine(lastField(e.Field))))
	}
	if len(errs) > 0 {
		return facts.Guard{}, errors.Join(errs...)
	}
	guard, err := facts.NewGuard(&g)
	if err != nil {
		return facts.Guard{}, d.errorf("%w", err)
	}
	return guard, nil
}

// storedGuard reads a MeshGuard that the API server has let in.
func storedGuard(d *Document) (facts.Guard, error) {
	var g v1alpha1.MeshGuard
	if err := json.Unmarshal(d.JSON, &g); err != nil {
		return facts.Guard{}, d.errorf("decode MeshGuard %q: %w", d.Name, err)
	}
	v1alpha1.SetDefaults(&g)
	return facts.NewGuard(&g)
}

// requireSelector tells an absent selector from an empty one, which selects every
// namespace.
func requireSelector(d *Document) error {
	var g struct {
		Spec map[string]json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(d.JSON, &g); err != nil {
		return d.errorf("decode MeshGuard %q: %w", d.Name, err)
	}
	if raw := g.Spec["namespaceSelector"]; raw == nil || string(raw) == "null" {
		return d.errorf("MeshGuard %q: spec.namespaceSelector must be set; {} selects every namespace", d.Name)
	}
	return nil
}

// lastField is the name of the field at the end of a path, be it quoted in a
// sentence or not.
func lastField(text string) string {
	if parts := strings.Split(text, `"`); len(parts) > 1 {
		text = parts[1]
	}
	text = text[strings.LastIndex(text, ".")+1:]
	name, _, _ := strings.Cut(text, "[")
	return name
}

func (d *Document) atLine(field string) string {
	if line := d.lineOf(field); line != 0 && field != "" {
		return fmt.Sprintf(" (line %d)", line)
	}
	return ""
}

// isMeshConfig tells the ConfigMaps that carry the settings of a control plane
// by their name. Others of Istio share the prefix and carry something else, so
// that the data decides as well.
func isMeshConfig(k key) bool {
	if k.kind.Group != "" || k.kind.Kind != "ConfigMap" {
		return false
	}
	return k.name == "istio" || strings.HasPrefix(k.name, "istio-")
}

func decodeMeshConfig(d *Document) (cp mesh.ControlPlane, found bool, err error) {
	var m corev1.ConfigMap
	if err := json.Unmarshal(d.JSON, &m); err != nil {
		return mesh.ControlPlane{}, false, d.errorf("decode ConfigMap: %w", err)
	}
	if _, ok := m.Data["mesh"]; !ok {
		return mesh.ControlPlane{}, false, nil
	}
	cp, err = mesh.ParseControlPlane(m.Name, m.Labels, m.Data)
	if err != nil {
		// The protobuf library varies the kind of space in its errors from build to
		// build; ours are compared and searched for.
		return mesh.ControlPlane{}, false, d.errorf("%s", strings.ReplaceAll(err.Error(), "\u00a0", " "))
	}
	return cp, true, nil
}
