package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshvakt/meshvakt/internal/evidence/supervise"
)

func newEvidenceSupervise() *cobra.Command {
	return &cobra.Command{
		Use:   "supervise -- ARGS...",
		Short: "Run meshvakt with other arguments, and again when it ends",
		Long: `Run meshvakt with other arguments, and again when it ends.

A pod is ready only while all of its containers run. The sealer may have to end, for
instance when its disk fails; that must not take the webhook in the same pod from the API
server. So the container runs this, which starts the sealer again, after a second at first
and at most a minute when it goes on ending. SIGTERM is passed on, and ends both.`,
		Example: "  meshvakt evidence supervise -- evidence seal --dir=/evidence",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			return supervise.Run(ctx, supervise.Config{
				Path: self, Args: args, Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr(),
				First: time.Second, Most: time.Minute, Steady: 10 * time.Minute,
				Grace: 20 * time.Second,
				Now:   time.Now, After: time.After,
				Log: slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil)),
			})
		},
	}
}
