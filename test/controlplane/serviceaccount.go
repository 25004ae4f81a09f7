package controlplane

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// tokenSeconds is the life of a ServiceAccount token: 30 days, longer than any test and
// than most demonstrations, because nothing renews it.
const tokenSeconds = 30 * 24 * 60 * 60

// ServiceAccountToken asks the API server for a token of an existing ServiceAccount.
func (cp *ControlPlane) ServiceAccountToken(ctx context.Context, namespace, name string) (string, error) {
	client, err := kubernetes.NewForConfig(cp.RestConfig(Admin))
	if err != nil {
		return "", fmt.Errorf("create client: %w", err)
	}
	seconds := int64(tokenSeconds)
	answer, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}},
		metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("request token of %s/%s: %w", namespace, name, err)
	}
	return answer.Status.Token, nil
}

// ServiceAccountConfig returns a client configuration with the identity, and so with the
// rights, of an existing ServiceAccount.
func (cp *ControlPlane) ServiceAccountConfig(ctx context.Context, namespace, name string) (*rest.Config, error) {
	token, err := cp.ServiceAccountToken(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return cp.restConfig(token), nil
}

// ServiceAccountKubeconfig writes a kubeconfig file with the identity of an existing
// ServiceAccount and returns its path.
func (cp *ControlPlane) ServiceAccountKubeconfig(ctx context.Context, namespace, name string) (string, error) {
	token, err := cp.ServiceAccountToken(ctx, namespace, name)
	if err != nil {
		return "", err
	}
	user := fmt.Sprintf("system:serviceaccount:%s:%s", namespace, name)
	path := cp.kubeconfigPath(user)
	return path, cp.writeKubeconfig(path, user, token)
}

// PodKubeconfig writes a kubeconfig file with the token that the kubelet would give an
// existing pod, bound to it and so to its node, and returns its path.
func (cp *ControlPlane) PodKubeconfig(ctx context.Context, namespace, pod string) (string, error) {
	client, err := kubernetes.NewForConfig(cp.RestConfig(Admin))
	if err != nil {
		return "", fmt.Errorf("create client: %w", err)
	}
	p, err := client.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("get pod %s/%s: %w", namespace, pod, err)
	}
	seconds := int64(tokenSeconds)
	answer, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, p.Spec.ServiceAccountName,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: &seconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID},
		}}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("request token of pod %s/%s: %w", namespace, pod, err)
	}
	path := cp.kubeconfigPath("pod:" + namespace + ":" + pod)
	return path, cp.writeKubeconfig(path, p.Spec.ServiceAccountName, answer.Status.Token)
}
