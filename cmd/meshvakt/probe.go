package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshvakt/meshvakt/internal/probe"
)

func newProbe() *cobra.Command {
	var o probe.Options
	var output string
	var p publishOptions
	cmd := &cobra.Command{
		Use:   "probe",
		Short: "Measure what this machine does to a proxy: stolen CPU, late wake-ups, slow disks, distance",
		Long: `Measure what this machine does to a proxy, and to etcd.

  CPU steal   the share of CPU time that the hypervisor gave to others while this
              machine wanted it. A dedicated CPU has next to none.
  wake-up     how much later than asked for a sleeping thread goes on. A proxy
              sleeps between requests, and this comes on top of each.
  fdatasync   how long the disk takes to store 2,300 bytes, as etcd does for every
              change; etcd wants its p99 below 10 ms.
  reads       random reads of 4 KiB a second, one at a time, past the page cache.
  connect     how long a TCP connection to each --target takes.

It needs no cluster and no rights, writes 65 MiB into --dir and removes them again.
Its load is bounded; the last line says what it came to. Exit status: 0 measured,
1 not everything, 2 nothing.

With --publish it goes on until it is told to end, and writes what it measures to its
Node: to annotations, and to the condition CPUContended.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"table", "json"}, output) {
				return fmt.Errorf("--output %q; must be table or json", output)
			}
			if err := p.check(cmd, &o); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			if p.publish {
				return p.run(ctx, o)
			}
			result, err := probe.Run(ctx, o)
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(result)
			} else {
				err = writeProbe(cmd.OutOrStdout(), result)
			}
			if err != nil {
				return fmt.Errorf("write the result: %w", err)
			}
			if len(result.Errors) > 0 {
				return exitCode(1)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.Window, "window", 10*time.Second, "for how long CPU is watched, 1s or more; 1m when nothing is said with --publish")
	f.StringVar(&o.Dir, "dir", ".", "directory on the disk to measure; empty leaves the disk out")
	f.StringArrayVar(&o.Targets, "target", nil, "address (host:port) to connect to; may be repeated")
	f.StringVarP(&output, "output", "o", "table", "table or json")
	p.addFlags(cmd)
	cmd.MarkFlagsMutuallyExclusive("publish", "output")
	return cmd
}

func writeProbe(w io.Writer, r *probe.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	latency := func(what string, l probe.Latency) {
		if l.Samples > 0 {
			fmt.Fprintf(t, "%s\tp50 %s\tp99 %s\tmax %s\t%d samples\n", what, micro(l.P50), micro(l.P99), micro(l.Max), l.Samples)
		}
	}
	if r.StealMeasured {
		fmt.Fprintf(t, "CPU steal\t%.2f %%\n", r.StealPercent)
	}
	latency("wake-up", r.WakeUp)
	latency("fdatasync", r.Sync)
	if r.ReadsPerSecond > 0 {
		fmt.Fprintf(t, "reads\t%.0f /s\n", r.ReadsPerSecond)
	}
	for i := range r.Targets {
		latency("connect "+r.Targets[i].Address, r.Targets[i].Connect)
	}
	fmt.Fprintf(t, "cost\t%.2f s of CPU, %.1f %% of one\n", r.Cost.CPUSeconds, r.Cost.Percent)
	for _, e := range r.Errors {
		fmt.Fprintf(t, "not measured\t%s\n", e)
	}
	return t.Flush()
}

// micro is a number of microseconds as people write it.
func micro(n int64) string { return (time.Duration(n) * time.Microsecond).String() }
