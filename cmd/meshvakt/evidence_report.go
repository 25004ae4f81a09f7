package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	evidencereport "github.com/meshvakt/meshvakt/internal/evidence/report"
	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// exitNotWhole is that of a report on logs that are broken, or too new to be read.
const exitNotWhole exitCode = 3

type evidenceReportFlags struct {
	trust         trustFlags
	audit         auditFlags
	from, to      string
	namespaces    []string
	inferred      bool
	maxClockError time.Duration
	noDeclared    bool
	output        string
	out           string
	lang          string
}

func newEvidenceReport() *cobra.Command {
	var f evidenceReportFlags
	cmd := &cobra.Command{
		Use:   "report INPUT... --from TIME --to TIME [--policy FILE | --key KEY] [-o html|csv|oscal]",
		Short: "Write a report on a period for an auditor",
		Long: `Report verifies logs of evidence as evidence verify does, and writes what they tell
of a period: whether the guarded namespaces took mutual TLS alone, every time at
which they did not or nobody saw it, gaps, exceptions, refused requests, changes of
the control itself, clocks and keys; what of this serves which requirement and what
it does not show; and how to verify it again.

With -o html it is one page, which needs no other file and prints. With -o csv it
is a file for each register, in the directory or zip archive that --out names. With
-o oscal it is NIST's OSCAL 1.1.3 assessment results in JSON.

INPUT and the flags of keys are as of evidence verify. The same logs and flags give
the same bytes.

Exit status: 0 it is written, 3 it is written and says that a log is not whole, or
newer than this program, 4 the command is wrong or something cannot be read.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return usage(cmd, f.run(cmd, args))
		},
	}
	flags := cmd.Flags()
	f.trust.add(flags)
	f.audit.add(flags)
	flags.StringVar(&f.from, "from", "", "when the period begins, as 2026-10-01T00:00:00Z or 2026-10-01")
	flags.StringVar(&f.to, "to", "", "when it ends; the end is not in it")
	flags.StringArrayVar(&f.namespaces, "namespace", nil, "namespace to report on; repeatable; default: all that were guarded")
	flags.BoolVar(&f.inferred, "accept-inferred", false, "let time count in which nobody saw anything and nothing has changed")
	flags.DurationVar(&f.maxClockError, "max-clock-error", defaultClockError, "how wrong a clock may have been for its time to count as seen; one that nothing disciplines counts as 16s")
	flags.BoolVar(&f.noDeclared, "no-declared-clock", false, "go by what kernels say of their clocks alone, and not by what operators declare")
	flags.StringVarP(&f.output, "output", "o", "html", "html, csv or oscal")
	flags.StringVar(&f.out, "out", "", "file to write; with -o csv a directory, or an archive if it ends with .zip; default: standard output")
	flags.StringVar(&f.lang, "lang", "en", "language of the page: "+strings.Join(evidencereport.Languages(), " or "))
	return cmd
}

const defaultClockError = time.Second

func (f *evidenceReportFlags) validate(cmd *cobra.Command) error {
	switch {
	case !slices.Contains([]string{"html", "csv", "oscal"}, f.output):
		return fmt.Errorf("--output %q; must be html, csv or oscal", f.output)
	case !slices.Contains(evidencereport.Languages(), f.lang):
		return fmt.Errorf("--lang %q; must be %s", f.lang, strings.Join(evidencereport.Languages(), " or "))
	case f.output != "html" && cmd.Flags().Changed("lang"):
		return fmt.Errorf("--lang is of the page; -o %s is in no language of people", f.output)
	case f.from == "" || f.to == "":
		return errors.New("a report is on a period; give --from and --to")
	case f.output == "csv" && f.out == "" && isTerminal(cmd.OutOrStdout()):
		return errors.New("-o csv writes an archive, which a terminal cannot show; give --out")
	}
	return nil
}

func (f *evidenceReportFlags) run(cmd *cobra.Command, inputs []string) error {
	if err := f.validate(cmd); err != nil {
		return err
	}
	in, trust, err := f.input()
	if err != nil {
		return err
	}
	claim, err := in.Claim()
	if err != nil {
		return err
	}
	audit, err := f.audit.read()
	if err != nil {
		return err
	}
	in.Result, err = verifyEvidence(cmd.Context(), inputs, verify.Options{Trust: trust, MaxClockError: f.maxClockError, RefuseDeclared: f.noDeclared, Claims: []verify.Claim{claim}, Audit: audit})
	if err != nil {
		return err
	}
	if err := f.write(cmd.OutOrStdout(), in); err != nil {
		return err
	}
	if len(in.Result.Problems) > 0 || len(in.Result.Newer) > 0 {
		return exitNotWhole
	}
	return nil
}

func (f *evidenceReportFlags) input() (in evidencereport.Input, trust *verify.Trust, err error) {
	if trust, err = f.trust.trust(); err != nil {
		return in, nil, err
	}
	if in.From, err = parseTime("--from", f.from); err != nil {
		return in, nil, err
	}
	if in.To, err = parseTime("--to", f.to); err != nil {
		return in, nil, err
	}
	in.Namespaces = slices.Compact(slices.Sorted(slices.Values(f.namespaces)))
	in.AcceptInferred = f.inferred
	in.Told = evidencereport.Told{Policy: f.trust.policy != "", Keys: f.trust.keys, TrustLogKey: f.trust.own, NoDeclaredClock: f.noDeclared, AuditLog: len(f.audit.files) > 0}
	if f.maxClockError != defaultClockError {
		in.Told.MaxClockError = f.maxClockError.String()
	}
	return in, trust, nil
}

// write makes all of the report before any of it is written.
func (f *evidenceReportFlags) write(stdout io.Writer, in evidencereport.Input) error {
	var b bytes.Buffer
	switch f.output {
	case "csv":
		files, err := evidencereport.CSV(in)
		if err != nil {
			return err
		}
		if f.out != "" && !strings.HasSuffix(f.out, ".zip") {
			return writeFiles(f.out, files)
		}
		if err := evidencereport.Zip(&b, files); err != nil {
			return err
		}
	case "oscal":
		if err := evidencereport.OSCAL(&b, in); err != nil {
			return err
		}
	default:
		if err := evidencereport.HTML(&b, in, f.lang); err != nil {
			return err
		}
	}
	if f.out != "" {
		return writeReport(f.out, b.Bytes())
	}
	if _, err := stdout.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

func writeFiles(dir string, files []evidencereport.File) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	for _, file := range files {
		if err := writeReport(filepath.Join(dir, file.Name), file.Data); err != nil {
			return err
		}
	}
	return nil
}

// writeReport keeps from others what is on people, if by pseudonyms.
func writeReport(path string, text []byte) error {
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	return nil
}
