module github.com/meshvakt/meshvakt

go 1.26.0

require (
	filippo.io/torchwood v0.9.0 // tiles, entries and checkpoints of evidence logs as C2SP has them
	github.com/cert-manager/cert-manager v1.21.2 // self-managed serving certificates: CA in a Secret, rotation
	github.com/go-chi/chi/v5 v5.5.0 // routes and middleware of the admission listener
	github.com/go-json-experiment/json v1.27.2 // refuses names that stand twice in one JSON object
	github.com/go-logr/logr v1.4.4 // hands our log to libraries that log through logr
	github.com/google/uuid v1.6.0 // identifiers of OSCAL documents, from the roots of the logs
	github.com/minio/minio-go/v7 v7.4.1 // copies of evidence in S3-compatible storage, in the sealer's process alone
	github.com/prometheus/client_golang v1.25.0 // metrics
	github.com/spf13/cobra v1.10.2 // subcommands and flags
	github.com/spf13/pflag v1.0.10 // the flags of a subcommand in groups
	github.com/transparency-dev/tessera v1.0.4 // writes evidence logs, in the sealer's process alone
	go.yaml.in/yaml/v3 v3.0.5 // the lines of fields in manifests
	golang.org/x/mod v0.42.0 // signed notes and tree hashes of the evidence log
	golang.org/x/sync v0.23.0 // groups of goroutines that end together
	golang.org/x/sys v0.50.0 // fdatasync and fadvise for meshvakt probe; flock, openat and fallocate for evidence
	golang.org/x/term v0.47.0 // tells a terminal from a pipe
	google.golang.org/protobuf v1.36.12 // reads Istio's MeshConfig as Istio does
	gopkg.in/evanphx/json-patch.v4 v4.13.0 // in tests: patches as the API server applies them
	istio.io/api v1.31.1 // the types of MeshConfig
	k8s.io/api v0.37.2 // Pod, Namespace, AdmissionReview and the other built-in kinds
	k8s.io/apimachinery v0.37.2 // metadata, label selectors, errors of the API
	k8s.io/client-go v0.37.2 // REST configuration, authorization reviews, events
	k8s.io/component-helpers v0.37.2 // what the containers of a pod request together
	k8s.io/klog/v2 v2.140.0 // sends client-go's log through ours
	k8s.io/kubectl v0.37.2 // in tests: QoS classes as Kubernetes reckons them
	sigs.k8s.io/controller-runtime v0.25.2 // caches, controllers, leader election
	sigs.k8s.io/json v0.0.0-20250730193827-2d320260d730 // strict decoding of MeshGuards in files
	sigs.k8s.io/yaml v1.6.0 // YAML as the API server reads it
)

require (
	github.com/Azure/go-ntlmssp v0.1.1 // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/blang/semver/v4 v4.0.0 // indirect
	github.com/cenkalti/backoff/v5 v5.0.3 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/davecgh/go-spew v1.1.2-0.20180830191138-d8f796af33cc // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/emicklei/go-restful/v3 v3.13.0 // indirect
	github.com/evanphx/json-patch/v5 v5.9.11 // indirect
	github.com/fsnotify/fsnotify v1.9.0 // indirect
	github.com/fxamacker/cbor/v2 v2.9.1 // indirect
	github.com/go-asn1-ber/asn1-ber v1.5.8-0.20250403174932-29230038a667 // indirect
	github.com/go-ldap/ldap/v3 v3.4.13 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/go-logr/zapr v1.3.0 // indirect
	github.com/go-openapi/jsonpointer v1.0.0 // indirect
	github.com/go-openapi/jsonreference v1.0.0 // indirect
	github.com/go-openapi/swag v0.27.1 // indirect
	github.com/go-openapi/swag/cmdutils v0.27.1 // indirect
	github.com/go-openapi/swag/conv v0.27.1 // indirect
	github.com/go-openapi/swag/fileutils v0.27.1 // indirect
	github.com/go-openapi/swag/jsonutils v0.27.1 // indirect
	github.com/go-openapi/swag/loading v0.27.1 // indirect
	github.com/go-openapi/swag/mangling v0.27.1 // indirect
	github.com/go-openapi/swag/netutils v0.27.1 // indirect
	github.com/go-openapi/swag/pools v0.27.1 // indirect
	github.com/go-openapi/swag/stringutils v0.27.1 // indirect
	github.com/go-openapi/swag/typeutils v0.27.1 // indirect
	github.com/go-openapi/swag/yamlutils v0.27.1 // indirect
	github.com/golang/protobuf v1.5.4 // indirect
	github.com/google/gnostic-models v0.7.1 // indirect
	github.com/hashicorp/golang-lru/v2 v2.0.7 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/json-iterator/go v1.1.12 // indirect
	github.com/klauspost/compress v1.20.1 // indirect
	github.com/klauspost/cpuid/v2 v2.4.0 // indirect
	github.com/klauspost/crc32 v1.3.0 // indirect
	github.com/kylelemons/godebug v1.1.0 // indirect
	github.com/minio/crc64nvme v1.1.1 // indirect
	github.com/minio/md5-simd v1.1.2 // indirect
	github.com/modern-go/concurrent v0.0.0-20180306012644-bacd9c7ef1dd // indirect
	github.com/modern-go/reflect2 v1.0.3-0.20250322232337-35a7c28c31ee // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/philhofer/fwd v1.2.0 // indirect
	github.com/pmezard/go-difflib v1.0.1-0.20181226105442-5d4384ee4fb2 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/rs/xid v1.6.0 // indirect
	github.com/tinylib/msgp v1.6.4 // indirect
	github.com/transparency-dev/formats v0.0.0-20251208091212-1378f9e1b1b7 // indirect
	github.com/transparency-dev/merkle v0.0.2 // indirect
	github.com/x448/float16 v0.8.4 // indirect
	github.com/zeebo/xxh3 v1.1.0 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/otel v1.44.0 // indirect
	go.opentelemetry.io/otel/metric v1.44.0 // indirect
	go.opentelemetry.io/otel/trace v1.44.0 // indirect
	go.uber.org/multierr v1.11.0 // indirect
	go.uber.org/zap v1.27.1 // indirect
	go.yaml.in/yaml/v2 v2.4.4 // indirect
	golang.org/x/crypto v0.57.0 // indirect
	golang.org/x/exp v0.0.0-20260410095643-746e56fc9e2f // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/oauth2 v0.37.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	golang.org/x/time v0.15.0 // indirect
	gomodules.xyz/jsonpatch/v2 v2.5.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260526163538-3dc84a4a5aaa // indirect
	gopkg.in/inf.v0 v0.9.1 // indirect
	gopkg.in/ini.v1 v1.67.3 // indirect
	k8s.io/apiextensions-apiserver v0.37.0 // indirect
	k8s.io/component-base v0.37.2 // indirect
	k8s.io/kube-openapi v0.0.0-20260721132016-d427ff9ee9ad // indirect
	k8s.io/utils v0.0.0-20260626114624-be93311217bd // indirect
	sigs.k8s.io/gateway-api v1.6.0 // indirect
	sigs.k8s.io/randfill v1.0.0 // indirect
	sigs.k8s.io/structured-merge-diff/v6 v6.4.2 // indirect
)
