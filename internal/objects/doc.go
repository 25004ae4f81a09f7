// Package objects decodes the Kubernetes and Istio objects that policies read,
// for every reader alike: the webhook, the caches and `meshvakt check`.
//
// +kubebuilder:object:generate=true
package objects
