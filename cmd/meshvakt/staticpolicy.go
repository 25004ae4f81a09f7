package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/meshvakt/meshvakt/policies/static"
)

func newStaticPolicy() *cobra.Command {
	var n static.Names
	cmd := &cobra.Command{
		Use:   "static-policy",
		Short: "Print admission policies for the API server to load from a file",
		Long: `Print ValidatingAdmissionPolicies that protect Meshvakt's own objects, for API servers
that load them from a directory: Kubernetes 1.37, or 1.36 with the feature gate
ManifestBasedAdmissionControlConfig. No request can change or delete them.

They go into a file in the directory that the configuration of the API server names:

  apiVersion: apiserver.config.k8s.io/v1
  kind: AdmissionConfiguration
  plugins:
    - name: ValidatingAdmissionPolicy
      configuration:
        apiVersion: apiserver.config.k8s.io/v1
        kind: ValidatingAdmissionPolicyConfiguration
        staticManifestsDir: /etc/kubernetes/admission

and that configuration is given by --admission-control-config-file.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			manifest, err := static.Manifest(n)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprint(cmd.OutOrStdout(), manifest); err != nil {
				return fmt.Errorf("print the policies: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&n.Namespace, "namespace", "meshvakt-system", "namespace Meshvakt runs in")
	f.StringVar(&n.ServiceAccount, "service-account", "meshvakt", "its ServiceAccount")
	f.StringVar(&n.BreakGlass, "break-glass-group", static.BreakGlass, "group in whose name everything may be done all the same")
	return cmd
}
