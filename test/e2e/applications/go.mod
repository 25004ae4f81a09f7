// This module pins a public application of several services whose manifests the
// tests deploy; only YAML files are read from it, so "go mod tidy" would empty it.
module github.com/meshvakt/meshvakt/test/e2e/applications

go 1.26.0
