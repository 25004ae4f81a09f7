package e2e

import (
	"bytes"
	"testing"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

// warned returns a client that writes the warnings it gets.
func warned(t testing.TB, user controlplane.User, to *bytes.Buffer) client.Client {
	t.Helper()
	config := plane.RestConfig(user)
	config.WarningHandler = rest.NewWarningWriter(to, rest.WarningWriterOptions{})
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
