package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group and Version of every kind in this package.
const (
	Group   = "meshvakt.io"
	Version = "v1alpha1"
)

// GroupVersion returns meshvakt.io/v1alpha1.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: Group, Version: Version}
}

// AddToScheme registers the kinds of this package with a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &MeshGuard{}, &MeshGuardList{}, &GuardException{}, &GuardExceptionList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}
