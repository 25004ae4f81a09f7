// This module pins a public application of several services whose manifests the
// tests deploy; only YAML files are read from it, so "go mod tidy" would empty it.
module github.com/meshvakt/meshvakt/test/e2e/applications

go 1.26.0

require github.com/stefanprodan/podinfo v1.8.1-0.20250910200901-e86405a8674e
