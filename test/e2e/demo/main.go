// Command demo shows Meshvakt at work in the terminal: it boots a real control
// plane, installs the chart, and plays a developer whose requests are answered by
// the real API server. Every answer is checked; an unexpected one ends the demo
// with an error.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

func main() {
	keep := flag.Bool("keep", false, "leave everything running until Ctrl-C")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, keep bool) error {
	fmt.Println("== A real control plane: etcd, kube-apiserver, controller-manager, scheduler, istiod.")
	fmt.Println("   What is not in the cache yet is built from Go modules; the first time that takes 20 to 30 minutes.")
	plane, err := controlplane.Boot(ctx, controlplane.Options{Istio: true, Log: os.Stdout, OwnSignals: true})
	if err != nil {
		return err
	}
	defer plane.Stop()
	meshvakt, err := install(ctx, plane)
	if err != nil {
		return err
	}
	defer meshvakt.stop()
	for name, instanceType := range map[string]string{"shared-1": "t3.large", "own-1": "m5.large"} {
		if _, err := plane.AddNode(ctx, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelInstanceTypeStable: instanceType}},
			Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.37.2"}}, // istiod renders by it
		}); err != nil {
			return err
		}
	}
	s := &stage{ctx: ctx, plane: plane, meshvakt: meshvakt.binary, shown: strings.NewReplacer(meshvakt.evidence, "./evidence", plane.Dir, ".")}
	if err := s.play(); err != nil {
		return err
	}
	if err := s.evidence(meshvakt.evidence); err != nil {
		return err
	}
	if !keep {
		return s.cleanUp()
	}
	leave(plane)
	select {
	case <-ctx.Done():
		fmt.Println("\n== Stopping.")
		return nil
	case <-plane.Done():
		return plane.Err()
	case err := <-meshvakt.exited:
		return fmt.Errorf("meshvakt ended: %w", err)
	}
}

// leave tells how to go on by hand.
func leave(plane *controlplane.ControlPlane) {
	fmt.Printf(`
== Everything stays up until Ctrl-C. In another terminal:

  export KUBECONFIG=%s
  alias kubectl=%s

  kubectl get namespaces -L meshvakt.io/guarded
  kubectl -n istio-system delete peerauthentication default      # refused; try to find a way around

  The developer may not touch MeshGuards; the platform team may:
  export KUBECONFIG=%s
`, plane.Kubeconfig(controlplane.Developer), plane.KubectlPath(), plane.Kubeconfig(controlplane.Platform))
}
