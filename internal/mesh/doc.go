// Package mesh is Istio's effective mutual TLS mode as pure functions: given the PeerAuthentications of a
// cluster and the settings of one control plane, which mode does Istio really apply to each port of a workload,
// and which policy decided it. It reads no cluster, keeps no state and looks at no clock.
//
// The rules follow istio/istio at commit eed52ebb66ad (pilot/pkg/model/authentication.go,
// pilot/pkg/security/authn/policy_applier.go for sidecars; pilot/pkg/serviceregistry/ambient for ztunnel).
// They are stated above the function that carries each of them. Package test/conformance compares every
// answer with Istio's own resolver on random inputs; where the two differ, Istio is right and this package wrong.
//
// The mode is the server's side: what an inbound listener accepts. What a client sends is another computation
// in Istio (namespace and mesh scope, DestinationRules, endpoint labels) and is not modelled here. Neither are
// the ports that interception never covers (15008, 15020, 15021, 15090, all UDP): their traffic does not meet
// the mode at all.
//
// All inputs are read, never written, and may be shared between goroutines. A *PeerAuthentication in a result
// is one of the pointers that were passed in.
package mesh
