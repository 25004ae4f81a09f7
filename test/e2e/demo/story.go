package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

// stage is where the story is played.
type stage struct {
	ctx      context.Context
	plane    *controlplane.ControlPlane
	meshvakt string            // the binary
	shown    *strings.Replacer // of paths by what people can read
}

// step is one request and what must come of it.
type step struct {
	tell     string
	user     controlplane.User
	args     []string
	manifest string // given to kubectl on standard input
	refused  bool
	contains []string // in what kubectl prints
}

const payments = `apiVersion: v1
kind: Namespace
metadata:
  name: payments
  labels:
    meshvakt.io/guarded: "true"
    istio-injection: enabled
`

const bypass = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: ledger
  namespace: payments
spec:
  selector:
    matchLabels:
      app: ledger
  template:
    metadata:
      labels:
        app: ledger
      annotations:
        traffic.sidecar.istio.io/excludeInboundPorts: "8080"
    spec:
      containers:
        - name: ledger
          image: registry.example.com/ledger:1.0
`

const skipRules = `        proxy.istio.io/config: '{"proxyMetadata": {"SKIP_RULE_APPLY": "true"}}'
`

const meshStrict = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: istio-system
spec:
  mtls:
    mode: STRICT
`

const portException = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: ledger
  namespace: payments
spec:
  selector:
    matchLabels:
      app: ledger
  portLevelMtls:
    8080:
      mode: PERMISSIVE
`

const plaintextClients = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: ledger
  namespace: default
spec:
  host: ledger.payments.svc.cluster.local
  trafficPolicy:
    tls:
      mode: DISABLE
`

// story is what the demo tells, in order.
func story() []step {
	dev, platform := controlplane.Developer, controlplane.Platform
	apply := []string{"apply", "-f", "-"}
	return []step{
		{"A developer creates a guarded namespace. Nothing makes it STRICT, so pods in it would take plaintext.",
			dev, apply, payments, true, []string{"payments", "PERMISSIVE", "MV101"}},
		{"The platform team may have Meshvakt provide what is missing.",
			platform, onMissing("Provision"), "", false, []string{"patched"}},
		{"Now a guarded namespace is admitted, and its STRICT policy is there at once.",
			dev, apply, strings.Replace(payments, "payments", "health", 1), false, []string{"created"}},
		{"", dev, []string{"-n", "health", "wait", "--for=create", "peerauthentication/default", "--timeout=5s"}, "", false, nil},
		{"", dev, []string{"-n", "health", "get", "peerauthentications"}, "", false, []string{"STRICT"}},
		{"Or every team sees to it, the default: back to Reject.", platform, onMissing("Reject"), "", false, []string{"patched"}},
		{"The mesh becomes STRICT as a whole.", dev, apply, meshStrict, false, nil},
		{"The namespace that was refused is admitted, and so is another one.", dev, apply, payments, false, []string{"created"}},
		{"", dev, apply, strings.Replace(payments, "payments", "journal", 1), false, []string{"created"}},
		{"A Deployment lets one port bypass its sidecar, where no PeerAuthentication holds. Its author is told, not some ReplicaSet.",
			dev, apply, bypass, true, []string{"MV206", "8080"}},
		{"Another one keeps istio-init from capturing anything, by a variable that nobody sees in the pod.",
			dev, apply, strings.Replace(bypass, "        traffic.sidecar.istio.io/excludeInboundPorts: \"8080\"\n", skipRules, 1), true, []string{"MV214", "SKIP_RULE_APPLY"}},
		{"As everybody writes it, it is admitted, and so is the pod that Istio has injected.",
			dev, apply, strings.Replace(bypass, "      annotations:\n        traffic.sidecar.istio.io/excludeInboundPorts: \"8080\"\n", "", 1), false, []string{"created"}},
		{"", dev, []string{"-n", "payments", "wait", "--for=create", "pod", "-l", "app=ledger", "--timeout=20s"}, "", false, nil},
		{"A typo in what a sidecar may use would keep every pod of a Deployment from being created: 256MB is no quantity.",
			dev, apply, sidecarMemory("256MB"), true, []string{"MV308", "256MB"}},
		{"Mended, it would be the only number that the sidecar has: one annotation makes Istio drop all of its defaults.",
			dev, apply, sidecarMemory("256Mi"), false, []string{"created"}},
		{"", dev, []string{"-n", "payments", "wait", "--for=create", "pod", "-l", "app=report", "--timeout=20s"}, "", false, nil},
		{"Meshvakt has put the others beside it. The Deployment stays as it was written.",
			dev, []string{"-n", "payments", "get", "pods", "-l", "app=report", "-o", `jsonpath={.items[0].spec.initContainers[?(@.name=="istio-proxy")].resources}`}, "", false, []string{`"cpu":"2"`, `"memory":"256Mi"`, `"cpu":"100m"`, `"memory":"128Mi"`}},
		{"There are two nodes. The CPU of one is paid for by credits, and Meshvakt has written on both what they are.",
			controlplane.Admin, []string{"get", "nodes", "-L", "node.kubernetes.io/instance-type,meshvakt.node-restriction.kubernetes.io/class"}, "", false, []string{"burstable", "dedicated"}},
		{"A Deployment wants to run on that one, where every request through its sidecar may wait for CPU.",
			dev, apply, onNode("t3.large"), true, []string{"MV405", "shared-1", "t3.large"}},
		{"Those that do not care have been kept off it.",
			dev, []string{"-n", "payments", "wait", "--for=jsonpath={.spec.nodeName}=own-1", "pod", "-l", "app in (ledger, report)", "--timeout=30s"}, "", false, []string{"condition met"}},
		{"In a namespace that nobody guards, somebody tells the clients there to talk to it in plaintext.",
			dev, apply, plaintextClients, true, []string{"MV234", "payments"}},
		{"Somebody wants to delete the policy that both rest on.",
			dev, []string{"-n", "istio-system", "delete", "peerauthentication", "default"}, "", true, []string{"payments", "journal", "MV103"}},
		{"Or to hide it from Istio, by a revision label that no control plane serves.",
			dev, []string{"-n", "istio-system", "label", "peerauthentication", "default", "istio.io/rev=canary"}, "", true, []string{"istio.io/rev", "payments"}},
		{"Or to open a single port of a single workload.", dev, apply, portException, true, []string{"8080", "app=ledger"}},
		{"Or to take the namespace out of the guard.",
			dev, []string{"label", "namespace", "payments", "meshvakt.io/guarded-"}, "", true, []string{"MV105", "unguard"}},
		{"The journal gets a policy of its own; the payments namespace goes on resting on the mesh's.",
			dev, apply, strings.Replace(strings.Replace(meshStrict, "istio-system", "journal", 1), "name: default", "name: own", 1), false, nil},
		{"So the refusal now names what really would be exposed.",
			dev, []string{"-n", "istio-system", "delete", "peerauthentication", "default"}, "", true, []string{`"payments"`}},
	}
}

// end is how it all stands at last.
func end() []step {
	return []step{
		{"How the guard stands.", controlplane.Auditor, []string{"get", "meshguards"}, "", false, []string{"default"}},
		{"And who had an exception.", controlplane.Auditor, []string{"get", "guardexceptions", "-A"}, "", false, []string{"old-ledger", "developer", "platform"}},
	}
}

// exceptions are how a rule is broken that cannot be kept yet.
func exceptions() []step {
	const dev, platform = controlplane.Developer, controlplane.Platform
	apply := []string{"apply", "-f", "-"}
	approve := []string{"-n", "payments", "patch", "guardexception", "old-ledger", "--type=merge", "-p", `{"spec":{"approved":true}}`}
	return []step{
		{"There is an old client, and it needs that port until next month. The developer asks for an exception.", dev, apply, oldLedger(), false, []string{"created"}},
		{"And approves it.", dev, approve, "", true, []string{"MV504", "MV506"}},
		{"That takes somebody else, who may.", platform, approve, "", false, []string{"patched"}},
		{"Now the policy is admitted, and says until when.", dev, apply, portException, false, []string{"let pass until", "old-ledger"}},
		{"What is approved stands; it can only be ended. The platform team has seen enough.",
			platform, []string{"-n", "payments", "patch", "guardexception", "old-ledger", "--type=merge", "-p", `{"spec":{"revoked":true}}`}, "", false, []string{"patched"}},
		{"", dev, apply, strings.Replace(portException, "PERMISSIVE", "DISABLE", 1), true, []string{"8080", "MV103"}},
		{"Nor does the guard go quietly: this one has every right, and has not said why.",
			platform, []string{"delete", "meshguard", "default"}, "", true, []string{"MV512"}},
	}
}

// oldLedger is an exception that ends in a month.
func oldLedger() string {
	return `apiVersion: meshvakt.io/v1alpha1
kind: GuardException
metadata:
  name: old-ledger
  namespace: payments
spec:
  policies:
  - name: strict-mtls
  objectSelector:
    matchLabels:
      app: ledger
  reason: The statement printer cannot do mutual TLS before its upgrade.
  reference: PAY-1234
  expiresAt: "` + time.Now().Add(28*24*time.Hour).UTC().Format(time.RFC3339) + `"
`
}

// sidecarMemory is a Deployment that limits the memory of its sidecar.
func sidecarMemory(limit string) string {
	return strings.NewReplacer("ledger", "report", "traffic.sidecar.istio.io/excludeInboundPorts: \"8080\"", "sidecar.istio.io/proxyMemoryLimit: "+limit).Replace(bypass)
}

// onNode is a Deployment that asks for nodes of an instance type.
func onNode(instanceType string) string {
	return strings.NewReplacer("ledger", "archive", "      annotations:\n        traffic.sidecar.istio.io/excludeInboundPorts: \"8080\"\n", "",
		"      containers:\n", "      nodeSelector:\n        node.kubernetes.io/instance-type: "+instanceType+"\n      containers:\n").Replace(bypass)
}

func onMissing(value string) []string {
	return []string{"patch", "meshguard", "default", "--type=merge", "-p", `{"spec":{"strictMTLS":{"onMissing":"` + value + `"}}}`}
}

// play plays the story.
func (s *stage) play() error {
	for _, st := range slices.Concat(story(), exceptions(), end()) {
		if err := s.request(st); err != nil {
			return err
		}
	}
	return s.offline()
}

// request makes one request and prints it with its answer.
func (s *stage) request(st step) error {
	if st.tell != "" {
		fmt.Printf("\n== %s\n", st.tell)
	}
	fmt.Printf("\n   %s$ kubectl %s\n", st.user, strings.Join(st.args, " "))
	fmt.Print(indent(st.manifest, "     | "))
	stdout, stderr, err := s.ask(st)
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit):
		return err
	case st.refused && (err == nil || !strings.Contains(stderr, ": violates ")):
		return errors.New("this request must be refused, and was not")
	case !st.refused && err != nil:
		return errors.New("this request must be admitted, and was not")
	}
	for _, want := range st.contains {
		if !strings.Contains(stdout+stderr, want) {
			return fmt.Errorf("the answer does not say %q", want)
		}
	}
	return nil
}

// asks is how often a request is made whose record cannot be written.
const asks = 10

// ask makes a request as people do: when the answer is that nothing is wrong but the disk of the
// evidence, they try again.
func (s *stage) ask(st step) (stdout, stderr string, err error) {
	for n := 1; ; n++ {
		stdout, stderr, err = s.plane.Kubectl(s.ctx, st.user, st.manifest, st.args...)
		fmt.Print(indent(stdout+stderr, "     "))
		if err == nil || !strings.Contains(stderr, "EvidenceUnavailable") || n == asks {
			return stdout, stderr, err
		}
		fmt.Print("   (the disk of this machine was too slow for the record; as the answer says, the request is made again)\n")
		select {
		case <-s.ctx.Done():
			return stdout, stderr, s.ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// offline judges the manifests of the story without a cluster.
func (s *stage) offline() error {
	fmt.Print("\n== The same engine judges manifests before they reach any cluster.\n")
	file := filepath.Join(s.plane.Dir, "payments.yaml")
	if err := os.WriteFile(file, []byte(payments), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(s.ctx, s.meshvakt, "check", "-f", "payments.yaml", "-o", "table")
	cmd.Dir = s.plane.Dir
	out, err := cmd.CombinedOutput()
	fmt.Printf("\n   $ meshvakt check -f payments.yaml\n%s", indent(string(out), "     "))
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
		return fmt.Errorf("the check must exit with 1: %w", err)
	}
	return nil
}

// cleanUp shows that nothing holds up the deletion of a namespace.
func (s *stage) cleanUp() error {
	return s.request(step{"And deleting a namespace is never held up.", controlplane.Developer,
		[]string{"delete", "namespace", "payments", "journal", "health", "--ignore-not-found", "--timeout=60s"}, "", false, []string{"deleted"}})
}

func indent(text, prefix string) string {
	if strings.TrimSpace(text) == "" {
		return ""
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return prefix + strings.Join(lines, "\n"+prefix) + "\n"
}
