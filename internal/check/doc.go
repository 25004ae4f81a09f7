// Package check judges manifests offline, by the same policies as the webhook:
// it reads YAML and JSON files, takes them for the state of a cluster and for
// requests that meet it, and tells what would be decided.
//
// It is the engine of `meshvakt check`, and the loader of the policies' test
// cases. It opens the files it is told to read and nothing else.
//
// What a file leaves open is settled as an API server would, and always the
// same way:
//   - A namespaced object without metadata.namespace is in "default".
//   - A namespace carries the label kubernetes.io/metadata.name.
//   - A PeerAuthentication keeps the creationTimestamp of its file. Those without
//     one are younger than all that have one, in the order of the files. On
//     CREATE the object under review is the youngest, whatever its file says; on
//     UPDATE it is as old as the object it replaces.
//   - Kubernetes' own namespaces and the mesh root namespaces exist also when no
//     manifest says so, with their name as the only label.
//   - Without an Istio ConfigMap, Istio runs with its defaults; without a
//     MeshGuard, v1alpha1.DefaultGuard applies.
package check
