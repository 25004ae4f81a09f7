// Package v1alpha1 holds the configuration API of Meshvakt: the MeshGuard,
// which says what namespaces are guarded and how strictly.
//
// The CustomResourceDefinition in charts/meshvakt and the deep copies are
// generated from these types (make generate).
//
// +kubebuilder:object:generate=true
// +groupName=meshvakt.io
package v1alpha1
