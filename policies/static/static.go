// Package static holds the admission policies that an API server loads from files. No
// request can change them, and so they hold where the others could be taken away.
package static

import (
	_ "embed"
	"fmt"
	"regexp"
	"strings"
)

//go:embed policies.yaml
var embeddedPolicies string

// BreakGlass is the group in whose name everything may be done all the same. Nobody is in it;
// whoever may impersonate groups, as cluster administrators may, can act in it, and the
// audit log says so.
const BreakGlass = "meshvakt:break-glass"

// Names are what the policies have to know of an installation.
type Names struct {
	Namespace, ServiceAccount, BreakGlass string
}

// Manifest returns the policies with their bindings.
func Manifest(n Names) (string, error) {
	// What is put between quotes of CEL must not end them.
	plain := regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.:_-]*[A-Za-z0-9])?$`)
	for _, f := range []struct{ name, value string }{{"namespace", n.Namespace}, {"service account", n.ServiceAccount}, {"break-glass group", n.BreakGlass}} {
		if !plain.MatchString(f.value) {
			return "", fmt.Errorf("%s: %q; must be letters, digits, and any of .:_- between them", f.name, f.value)
		}
	}
	account := func(name string) string { return "system:serviceaccount:" + n.Namespace + ":" + name }
	return strings.NewReplacer(
		"@account@", account(n.ServiceAccount),
		"@accountName@", n.ServiceAccount,
		"@uninstaller@", account("meshvakt-uninstall"),
		"@namespace@", n.Namespace,
		"@breakGlass@", n.BreakGlass,
	).Replace(embeddedPolicies), nil
}
