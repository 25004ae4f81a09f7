package main

import "github.com/spf13/cobra"

func newEvidence() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "evidence",
		Short: "Seal, verify and read the evidence logs",
	}
	cmd.AddCommand(
		newEvidenceSupervise(),
	)
	return cmd
}
