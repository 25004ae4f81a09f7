// Package conformance proves internal/mesh against Istio's own code: the same random PeerAuthentications,
// namespaces, revisions and workloads go through istiod's functions and through ours, and every port of every
// workload must come out with the same mode; random pods are created where random injectors are, and get a sidecar
// by both or by neither. It holds tests only.
//
// What is Istio's own here, and called, not imitated:
//
//   - sidecar resolution: model.PushContext (initAuthnPolicies), authn.NewMtlsPolicy and authn.NewPolicyApplier;
//   - revisions: config.LabelsInRevision; discovery: namespace.NewDiscoveryNamespacesFilter over a fake API
//     server; both again, together with reading objects, in crdclient.Client (TestReadsAgainstCRDClient);
//   - MeshConfig: mesh.ApplyMeshConfigDefaults;
//   - ambient: ambient.PolicyCollections and ambient.Builder.WorkloadsCollection;
//   - injection: inject.NewWebhook, asked over its HTTP handler with a template of one annotation, by configurations
//     that inject.UnmarshalConfig reads. Which webhook the API server asks is decided by its label selectors; the
//     configurations have the entries of Istio's chart, restated in injection_test.go.
//
// What is not: ztunnel, which evaluates the policies that the last two produce, is written in Rust. Its rule
// (refuse when every rule of some group of a referenced policy matches) is restated in istio_ambient_test.go.
// No packet is sent.
//
// Each random test prints its seed. Replay with -seed; -cases sets the number.
//
//	go test . -run TestSidecarDifferential -v -seed 12345
//
// The module is apart from the root one, so that Istio's requirements stay out of it. Its go.mod pins what Istio
// pins; run `go mod tidy` here after the root go.mod has changed.
package conformance
