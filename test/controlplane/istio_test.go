package controlplane

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestIstio(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a control plane with istiod")
	}
	cp := Start(t, Options{Istio: true})

	t.Run("istiod injects by the namespace's label", func(t *testing.T) {
		for _, test := range []struct {
			labels map[string]string
			want   bool
		}{
			{map[string]string{"istio-injection": "enabled"}, true},
			{map[string]string{"istio-injection": "disabled"}, false},
			{nil, false},
		} {
			name := namespace(t, cp, test.labels)
			created, err := client(t, cp, Developer).CoreV1().Pods(name).Create(within(t), pod(), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got := HasSidecar(created); got != test.want {
				t.Errorf("labels %v: sidecar %t; want %t", test.labels, got, test.want)
			}
		}
	})

	// The CRD lets the object pass, so only istiod can refuse it. It has no revision label.
	t.Run("istiod validates", func(t *testing.T) {
		const empty = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: empty, namespace: default}
spec: {hosts: [example]}
`
		_, stderr, err := cp.Kubectl(within(t), Developer, empty, "create", "-f", "-")
		if err == nil || !strings.Contains(stderr, "validation.istio.io") {
			t.Errorf("a VirtualService without routes: error %v; want a refusal by istiod", err)
		}
	})

	t.Run("istiod acts with the rights of its ServiceAccount", func(t *testing.T) {
		_, err := cp.WaitAudit(within(t), func(e AuditEvent) bool {
			return e.User.Username == "system:serviceaccount:istio-system:istiod" &&
				e.ObjectRef.Resource == "mutatingwebhookconfigurations" && e.ResponseStatus.Code == 200
		})
		if err != nil {
			t.Error(err)
		}
	})

	t.Run("istiod can be restarted", func(t *testing.T) {
		if err := cp.Restart(within(t), Istiod); err != nil {
			t.Fatal(err)
		}
		if err := cp.Err(); err != nil {
			t.Error(err)
		}
	})
}
