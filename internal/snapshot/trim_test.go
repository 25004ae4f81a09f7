package snapshot

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

func kept(t *testing.T, d *check.Document) *check.Document {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := o.UnmarshalJSON(d.JSON); err != nil {
		t.Fatal(err)
	}
	k, err := document(d.Kind, o)
	if err != nil {
		t.Fatalf("%s: %v", d.Origin, err)
	}
	return k
}

// TestKeptObjectsDecideAlike judges every case of the corpus by the state as it is
// written and by what a snapshot keeps of it.
func TestKeptObjectsDecideAlike(t *testing.T) {
	judged := 0
	for _, c := range policytest.Load(t, "../../policies/testdata") {
		t.Run(c.Policy+"/"+c.Name, func(t *testing.T) {
			var docs []check.Document
			for _, d := range c.ClusterDocuments(t) {
				if d.Kind.Kind == "Service" {
					continue // of which snapshots hold none
				}
				if k := kept(t, &d); k != nil {
					docs = append(docs, *k)
				}
			}
			state, err := check.NewState(docs)
			if err != nil {
				t.Fatal(err)
			}
			q := check.Request{
				Object: c.FinalDocument(t), Operation: c.Want.Operation, SubResource: c.Want.Subresource,
				MayUnguard: c.Want.MayUnguard, User: c.Want.User, MayApprove: c.Want.MayApprove, Final: true,
			}
			if c.Old != nil {
				old, _ := c.OldDocument(t)
				if q.Old = kept(t, &old); q.Old == nil {
					t.Skip("the old object is none that a snapshot keeps")
				}
			}
			r, err := state.Review(q)
			if err != nil {
				if strings.Contains(err.Error(), "there is no old") {
					t.Skip("the old object is none that a snapshot keeps")
				}
				t.Fatal(err)
			}
			r.Now = policytest.Now()
			got, err := policies.Evaluate(policies.All(), r)
			if err != nil {
				t.Fatal(err)
			}
			want, err := policies.Evaluate(policies.All(), c.Review(t))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(texts(&got), texts(&want)) || got.Outcome != want.Outcome {
				t.Errorf("by the snapshot:\n%s\nby the state:\n%s", strings.Join(texts(&got), "\n"), strings.Join(texts(&want), "\n"))
			}
			judged++
		})
	}
	if judged < 500 {
		t.Errorf("judged %d cases only", judged)
	}
}

func texts(d *policies.Decision) []string {
	list := []string{}
	for i := range d.Findings {
		list = append(list, string(d.Findings[i].Action)+" "+d.Findings[i].Text())
	}
	return list
}

const confidential = `
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: prod
  uid: secret-uid
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: secret-applied
    vendor.example.com/token: secret-annotation
    traffic.sidecar.istio.io/excludeInboundPorts: "9000"
  managedFields: [{manager: secret-manager}]
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: secret-owner, uid: u, controller: true}]
spec:
  serviceAccountName: secret-account
  imagePullSecrets: [{name: secret-pull}]
  initContainers:
  - name: istio-proxy
    image: docker.io/istio/proxyv2:1.31.1
    restartPolicy: Always
    env: [{name: PROXY_CONFIG, value: "{}"}]
  containers:
  - name: web
    image: registry.example.com/web
    command: [secret-command]
    args: [secret-argument]
    env:
    - {name: PASSWORD, value: secret-value}
    - {name: OTHER, valueFrom: {secretKeyRef: {name: secret-name, key: k}}}
    envFrom: [{secretRef: {name: secret-from}}]
    livenessProbe: {exec: {command: [secret-probe]}}
    readinessProbe: {httpGet: {port: 80, path: /secret-path, httpHeaders: [{name: Authorization, value: secret-header}]}}
    lifecycle: {postStart: {exec: {command: [secret-hook]}}}
  volumes:
  - {name: v, secret: {secretName: secret-volume}}
  - {name: c, configMap: {name: settings}}
status: {phase: Running, podIP: secret-address}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: prod, annotations: {deployment.kubernetes.io/revision: secret-revision}}
spec:
  replicas: 3
  template:
    metadata: {labels: {app: web}, annotations: {vendor.example.com/token: secret-annotation, sidecar.istio.io/inject: "true"}}
    spec:
      containers: [{name: web, image: registry.example.com/web, env: [{name: PASSWORD, value: secret-value}]}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "rootNamespace: istio-system", other: secret-key}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio-sidecar-injector, namespace: istio-system}
data: {config: "policy: enabled\ntemplates: {sidecar: secret-template}", values: '{"global": {"hub": "h", "other": "secret-key"}}'}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: application, namespace: istio-system}
data: {password: secret-value}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: injector}
webhooks:
- name: rev.namespace.sidecar-injector.istio.io
  clientConfig: {url: https://secret-host, caBundle: c2VjcmV0}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
- name: secret-other.example.com
  clientConfig: {url: https://secret-host}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {kubernetes.io/hostname: n1}, annotations: {vendor.example.com/token: secret-annotation}}
spec: {providerID: secret-provider, podCIDR: secret-range, taints: [{key: k, effect: NoSchedule}]}
status: {addresses: [{type: InternalIP, address: secret-address}]}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: v1}
spec:
  csi: {driver: d, volumeHandle: secret-handle}
  claimRef: {namespace: prod, name: data, uid: secret-uid}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: topology.kubernetes.io/region, operator: In, values: [eu]}]}]}}
---
apiVersion: meshvakt.io/v1alpha1
kind: GuardException
metadata: {name: e1, namespace: prod, creationTimestamp: "2026-05-01T00:00:00Z"}
spec: {policies: [{name: strict-mtls}], objectSelector: {}, reason: r, reference: OPS-1, expiresAt: "2026-07-01T00:00:00Z", approved: true, requester: secret-alice, approver: secret-bob}
---
apiVersion: meshvakt.io/v1alpha1
kind: GuardException
metadata: {name: e2, namespace: prod}
spec: {policies: [{name: strict-mtls}], objectSelector: {}, reason: r, reference: OPS-2, expiresAt: "2026-07-01T00:00:00Z", approved: true, requester: secret-bob, approver: secret-bob}
`

// TestNothingConfidentialIsKept: what an application is told and how it is started is
// not in a snapshot, nor is who asked for what.
func TestNothingConfidentialIsKept(t *testing.T) {
	docs, err := check.Parse("test.yaml", []byte(confidential))
	if err != nil {
		t.Fatal(err)
	}
	s := &Snapshot{}
	for i := range docs {
		if k := kept(t, &docs[i]); k != nil {
			s.Documents = append(s.Documents, *k)
		}
	}
	withoutNames(s.Documents)
	var b strings.Builder
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	// That a volume holds a Secret, and that there is a probe, is judged.
	text := strings.ReplaceAll(b.String(), `"secret":{}`, "")
	for line := range strings.Lines(text) {
		if at := strings.Index(strings.ReplaceAll(line, "c2VjcmV0", "secret"), "secret"); at >= 0 {
			t.Errorf("kept …%s", line[max(0, at-60):min(len(line), at+60)])
		}
	}
	for _, want := range []string{"excludeInboundPorts", "PROXY_CONFIG", "rootNamespace: istio-system", "topology.kubernetes.io/region", `"replicas":3`, "rev.namespace.sidecar-injector.istio.io", `"taints"`, "OPS-1"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not kept", want)
		}
	}
	if len(s.Documents) != len(docs)-1 {
		t.Errorf("kept %d of %d objects; must be all but the ConfigMap of the application", len(s.Documents), len(docs))
	}
}

// TestNumbersForNames: the same user has the same number, and two have two.
func TestNumbersForNames(t *testing.T) {
	docs, err := check.Parse("test.yaml", []byte(confidential))
	if err != nil {
		t.Fatal(err)
	}
	withoutNames(docs)
	var got []string
	for i := range docs {
		var e struct {
			Spec struct{ Requester, Approver string }
		}
		if docs[i].Kind.Kind == "GuardException" {
			if err := json.Unmarshal(docs[i].JSON, &e); err != nil {
				t.Fatal(err)
			}
			got = append(got, e.Spec.Requester, e.Spec.Approver)
		}
	}
	if want := []string{"user-1", "user-2", "user-2", "user-2"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q; want %q", got, want)
	}
}
