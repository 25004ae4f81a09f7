// Command meshvakt keeps production namespaces in the Istio mesh. Its
// subcommands are one file each.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func main() {
	root := newRoot()
	if err := root.Execute(); err != nil {
		os.Exit(report(root, err))
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "meshvakt",
		Short:         "Keep production namespaces in the Istio mesh",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(
		newCheck(),
		newEvidence(),
		newPreflight(),
		newProbe(),
		newServe(),
		newStaticPolicy(),
		newUninstall(),
		newVersion(),
	)
	return root
}

// exitCode is an error that has been reported already, by its number alone.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// report prints the error, unless it has been, and returns the exit status.
func report(root *cobra.Command, err error) int {
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	fmt.Fprintf(root.ErrOrStderr(), "meshvakt: %v\n", err)
	return 2
}
