// The controlplane command builds and boots a real Kubernetes control plane, with Istio
// on request, for people to try things against.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

const usage = `Builds and boots a real Kubernetes control plane, from Go modules, on loopback.

Usage:
  go run -C test/controlplane ./cmd/controlplane <command> [flags]

Commands:
  up      build what is missing, boot, print how to use it, stay until Ctrl-C
  build   only build

Flags:
  --istio      with istiod and istioctl
  --evidence   (build) with an S3 server and a witness, which tests of evidence copy to and are cosigned by
  --dir DIR    (up) directory for data and logs; default: a temporary one
  --keep       (up) leave the directory behind

The first build takes about 20 minutes on two cores, and 15 more with --istio. The
programs are cached in $MESHVAKT_CACHE, or in meshvakt in the user's cache directory.
If KUBEBUILDER_ASSETS names a directory with etcd, kube-apiserver and kubectl, these are
used and only what it lacks is built.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "controlplane: %v\n\n%s", err, usage)
		os.Exit(2)
	case err != nil:
		fmt.Fprintf(os.Stderr, "controlplane: %v\n", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("wrong usage")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 || args[0] == "help" || strings.HasPrefix(args[0], "-") {
		fmt.Fprint(stdout, usage)
		return nil
	}
	o := controlplane.Options{Log: stderr, OwnSignals: true}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.BoolVar(&o.Istio, "istio", false, "")
	evidence := false
	switch args[0] {
	case "build":
		flags.BoolVar(&evidence, "evidence", false, "")
	case "up":
		flags.StringVar(&o.Dir, "dir", "", "")
		flags.BoolVar(&o.Keep, "keep", false, "")
	}
	err := flags.Parse(args[1:])
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errUsage, flags.Arg(0))
	}
	switch args[0] {
	case "build":
		return build(ctx, o, evidence, stdout)
	case "up":
		return up(ctx, o, stdout)
	}
	return fmt.Errorf("%w: no command %q", errUsage, args[0])
}

func build(ctx context.Context, o controlplane.Options, evidence bool, stdout io.Writer) error {
	builder := &controlplane.Builder{Log: o.Log}
	kubernetes, err := builder.Kubernetes(ctx)
	if err != nil {
		return err
	}
	programs := []string{
		kubernetes.Etcd, kubernetes.APIServer, kubernetes.ControllerManager, kubernetes.Scheduler, kubernetes.Kubectl,
	}
	if o.Istio {
		istio, err := builder.Istio(ctx)
		if err != nil {
			return err
		}
		programs = append(programs, istio.Istiod, istio.Istioctl)
	}
	if evidence {
		s3, err := builder.S3(ctx)
		if err != nil {
			return err
		}
		witness, err := builder.Witness(ctx)
		if err != nil {
			return err
		}
		programs = append(programs, s3, witness.Litewitness, witness.Witnessctl)
	}
	fmt.Fprintln(stdout, strings.Join(programs, "\n"))
	return nil
}

func up(ctx context.Context, o controlplane.Options, stdout io.Writer) error {
	cp, err := controlplane.Boot(ctx, o)
	if err != nil {
		return err
	}
	explain(stdout, cp)
	select {
	case <-ctx.Done():
		fmt.Fprintln(stdout, "\nStopping.")
	case <-cp.Done():
	}
	return errors.Join(cp.Err(), cp.Stop())
}

func explain(stdout io.Writer, cp *controlplane.ControlPlane) {
	fmt.Fprintf(stdout, "\nAPI server: %s\nLogs:       %s/*.log\nAudit log:  %s\n\n", cp.URL, cp.Dir, cp.AuditLogPath)
	fmt.Fprintln(stdout, "Users; paste the line of the one you want to be:")
	for _, user := range controlplane.Users() {
		fmt.Fprintf(stdout, "  export KUBECONFIG=%s\n", cp.Kubeconfig(user))
	}
	fmt.Fprintf(stdout, "\nThen:\n  alias kubectl=%s\n", cp.KubectlPath())
	if cp.IstioctlPath != "" {
		fmt.Fprintf(stdout, "  alias istioctl=%s\n", cp.IstioctlPath)
	}
	fmt.Fprintln(stdout, "  kubectl get namespaces\n\nPress Ctrl-C to stop it and remove all of it.")
}
