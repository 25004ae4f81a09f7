package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newEvidence() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "evidence",
		Short: "Keep, seal and verify the evidence of what was decided",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			// Help with status 0 would be taken for an answer.
			return usage(cmd, fmt.Errorf("unknown command %q for %q; see %s --help", args[0], cmd.CommandPath(), cmd.CommandPath()))
		},
	}
	// What reads logs has a status that says that nothing was read, also where it is a flag that is wrong.
	cmd.SetFlagErrorFunc(usage)
	cmd.AddCommand(newEvidenceInspect(), newEvidenceProve(), newEvidenceReport(), newEvidenceSubject(), newEvidenceVerify())
	for _, c := range []*cobra.Command{newEvidenceBundle(), newEvidenceSeal(), newEvidenceSupervise()} {
		c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return err })
		cmd.AddCommand(c)
	}
	return cmd
}
