package main

import "github.com/spf13/cobra"

func newEvidence() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "evidence",
		Short: "Keep, seal and verify the evidence of what was decided",
	}
	cmd.AddCommand(
		newEvidenceBundle(),
		newEvidenceInspect(),
		newEvidenceProve(),
		newEvidenceReport(),
		newEvidenceSeal(),
		newEvidenceSupervise(),
		newEvidenceSubject(),
		newEvidenceVerify(),
	)
	return cmd
}
