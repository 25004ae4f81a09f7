package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/internal/snapshot"
)

// stateFlags say what state manifests are judged against.
type stateFlags struct {
	file, kubeconfig, context, save string

	istioNamespace string
	allowPartial   bool
}

func (f *stateFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.file, "state", "", "file with the state of a cluster, which --save-state has written")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file of the cluster whose state is read")
	flags.StringVar(&f.context, "context", "", "context of the kubeconfig; alone: of the usual kubeconfig")
	flags.StringVar(&f.save, "save-state", "", "file to write the state that was read to, compressed if its name ends in .gz; without -f, nothing is judged")
	flags.StringVar(&f.istioNamespace, "istio-namespace", snapshot.DefaultIstioNamespace, "namespace of istiod's ConfigMaps")
	flags.BoolVar(&f.allowPartial, "allow-partial", false, "judge by part of the state where rights to read the rest are missing")
}

// given reports whether there is a state of a cluster to judge by.
func (f *stateFlags) given() bool {
	return f.file != "" || f.kubeconfig != "" || f.context != "" || f.save != ""
}

func (f *stateFlags) validate() error {
	if f.file != "" && (f.kubeconfig != "" || f.context != "" || f.save != "") {
		return errors.New("--state is a state that was saved, and goes with none of --kubeconfig, --context and --save-state")
	}
	return nil
}

// clusterState is a state and where manifests go that do not say it; without a snapshot
// none was asked for.
type clusterState struct {
	snapshot  *snapshot.Snapshot
	namespace string
}

func (f *stateFlags) read(ctx context.Context, stderr io.Writer, now time.Time) (clusterState, error) {
	var state clusterState
	var err error
	switch {
	case !f.given():
		return clusterState{}, nil
	case f.file != "":
		state.snapshot, err = snapshot.Load(f.file)
	default:
		var config *rest.Config
		if config, state.namespace, err = f.config(); err == nil {
			var progress func(int)
			if isTerminal(stderr) {
				line := &statusLine{w: stderr, now: time.Now}
				defer line.clear()
				progress = func(objects int) { line.show("read %d objects of the cluster", objects) }
			}
			state.snapshot, err = snapshot.Read(ctx, config, f.istioNamespace, now, progress)
		}
	}
	if err != nil {
		return clusterState{}, err
	}
	if err := state.snapshot.Complete(); err != nil && !f.allowPartial {
		return clusterState{}, partialError(state.snapshot)
	}
	if f.save == "" {
		return state, nil
	}
	if err := state.snapshot.Save(f.save); err != nil {
		return clusterState{}, fmt.Errorf("save the state: %w", err)
	}
	fmt.Fprintf(stderr, "meshvakt check: saved %d objects of a cluster of Kubernetes %s to %s\n", len(state.snapshot.Documents), state.snapshot.Kubernetes, f.save)
	return state, nil
}

// partialError names each missing right on a line of its own.
func partialError(s *snapshot.Snapshot) error {
	errs := []error{fmt.Errorf("%w; each of the following rights is missing (--allow-partial judges by the rest)", snapshot.ErrPartial)}
	for _, r := range s.Missing {
		errs = append(errs, fmt.Errorf("missing: %s", r))
	}
	return errors.Join(errs...)
}

// config is that of kubectl: the file that is named, else those in KUBECONFIG, else the
// one in the home directory, else the service account of the pod.
func (f *stateFlags) config() (config *rest.Config, namespace string, err error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: f.context})
	if config, err = loader.ClientConfig(); err != nil {
		return nil, "", fmt.Errorf("load the kubeconfig: %w", err)
	}
	if namespace, _, err = loader.Namespace(); err != nil {
		return nil, "", fmt.Errorf("load the kubeconfig: %w", err)
	}
	config.QPS, config.Burst = clientQPS, clientBurst
	config.UserAgent = "meshvakt-check"
	return config, namespace, nil
}

// statusLine is the last line of a terminal, which says how far the work is.
type statusLine struct {
	w       io.Writer
	now     func() time.Time
	last    time.Time
	written bool
}

// show writes the line over the one before, some times a second at most.
func (l *statusLine) show(format string, args ...any) {
	const every = 200 * time.Millisecond
	now := l.now()
	switch {
	case l.last.IsZero():
		l.last = now // what is done at once says nothing
	case now.Sub(l.last) >= every:
		l.last, l.written = now, true
		fmt.Fprintf(l.w, "\r\x1b[K"+format, args...)
	}
}

func (l *statusLine) clear() {
	if l.written {
		fmt.Fprintf(l.w, "\r\x1b[K")
	}
}

// baselineFlags say which findings are known.
type baselineFlags struct {
	file, write string
}

func (f *baselineFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.file, "baseline", "", "file with findings that are known and fail nothing")
	flags.StringVar(&f.write, "write-baseline", "", "file to write a baseline to that knows all that is denied now; with --baseline, ends are kept")
}

func (f *baselineFlags) apply(result *check.Result, now time.Time) error {
	var known *check.Baseline
	if f.file != "" {
		var err error
		if known, err = check.LoadBaseline(f.file); err != nil {
			return err
		}
	}
	if f.write != "" {
		known = result.Baseline(known)
		if err := known.Save(f.write); err != nil {
			return fmt.Errorf("write the baseline: %w", err)
		}
	}
	if known != nil {
		result.Acknowledge(known, now)
	}
	return nil
}
