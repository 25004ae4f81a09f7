package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

type evidenceInspectFlags struct {
	trust      trustFlags
	kinds      []string
	namespaces []string
	from, to   string
	output     string
}

func newEvidenceInspect() *cobra.Command {
	var f evidenceInspectFlags
	cmd := &cobra.Command{
		Use:   "inspect INPUT...",
		Short: "Print records of evidence",
		Long: `Inspect prints the records of logs, each on a line, and verifies the logs
meanwhile. INPUT, --policy and --key are as for meshvakt evidence verify. What is
wrong with a log is told at the end: then nothing that was printed may be
believed.

With -o json, the lines are the records as they are stored.

Exit status: 0 all was printed, 2 there are records of a newer Meshvakt, which
were not, 3 the logs are not whole, 4 the command is wrong or something cannot
be read.`,
		RunE: func(cmd *cobra.Command, args []string) error { return usage(cmd, f.run(cmd, args)) },
	}
	flags := cmd.Flags()
	f.trust.add(flags)
	flags.StringSliceVar(&f.kinds, "kind", nil, "only records of these kinds")
	flags.StringSliceVarP(&f.namespaces, "namespace", "n", nil, "only records that are about these namespaces")
	flags.StringVar(&f.from, "from", "", "only records from this time on")
	flags.StringVar(&f.to, "to", "", "only records before this time")
	flags.StringVarP(&f.output, "output", "o", "text", "text or json")
	return cmd
}

func (f *evidenceInspectFlags) run(cmd *cobra.Command, inputs []string) error {
	var from, to time.Time
	var err error
	if f.from != "" {
		if from, err = parseTime("--from", f.from); err != nil {
			return err
		}
	}
	if f.to != "" {
		if to, err = parseTime("--to", f.to); err != nil {
			return err
		}
	}
	for _, k := range f.kinds {
		if !slices.Contains(record.Kinds(), record.Kind(k)) {
			return fmt.Errorf("--kind %q; must be one of %v", k, record.Kinds())
		}
	}
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("--output %q; must be text or json", f.output)
	}
	trust, err := f.trust.trust()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(cmd.OutOrStdout())
	result, err := walkEvidence(cmd.Context(), inputs, trust, func(origin, _ string, r record.Record) error {
		if len(f.kinds) > 0 && !slices.Contains(f.kinds, string(r.Body.Kind())) || r.Time.Before(from) || !to.IsZero() && !r.Time.Before(to) {
			return nil
		}
		return f.print(out, origin, r)
	})
	if err = errors.Join(err, out.Flush()); err != nil {
		return err
	}
	return reportLogs(cmd, result)
}

func (f *evidenceInspectFlags) print(w io.Writer, origin string, r record.Record) error {
	line, err := record.Encode(r)
	if err != nil {
		return err
	}
	about := func(ns string) bool { return strings.Contains(string(line), `"ns":"`+ns+`"`) }
	if len(f.namespaces) > 0 && !slices.ContainsFunc(f.namespaces, about) {
		return nil
	}
	text := string(line)
	if f.output == "text" {
		if text, err = verify.Readable(origin, r); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(w, text)
	return err
}

// walkEvidence opens, goes through all records and closes.
func walkEvidence(ctx context.Context, inputs []string, trust *verify.Trust, each func(origin, pseudonyms string, r record.Record) error) (r *verify.Result, err error) {
	err = withEvidence(inputs, func(sources []*verify.Source) error {
		r, err = verify.Walk(ctx, sources, trust, each)
		return err
	})
	return r, err
}

// reportLogs tells what is wrong with logs whose records have been printed.
func reportLogs(cmd *cobra.Command, r *verify.Result) error {
	for _, p := range slices.Concat(r.Problems, r.Newer) {
		fmt.Fprintln(cmd.ErrOrStderr(), verify.Tame(fmt.Sprintf("meshvakt: %s#%d: %s", p.Log, p.Seq, p.What)))
	}
	if code := r.ExitCode(); code != 0 {
		return exitCode(code)
	}
	return nil
}
