package controlplane

import (
	"crypto/rand"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// User is someone who can talk to the control plane. A client of Admin can act as any
// other user and group by impersonation, and webhooks see those.
type User string

const (
	// Admin may do everything (group system:masters, which skips authorization).
	Admin User = "admin"

	// Platform has the rights of Developer, full rights on MeshGuards, and the verb
	// unguard on them; likewise on GuardExceptions, with the verb approve.
	Platform User = "platform"

	// Developer has the ClusterRole edit in all namespaces, manages namespaces and the
	// kinds of security.istio.io and networking.istio.io, and may touch nothing of
	// meshvakt.io and no RBAC.
	Developer User = "developer"

	// Auditor reads everything but Secrets and changes nothing.
	Auditor User = "auditor"
)

// Users lists the users that have a kubeconfig file.
func Users() []User { return []User{Admin, Platform, Developer, Auditor} }

// Identities of the parts. Each has the name and group that its counterpart in a real
// cluster has, because admission webhooks see them.
const (
	controllerManagerUser User = "system:kube-controller-manager"
	schedulerUser         User = "system:kube-scheduler"
)

// rbac grants the users above what their documentation says.
//
//go:embed rbac.yaml
var rbac []byte

// account is how a user authenticates.
type account struct {
	user   User
	groups string
	token  string
}

func newAccounts() map[User]account {
	accounts := map[User]account{}
	for _, user := range append(Users(), controllerManagerUser, schedulerUser) {
		a := account{user: user, token: rand.Text()}
		switch user {
		case Admin:
			a.groups = "system:masters"
		case Platform, Developer, Auditor:
			a.groups = string(user) + "s"
		}
		accounts[user] = a
	}
	return accounts
}

// writeTokens writes the API server's --token-auth-file.
func writeTokens(path string, accounts map[User]account) error {
	var lines strings.Builder
	for _, a := range accounts {
		fmt.Fprintf(&lines, "%s,%s,%s", a.token, a.user, a.user)
		if a.groups != "" {
			fmt.Fprintf(&lines, ",%s", a.groups)
		}
		lines.WriteString("\n")
	}
	if err := os.WriteFile(path, []byte(lines.String()), 0o600); err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	return nil
}

// RestConfig returns a new client configuration for a user, without a client-side rate
// limit. A user that does not exist is anonymous.
func (cp *ControlPlane) RestConfig(user User) *rest.Config {
	return cp.restConfig(cp.accounts[user].token)
}

func (cp *ControlPlane) restConfig(token string) *rest.Config {
	return &rest.Config{
		Host:            cp.URL,
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAData: cp.CA},
		QPS:             -1,
	}
}

// Kubeconfig returns the path of a user's kubeconfig file.
func (cp *ControlPlane) Kubeconfig(user User) string {
	return cp.kubeconfigPath(string(user))
}

func (cp *ControlPlane) kubeconfigPath(name string) string {
	return filepath.Join(cp.Dir, strings.ReplaceAll(name, ":", "-")+".kubeconfig")
}

func (cp *ControlPlane) writeKubeconfigs() error {
	for user, a := range cp.accounts {
		if err := cp.writeKubeconfig(cp.Kubeconfig(user), string(user), a.token); err != nil {
			return err
		}
	}
	return nil
}

func (cp *ControlPlane) writeKubeconfig(path, user, token string) error {
	const cluster = "meshvakt"
	config := clientcmdapi.NewConfig()
	config.Clusters[cluster] = &clientcmdapi.Cluster{Server: cp.URL, CertificateAuthorityData: cp.CA}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts[cluster] = &clientcmdapi.Context{Cluster: cluster, AuthInfo: user}
	config.CurrentContext = cluster
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}
