package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/internal/controller"
	"github.com/meshvakt/meshvakt/internal/preflight"
	"github.com/meshvakt/meshvakt/internal/survey"
)

// The exit statuses of preflight, beside 0.
const (
	exitInTheWay   exitCode = 1
	exitNotLooked  exitCode = 2
	exitIncomplete exitCode = 3
)

type preflightFlags struct {
	kubeconfig, context string
	guard, output       string
	istioNamespace      string
	ownNamespace        string
	namespaces          []string
	deny, printRBAC     bool
	timeout             time.Duration
}

func newPreflight() *cobra.Command {
	var f preflightFlags
	cmd := &cobra.Command{
		Use:   "preflight",
		Short: "Tell whether a cluster is ready, and what a guard would refuse of what runs in it",
		Long: `Look at a cluster, before Meshvakt is installed and after: Kubernetes and Istio,
webhooks of others, nodes, Meshvakt itself, and everything that runs in guarded
namespaces, judged by the same policies as by the webhook, as if it were applied
anew.

It only reads. What the user may not read is listed, and the checks that need it are
Unknown; --print-rbac prints the roles that suffice.

It judges by the MeshGuards of the cluster, by the default guard if there is none, or
by --guard: the name of one in the cluster, or a file with MeshGuards. With --deny it
judges as if they denied, whatever their validationActions are.

Exit status: 0 nothing is in the way, 1 something is, 2 the cluster cannot be asked or
the command line is wrong, 3 nothing is known to be in the way, but something could not
be looked at.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file; default: as kubectl finds it")
	flags.StringVar(&f.context, "context", "", "context of the kubeconfig; default: its current one")
	flags.StringVar(&f.guard, "guard", "", "MeshGuard to judge by: a file, or the name of one in the cluster; default: all in the cluster")
	flags.BoolVar(&f.deny, "deny", false, "judge as if all validationActions were Deny")
	flags.StringArrayVarP(&f.namespaces, "namespace", "n", nil, "judge the objects of this namespace alone; may be given several times")
	flags.StringVarP(&f.output, "output", "o", "", "table or json; default: table on a terminal, else json")
	flags.StringVar(&f.istioNamespace, "istio-namespace", "istio-system", "namespace of istiod and its settings")
	flags.StringVar(&f.ownNamespace, "meshvakt-namespace", "meshvakt-system", "namespace that Meshvakt is in, or will be")
	flags.BoolVar(&f.printRBAC, "print-rbac", false, "print the ClusterRole and Role that preflight needs, and do nothing else")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Minute, "how long all of it may take")
	return cmd
}

func (f *preflightFlags) run(cmd *cobra.Command) error {
	names := preflight.Names{
		Namespace: f.ownNamespace, IstioNamespace: f.istioNamespace,
		Validating: controller.WebhookName, Mutating: controller.MutatingName,
	}
	if f.printRBAC {
		return preflight.WriteRoles(cmd.OutOrStdout(), names)
	}
	report, err := f.report(cmd, names)
	if err != nil {
		for _, e := range flatten(err) {
			fmt.Fprintf(cmd.ErrOrStderr(), "meshvakt preflight: %v\n", e)
		}
		return exitNotLooked
	}
	write := report.WriteJSON
	if onTerminal := isTerminal(cmd.OutOrStdout()); f.output == "table" || f.output == "" && onTerminal {
		write = func(w io.Writer) error { return report.WriteTable(w, coloured(onTerminal)) }
	}
	if err := write(cmd.OutOrStdout()); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	switch report.Summary.Result {
	case preflight.Fail:
		return exitInTheWay
	case preflight.Unknown:
		return exitIncomplete
	}
	return nil
}

// coloured reports whether colours are wanted: see no-color.org.
func coloured(onTerminal bool) bool { return onTerminal && os.Getenv("NO_COLOR") == "" }

func (f *preflightFlags) report(cmd *cobra.Command, names preflight.Names) (*preflight.Report, error) {
	if !slices.Contains([]string{"", "table", "json"}, f.output) {
		return nil, fmt.Errorf("--output %q; must be table or json", f.output)
	}
	o := survey.Options{Names: names, Namespaces: f.namespaces, Deny: f.deny, Now: time.Now()}
	if f.guard != "" {
		var err error
		if o.Guards, err = guardsIn(f.guard); errors.Is(err, fs.ErrNotExist) {
			o.Guard = f.guard
		} else if err != nil {
			return nil, err
		}
		o.Source = "MeshGuards in " + f.guard
	}
	config, err := f.config()
	if err != nil {
		return nil, err
	}
	stderr := cmd.ErrOrStderr()
	o.Lacking = func(rights []preflight.Right) {
		for _, r := range rights {
			fmt.Fprintf(stderr, "meshvakt preflight: the user may not %s; what needs it stays unknown\n", r)
		}
	}
	if isTerminal(stderr) {
		o.Judged = func(kind string, n int) { fmt.Fprintf(stderr, "\r\x1b[K%s: %d read", kind, n) }
		defer fmt.Fprintf(stderr, "\r\x1b[K")
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	s, err := survey.New(config)
	if err != nil {
		return nil, err
	}
	return s.Report(ctx, o)
}

// config finds the cluster as kubectl does.
func (f *preflightFlags) config() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: f.context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("load the client configuration: %w", err)
	}
	config.QPS, config.Burst = clientQPS, clientBurst
	return config, nil
}

// guardsIn reads the MeshGuards of a file, as strictly as meshvakt check does.
func guardsIn(path string) ([]v1alpha1.MeshGuard, error) {
	docs, err := check.Read(nil, path)
	if err != nil {
		return nil, err
	}
	docs = slices.DeleteFunc(docs, func(d check.Document) bool { return d.Kind.Kind != "MeshGuard" || d.Kind.Group != v1alpha1.Group })
	if len(docs) == 0 {
		return nil, fmt.Errorf("%s: no MeshGuard in it; must hold at least one", path)
	}
	if _, err := check.NewState(docs); err != nil {
		return nil, err
	}
	guards := make([]v1alpha1.MeshGuard, len(docs))
	for i := range docs {
		if err := json.Unmarshal(docs[i].JSON, &guards[i]); err != nil {
			return nil, fmt.Errorf("%s: read a MeshGuard: %w", docs[i].Origin, err)
		}
		v1alpha1.SetDefaults(&guards[i])
	}
	return guards, nil
}
