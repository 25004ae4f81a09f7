package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/spf13/cobra"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/meshvakt/meshvakt/internal/probe"
	"github.com/meshvakt/meshvakt/internal/publish"
)

const (
	publishedWindow = time.Minute
	// A tenth of the wake-ups of a single measurement: it is repeated for ever, on every
	// node, and costs that much less.
	publishedNap = 10 * time.Millisecond
	longestHost  = 253 // of a DNS name
)

// publishOptions are the flags of `meshvakt probe --publish`.
type publishOptions struct {
	publish      bool
	kubeconfig   string
	node         string
	interval     time.Duration
	diskInterval time.Duration
	contendedAt  float64
	logLevel     string
	logFormat    string
}

func (o *publishOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.publish, "publish", false, "measure again and again, and write to the Node")
	f.StringVar(&o.node, "node-name", "", "Node this runs on, with --publish")
	f.DurationVar(&o.interval, "interval", 10*time.Minute, "how often to measure, with --publish")
	f.DurationVar(&o.diskInterval, "disk-interval", 6*time.Hour, "how often to measure the disk too, with --publish")
	f.Float64Var(&o.contendedAt, "contended-at", 5, "CPU steal in percent from which on the Node is CPUContended, with --publish")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file, with --publish; empty inside a cluster")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error, with --publish")
	f.StringVar(&o.logFormat, "log-format", "json", "json or text, with --publish")
}

// check refuses what makes no sense together, and sets the window that is published
// where nobody has set one.
func (o *publishOptions) check(cmd *cobra.Command, m *probe.Options) error {
	if !o.publish {
		for _, name := range []string{"node-name", "interval", "disk-interval", "contended-at", "kubeconfig", "log-level", "log-format"} {
			if cmd.Flags().Changed(name) {
				return fmt.Errorf("--%s is of no use without --publish", name)
			}
		}
		return nil
	}
	if !cmd.Flags().Changed("window") {
		m.Window = publishedWindow
	}
	m.Nap = publishedNap
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.node == "" {
		refuse(`--node-name: ""; must be the name of the Node this runs on`)
	}
	if m.Window < time.Second {
		refuse("--window: %s; must be at least 1s", m.Window)
	}
	if o.interval <= m.Window {
		refuse("--interval: %s; must be longer than --window, %s", o.interval, m.Window)
	}
	if o.diskInterval < o.interval {
		refuse(`--disk-interval: %s; must be at least --interval, %s; --dir "" leaves the disk out`, o.diskInterval, o.interval)
	}
	if !(o.contendedAt > 0 && o.contendedAt <= 100) {
		refuse("--contended-at: %v; must be above 0 and at most 100", o.contendedAt)
	}
	if n := len(m.Targets); n > publish.MaxTargets {
		refuse("--target: %d of them; must be at most %d, for the Node has to hold what is measured", n, publish.MaxTargets)
	}
	for _, target := range m.Targets {
		if host, port, err := net.SplitHostPort(target); err != nil || host == "" || len(host) > longestHost || port == "" || len(port) > 5 {
			refuse("--target: %q; must be host:port", target)
		}
	}
	return errors.Join(errs...)
}

// run measures and publishes until ctx ends, which is no error.
func (o *publishOptions) run(ctx context.Context, m probe.Options) error {
	log, err := newLogger(o.logLevel, o.logFormat)
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("load the client configuration: %w", err)
	}
	config.UserAgent = "meshvakt-probe/" + version()
	// A Node is large, and the answer to every patch.
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	api, err := corev1client.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("create the client: %w", err)
	}
	offset := rand.N(o.interval) //nolint:gosec // to spread load, not a secret
	log.InfoContext(ctx, "measuring", "node", o.node, "first", offset.String(), "interval", o.interval.String(), "window", m.Window.String())
	publish.New(publish.Config{
		Nodes: api.Nodes(),
		Node:  o.node,
		Measure: func(ctx context.Context, disk bool) (*probe.Result, error) {
			now := m
			if !disk {
				now.Dir = ""
			}
			return probe.Run(ctx, now)
		},
		Offset:       offset,
		Interval:     o.interval,
		DiskInterval: o.diskInterval,
		ContendedAt:  o.contendedAt,
		Log:          log,
	}).Run(ctx)
	log.InfoContext(ctx, "ended", "node", o.node)
	return nil
}
