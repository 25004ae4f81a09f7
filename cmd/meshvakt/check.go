package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/meshvakt/meshvakt/internal/check"
)

// The exit statuses of check, beside 0.
const (
	exitDenied    exitCode = 1
	exitUndecided exitCode = 2
)

type checkFlags struct {
	objects, old, cluster, desired []string

	operation  string
	output     string
	user       string
	at         string
	mayUnguard bool
	mayApprove bool
	final      bool
}

func newCheck() *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check (--object FILE [--old FILE] --cluster FILE | -f FILE)",
		Short: "Tell offline what the webhook would decide about manifests",
		Long: `Check decides by the same policies as the webhook, without a cluster.

With --object it decides a request against the state of a cluster given with
--cluster. Several objects are several requests, each on its own. The state is
the one before the request: on UPDATE and DELETE it holds the old object, unless
--old gives it. A state can be taken from a cluster by
  kubectl get namespaces,configmaps,peerauthentications,meshguards,mutatingwebhookconfigurations,limitranges,resourcequotas -A -o yaml

Pods are judged as they are submitted: whether they will get a sidecar is
predicted, from the MutatingWebhookConfigurations and ConfigMaps of Istio's
injectors if they are given, else for a mesh with default settings. With --final
they are judged as they come out of injection, and so are pods that have been
injected already, such as those read back from a cluster; the result says so.
Templates are always predicted.

With -f all manifests together are the state that a cluster is to have, and each
object is judged as it would stand in it. Where the order of applying them would
matter, the result says so.

FILE is a file of one or more documents, a directory with everything below it,
or - for standard input. PeerAuthentications without a creationTimestamp are
younger than those with one, in the order of the files. Without a MeshGuard the
default one applies, which guards namespaces labelled meshvakt.io/guarded=true.

Exit status: 0 nothing is denied, 1 something is, 2 it cannot be told because
an input is unreadable or a manifest is missing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.objects, "object", nil, "object under review")
	flags.StringArrayVar(&f.old, "old", nil, "object before the request; default: as in the cluster state")
	flags.StringArrayVar(&f.cluster, "cluster", nil, "state of the cluster before the request")
	flags.StringVar(&f.operation, "operation", "", "CREATE, UPDATE or DELETE; default: UPDATE if there is an old object, else CREATE")
	flags.StringVar(&f.user, "user", "", "name of the requesting user, which counts for exceptions; default: whom the exception names")
	flags.BoolVar(&f.mayUnguard, "may-unguard", false, "the user may take namespaces out of guards, and weaken these")
	flags.BoolVar(&f.mayApprove, "may-approve", false, "the user may approve exceptions")
	flags.StringVar(&f.at, "at", "", "the time at which to decide, as 2026-06-01T12:00:00Z, such as after the end of an exception; default: now")
	flags.BoolVar(&f.final, "final", false, "pods are as after all mutating webhooks; default: as submitted, their injection is predicted")
	flags.StringArrayVarP(&f.desired, "filename", "f", nil, "manifests of the desired state")
	flags.StringVarP(&f.output, "output", "o", "", "table or json; default: table on a terminal, else json")
	return cmd
}

// validate reports flags that do not go together.
func (f *checkFlags) validate() error {
	switch {
	case !slices.Contains([]string{"", "table", "json"}, f.output):
		return fmt.Errorf("--output %q; must be table or json", f.output)
	case len(f.desired) == 0 && len(f.objects) == 0:
		return errors.New("nothing to check; give --object with --cluster, or -f")
	case len(f.desired) > 0 && (len(f.objects) > 0 || len(f.old) > 0 || len(f.cluster) > 0 || f.operation != "" || f.user != "" || f.mayUnguard || f.mayApprove):
		return errors.New("-f judges a desired state and goes with none of --object, --old, --cluster, --operation, --user, --may-unguard and --may-approve")
	case len(f.objects) > 0 && len(f.cluster) == 0:
		return errors.New("--object needs --cluster; an empty file is an empty cluster")
	}
	stdin := 0
	for _, path := range slices.Concat(f.objects, f.old, f.cluster, f.desired) {
		if path == check.Stdin {
			stdin++
		}
	}
	if stdin > 1 {
		return errors.New("standard input (-) can be read only once")
	}
	return nil
}

func (f *checkFlags) run(cmd *cobra.Command) error {
	result, err := f.decide(cmd.InOrStdin())
	if err != nil {
		// One line for each problem.
		for _, e := range flatten(err) {
			fmt.Fprintf(cmd.ErrOrStderr(), "meshvakt check: %v\n", e)
		}
		return exitUndecided
	}
	write := result.WriteJSON
	if f.output == "table" || f.output == "" && isTerminal(cmd.OutOrStdout()) {
		write = result.WriteTable
	}
	if err := write(cmd.OutOrStdout()); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if result.Summary.Denied > 0 {
		return exitDenied
	}
	return nil
}

func (f *checkFlags) decide(stdin io.Reader) (*check.Result, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	now := time.Now()
	if f.at != "" {
		var err error
		if now, err = time.Parse(time.RFC3339, f.at); err != nil {
			return nil, fmt.Errorf("--at %q; must be a time such as 2026-06-01T12:00:00Z", f.at)
		}
	}
	if len(f.desired) > 0 {
		docs, err := check.Read(stdin, f.desired...)
		if err != nil {
			return nil, err
		}
		return check.Desired(docs, f.final, now)
	}
	operation, errOperation := check.ParseOperation(f.operation)
	objects, errObjects := check.Read(stdin, f.objects...)
	old, errOld := check.Read(stdin, f.old...)
	cluster, errCluster := check.Read(stdin, f.cluster...)
	if err := errors.Join(errOperation, errObjects, errOld, errCluster); err != nil {
		return nil, err
	}
	return check.Decide(check.Requests{
		Objects: objects, Old: old, Cluster: cluster,
		Operation: operation, User: f.user, MayUnguard: f.mayUnguard, MayApprove: f.mayApprove, Final: f.final, Now: now,
	})
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	return []error{err}
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
