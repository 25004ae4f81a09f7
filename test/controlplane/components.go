package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// The names under which Pause, Resume, Kill and Restart know the components.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Istiod            = "istiod"
)

const (
	// Relative to the control plane's directory, in which etcd and the API server run:
	// the path of a socket is limited to about 100 bytes. A socket in a private
	// directory needs no port and no TLS.
	etcdSocket     = "etcd.sock"
	etcdPeerSocket = "etcd-peer.sock"

	auditPolicyFile = "audit-policy.yaml"
	tokenFile       = "tokens.csv"
	issuer          = "https://kubernetes.default.svc"

	// A year: no kubelet renews its heartbeat, and no node may be lost for that.
	nodeGracePeriod = "8760h"
)

// defaultAuditPolicy records what changes and leaves out what only reads, of which the
// controllers alone write several lines a second.
const defaultAuditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  verbs: [get, list, watch]
- level: None
  resources:
  - group: coordination.k8s.io
    resources: [leases]
- level: Metadata
`

// add declares a component. It runs in the control plane's directory unless its command
// says otherwise.
func (cp *ControlPlane) add(name string, command func() *exec.Cmd, ready func(context.Context) error) *component {
	c := &component{
		name:    name,
		logPath: filepath.Join(cp.Dir, name+".log"),
		spawner: cp.spawner,
		command: func() *exec.Cmd {
			cmd := command()
			if cmd.Dir == "" {
				cmd.Dir = cp.Dir
			}
			return cmd
		},
		ready: ready,
		died:  cp.fail,
	}
	cp.mu.Lock()
	defer cp.mu.Unlock()
	c.closed = cp.stopping
	cp.components = append(cp.components, c)
	return c
}

func (cp *ControlPlane) addEtcd() *component {
	client := cp.etcdClient()
	return cp.add(Etcd, func() *exec.Cmd {
		return exec.Command(cp.kubernetes.Etcd,
			"--name=default",
			"--data-dir=etcd",
			"--unsafe-no-fsync", // the data does not outlive the machine anyway
			"--listen-client-urls=unix://"+etcdSocket,
			"--advertise-client-urls=unix://"+etcdSocket,
			"--listen-peer-urls=unix://"+etcdPeerSocket,
			"--initial-advertise-peer-urls=unix://"+etcdPeerSocket,
			"--initial-cluster=default=unix://"+etcdPeerSocket,
			"--log-level=warn",
		)
	}, func(ctx context.Context) error {
		return httpOK(ctx, client, "http://etcd/health", "")
	})
}

func (cp *ControlPlane) addAPIServer(port *int) *component {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cp.CA)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: roots},
	}}
	return cp.add(APIServer, func() *exec.Cmd {
		args := []string{
			"--etcd-servers=unix://" + etcdSocket,
			"--bind-address=127.0.0.1",
			fmt.Sprintf("--secure-port=%d", *port),
			"--tls-cert-file=" + cp.pki.servingCertFile,
			"--tls-private-key-file=" + cp.pki.servingKeyFile,
			"--token-auth-file=" + tokenFile,
			"--authorization-mode=Node,RBAC",
			// The first is on by default, and here so that nobody wonders; by the second
			// kubelets may change nothing but their own node and what is on it.
			"--enable-admission-plugins=ServiceAccount,NodeRestriction",
			"--service-account-issuer=" + issuer,
			"--service-account-key-file=" + cp.pki.serviceAccountFile,
			"--service-account-signing-key-file=" + cp.pki.serviceAccountFile,
			"--service-cluster-ip-range=10.0.0.0/16",
			// Endpoints of the Service kubernetes may not be on loopback.
			"--endpoint-reconciler-type=none",
			"--allow-privileged=true", // as in real clusters; istio-init needs capabilities
			"--audit-policy-file=" + auditPolicyFile,
			"--audit-log-path=" + cp.AuditLogPath,
			"--audit-log-maxsize=4096", // MB; what is rotated away is not found any more
			// A connection that is idle at Kill must not delay a Restart.
			"--shutdown-delay-duration=0s",
		}
		return exec.Command(cp.kubernetes.APIServer, append(args, cp.options.APIServerArgs...)...)
	}, func(ctx context.Context) error {
		return httpOK(ctx, client, "https://"+loopback(*port)+"/readyz", cp.accounts[Admin].token)
	})
}

func (cp *ControlPlane) addControllerManager(admin kubernetes.Interface) *component {
	return cp.add(ControllerManager, func() *exec.Cmd {
		args := []string{
			"--kubeconfig=" + cp.Kubeconfig(controllerManagerUser),
			"--use-service-account-credentials=true",
			"--service-account-private-key-file=" + cp.pki.serviceAccountFile,
			"--root-ca-file=" + cp.pki.caFile,
			"--leader-elect=false",
			"--secure-port=0",
			"--node-monitor-grace-period=" + nodeGracePeriod,
			"--node-startup-grace-period=" + nodeGracePeriod,
		}
		return exec.Command(cp.kubernetes.ControllerManager, append(args, cp.options.ControllerManagerArgs...)...)
	}, func(ctx context.Context) error {
		return errors.Join(canCreatePods(ctx, admin, metav1.NamespaceDefault), aggregated(ctx, admin))
	})
}

// aggregated checks that the ClusterRoles which the users are bound to have got their
// rules: the controller manager gathers those of "edit" and "view" from other roles, each
// in its own time.
func aggregated(ctx context.Context, admin kubernetes.Interface) error {
	for name, verb := range map[string]string{"edit": "create", "view": "list"} {
		role, err := admin.RbacV1().ClusterRoles().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(role.Rules, func(r rbacv1.PolicyRule) bool {
			return slices.Contains(r.Resources, "pods") && slices.Contains(r.Verbs, verb)
		}) {
			return fmt.Errorf("ClusterRole %s has no right to %s pods yet", name, verb)
		}
	}
	return nil
}

func (cp *ControlPlane) addScheduler() *component {
	return cp.add(Scheduler, func() *exec.Cmd {
		args := []string{
			"--kubeconfig=" + cp.Kubeconfig(schedulerUser),
			"--leader-elect=false",
			"--secure-port=0",
		}
		return exec.Command(cp.kubernetes.Scheduler, append(args, cp.options.SchedulerArgs...)...)
	}, nil)
}

// canCreatePods checks what the controller manager puts into each namespace and every
// pod refers to.
func canCreatePods(ctx context.Context, admin kubernetes.Interface, namespace string) error {
	if _, err := admin.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{}); err != nil {
		return err
	}
	_, err := admin.CoreV1().ConfigMaps(namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	return err
}

// WaitNamespace waits until the controller manager has made a new namespace usable: the
// ServiceAccount default and the ConfigMap kube-root-ca.crt are there. Before that, the
// API server refuses pods in it.
func (cp *ControlPlane) WaitNamespace(ctx context.Context, namespace string) error {
	admin, err := kubernetes.NewForConfig(cp.RestConfig(Admin))
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	err = poll(ctx, func(ctx context.Context) error { return canCreatePods(ctx, admin, namespace) })
	if err != nil {
		return fmt.Errorf("wait for namespace %s: %w", namespace, err)
	}
	return nil
}

// writeInputs writes the files that the API server reads at its start.
func (cp *ControlPlane) writeInputs() error {
	if err := writeTokens(filepath.Join(cp.Dir, tokenFile), cp.accounts); err != nil {
		return err
	}
	policy := cp.options.AuditPolicy
	if policy == "" {
		policy = defaultAuditPolicy
	}
	if err := os.WriteFile(filepath.Join(cp.Dir, auditPolicyFile), []byte(policy), 0o600); err != nil {
		return fmt.Errorf("write audit policy: %w", err)
	}
	return nil
}

// startOnFreePorts starts a component on ports it has to itself and waits until it is
// ready. Another process may take a port between our look and the component's bind, so
// that a new set is tried when it says so.
func startOnFreePorts(ctx context.Context, c *component, ports []*int) error {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		free, err := freePorts(len(ports))
		if err != nil {
			return fmt.Errorf("start %s: %w", c.name, err)
		}
		for i, port := range free {
			*ports[i] = port
		}
		if err := c.resetLog(); err != nil {
			return fmt.Errorf("start %s: %w", c.name, err)
		}
		if err := c.start(); err != nil {
			return err
		}
		err = c.waitReady(ctx)
		if err == nil || attempt == attempts || !c.addressInUse() {
			return err
		}
	}
}

// httpOK asks for a health page.
func httpOK(ctx context.Context, client *http.Client, url, token string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, tailBytes))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}
