package main

import (
	"cmp"
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
	namespace  string
	mayUnguard bool
	mayApprove bool
	final      bool

	state    stateFlags
	baseline baselineFlags
}

func newCheck() *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check (-f FILE [--state FILE | --kubeconfig FILE] | --object FILE [--old FILE] --cluster FILE)",
		Short: "Tell what the webhook would decide about manifests",
		Long: `Check decides by the same policies as the webhook, and changes nothing anywhere.

With -f all manifests together are the state that a cluster is to have, and each
object is judged as it would stand in it. Where the order of applying them would
matter, the result says so.

With -f and a state, the manifests are what is to be applied to a cluster: those
that are there already are judged as updates, the others as being created, and
what is in the cluster and not among the manifests is not judged. The state is
read from a cluster, with --kubeconfig or --context, or from a file that
--save-state has written, with --state. Reading it takes the right to list, and
no other. Where such a right is missing, the state is not complete, which is an
error unless --allow-partial is given.

With --object it decides a request against the state of a cluster given with
--cluster, as manifests. Several objects are several requests, each on its own.
The state is the one before the request: on UPDATE and DELETE it holds the old
object, unless --old gives it.

Pods are judged as they are submitted: whether they will get a sidecar is
predicted, from the MutatingWebhookConfigurations and ConfigMaps of Istio's
injectors if they are given, else for a mesh with default settings. With --final
they are judged as they come out of injection, and so are pods that have been
injected already, such as those read back from a cluster; the result says so.
Templates are always predicted.

FILE is a file of one or more documents, a directory with everything below it,
or - for standard input. Without a state, PeerAuthentications without a
creationTimestamp are younger than those with one, in the order of the files,
and without a MeshGuard the default one applies, which guards namespaces
labelled meshvakt.io/guarded=true.

Exit status: 0 nothing is denied, or only what the baseline knows, 1 something
is, 2 it cannot be told because an input is unreadable or a manifest is missing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.desired, "filename", "f", nil, "manifests to be judged")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "namespace of manifests that name none; default: that of the kubeconfig's context, else default")
	flags.StringArrayVar(&f.objects, "object", nil, "object under review")
	flags.StringArrayVar(&f.old, "old", nil, "object before the request; default: as in the cluster state")
	flags.StringArrayVar(&f.cluster, "cluster", nil, "state of the cluster before the request, as manifests")
	flags.StringVar(&f.operation, "operation", "", "CREATE, UPDATE or DELETE; default: UPDATE if there is an old object, else CREATE")
	flags.StringVar(&f.user, "user", "", "name of the requesting user, which counts for exceptions; default: whom the exception names")
	flags.BoolVar(&f.mayUnguard, "may-unguard", false, "the user may take namespaces out of guards, and weaken these")
	flags.BoolVar(&f.mayApprove, "may-approve", false, "the user may approve exceptions")
	flags.StringVar(&f.at, "at", "", "the time at which to decide, as 2026-06-01T12:00:00Z, such as after the end of an exception; default: now")
	flags.BoolVar(&f.final, "final", false, "pods are as after all mutating webhooks; default: as submitted, their injection is predicted")
	flags.StringVarP(&f.output, "output", "o", "", "table, json, sarif, junit or github; default: table on a terminal, else json")
	f.state.add(flags)
	f.baseline.add(flags)
	return cmd
}

// validate reports flags that do not go together.
func (f *checkFlags) validate() error {
	requests := len(f.objects) > 0 || len(f.old) > 0 || len(f.cluster) > 0 || f.operation != "" || f.user != "" || f.mayApprove
	switch {
	case !slices.Contains([]string{"", "table", "json", "sarif", "junit", "github"}, f.output):
		return fmt.Errorf("--output %q; must be table, json, sarif, junit or github", f.output)
	case len(f.desired) == 0 && len(f.objects) == 0 && f.state.save == "":
		return errors.New("nothing to check; give -f, or --object with --cluster")
	case len(f.desired) > 0 && requests:
		return errors.New("-f judges manifests and goes with none of --object, --old, --cluster, --operation, --user and --may-approve")
	case f.mayUnguard && len(f.desired) > 0 && !f.state.given():
		return errors.New("--may-unguard is about changes of a cluster; with -f it needs --state, --kubeconfig or --context")
	case len(f.objects) > 0 && f.state.given():
		return errors.New("--object is judged by --cluster; --state, --kubeconfig and --context go with -f")
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
	return f.state.validate()
}

func (f *checkFlags) run(cmd *cobra.Command) error {
	at, err := f.moment()
	var result *check.Result
	if err == nil {
		result, err = f.decide(cmd, at)
	}
	if err == nil && result != nil {
		err = f.baseline.apply(result, at)
	}
	if err != nil {
		// One line for each problem.
		for _, e := range flatten(err) {
			fmt.Fprintf(cmd.ErrOrStderr(), "meshvakt check: %v\n", e)
		}
		return exitUndecided
	}
	if result == nil {
		return nil
	}
	if err := f.write(cmd.OutOrStdout(), result); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if result.Summary.Denied > 0 {
		return exitDenied
	}
	return nil
}

func (f *checkFlags) write(w io.Writer, result *check.Result) error {
	switch {
	case f.output == "sarif":
		return result.WriteSARIF(w, moduleVersion())
	case f.output == "junit":
		return result.WriteJUnit(w)
	case f.output == "github":
		return result.WriteGitHub(w)
	case f.output == "table" || f.output == "" && isTerminal(w):
		return result.WriteTable(w)
	}
	return result.WriteJSON(w)
}

// decide returns no result when it was only asked to save a state.
// moment is the time at which to decide.
func (f *checkFlags) moment() (time.Time, error) {
	if f.at == "" {
		return time.Now(), nil
	}
	at, err := time.Parse(time.RFC3339, f.at)
	if err != nil {
		return time.Time{}, fmt.Errorf("--at %q; must be a time such as 2026-06-01T12:00:00Z", f.at)
	}
	return at, nil
}

func (f *checkFlags) decide(cmd *cobra.Command, at time.Time) (*check.Result, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	stdin := cmd.InOrStdin()
	if len(f.objects) == 0 {
		state, err := f.state.read(cmd.Context(), cmd.ErrOrStderr(), time.Now())
		if err != nil || len(f.desired) == 0 {
			return nil, err
		}
		var progress check.Progress
		if stderr := cmd.ErrOrStderr(); isTerminal(stderr) {
			line := &statusLine{w: stderr, now: time.Now}
			defer line.clear()
			progress = func(judged, of int) { line.show("judged %d of %d objects", judged, of) }
		}
		docs, err := check.Read(stdin, f.desired...)
		if err != nil {
			return nil, err
		}
		docs = check.In(cmp.Or(f.namespace, state.namespace), docs)
		if state.snapshot == nil {
			return check.Desired(docs, f.final, at, progress)
		}
		result, err := check.Apply(check.Change{Manifests: docs, Cluster: state.snapshot.State(), MayUnguard: f.mayUnguard, Final: f.final, Now: at, Progress: progress})
		if err == nil && len(state.snapshot.Missing) > 0 {
			result.Notes = append([]string{"the answers rest on part of the state: whoever read it has no right to: " + state.snapshot.MissingText()}, result.Notes...)
		}
		return result, err
	}
	operation, errOperation := check.ParseOperation(f.operation)
	objects, errObjects := check.Read(stdin, f.objects...)
	old, errOld := check.Read(stdin, f.old...)
	cluster, errCluster := check.Read(stdin, f.cluster...)
	if err := errors.Join(errOperation, errObjects, errOld, errCluster); err != nil {
		return nil, err
	}
	return check.Decide(check.Requests{
		Objects: check.In(f.namespace, objects), Old: check.In(f.namespace, old), Cluster: cluster,
		Operation: operation, User: f.user, MayUnguard: f.mayUnguard, MayApprove: f.mayApprove, Final: f.final, Now: at,
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
