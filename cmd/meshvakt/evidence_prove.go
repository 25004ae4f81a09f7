package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

func newEvidenceProve() *cobra.Command {
	var trust trustFlags
	var of, recordFile string
	cmd := &cobra.Command{
		Use:   "prove INPUT... --record ORIGIN#SEQ",
		Short: "Prove that one record is in a log, without handing over the others",
		Long: `Prove writes a C2SP tlog-proof of one record to standard output, and with
--record-file the record itself to a file. Both together can be verified with
meshvakt evidence verify --proof --record-file, or with any other program for
this format. They show that the record is in the log and was not changed, and
not that no other record matters.

ORIGIN#SEQ is how other commands name a record, and what audit annotations of
the API server have.

Exit status: 0 the proof was written, 4 it could not be.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return usage(cmd, prove(cmd, args, &trust, of, recordFile))
		},
	}
	trust.add(cmd.Flags())
	cmd.Flags().StringVar(&of, "record", "", "the record, as ORIGIN#SEQ")
	cmd.Flags().StringVar(&recordFile, "record-file", "", "file that the record is written to")
	return cmd
}

func prove(cmd *cobra.Command, inputs []string, flags *trustFlags, of, recordFile string) error {
	at := strings.LastIndexByte(of, '#')
	if at < 0 {
		return fmt.Errorf("--record %q; must be ORIGIN#SEQ", of)
	}
	seq, err := strconv.ParseUint(of[at+1:], 10, 63)
	if err != nil {
		return fmt.Errorf("--record %q; must be ORIGIN#SEQ: %w", of, err)
	}
	trust, err := flags.trust()
	if err != nil {
		return err
	}
	var proof, line []byte
	if err := withEvidence(inputs, func(sources []*verify.Source) error {
		proof, line, err = verify.Prove(cmd.Context(), sources, trust, of[:at], seq)
		return err
	}); err != nil {
		return err
	}
	if recordFile != "" {
		if err := os.WriteFile(recordFile, append(line, '\n'), 0o600); err != nil {
			return err
		}
	}
	_, err = cmd.OutOrStdout().Write(proof)
	return err
}
