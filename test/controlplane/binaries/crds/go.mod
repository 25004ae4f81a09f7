// This module pins the Istio and cert-manager releases whose CRDs are installed.
// It has no code: only YAML files are read from the two modules, so "go mod tidy"
// would empty it. Change a version with "go mod edit -require" and "go mod download".
module github.com/meshvakt/meshvakt/test/controlplane/binaries/crds

go 1.26.0

require (
	github.com/cert-manager/cert-manager v1.21.2
	istio.io/api v1.31.1
)
