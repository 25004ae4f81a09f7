package preflight

import (
	"fmt"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
)

// Answer is what a cluster says to one question: a value, or why there is none.
type Answer[T any] struct {
	Value T
	Err   error
}

// Facts are what was read of a cluster. Whoever reads them owns their freshness: they
// are not of one moment.
type Facts struct {
	Now time.Time
	// Version is the gitVersion of the API server.
	Version Answer[string]
	// Served are the versions of each resource that the API server serves.
	Served Answer[map[schema.GroupResource][]string]
	// Lacking are the rights that the user lacks.
	Lacking []Right
	// Names are where things are.
	Names Names

	Namespaces    Answer[[]corev1.Namespace]
	ControlPlanes Answer[[]mesh.ControlPlane]
	Injectors     Answer[[]mesh.Injector]
	// Istiods are the Deployments labelled app=istiod.
	Istiods    Answer[[]appsv1.Deployment]
	Policies   Answer[[]*mesh.PeerAuthentication]
	Mutating   Answer[[]admissionregistrationv1.MutatingWebhookConfiguration]
	Validating Answer[[]admissionregistrationv1.ValidatingWebhookConfiguration]
	// Endpoints are how many addresses of a Service are ready, of the Services that
	// webhooks name; none for a Service that is not there.
	Endpoints Answer[map[Service]int]
	Nodes     Answer[[]corev1.Node]
	// Guards are the MeshGuards of the cluster.
	Guards Answer[[]v1alpha1.MeshGuard]
	// Judged are the guards that the forecast is about.
	Judged []v1alpha1.MeshGuard
	// Own, OwnSets and Budgets are Meshvakt's Deployments, StatefulSets and
	// PodDisruptionBudgets. Replicas that keep evidence are of a StatefulSet.
	Own     Answer[[]appsv1.Deployment]
	OwnSets Answer[[]appsv1.StatefulSet]
	Budgets Answer[[]policyv1.PodDisruptionBudget]
}

// Names are where Meshvakt and Istio are, or will be.
type Names struct {
	Namespace      string // of Meshvakt
	IstioNamespace string
	// Validating and Mutating are the names of Meshvakt's webhook configurations.
	Validating, Mutating string
}

// Service names a Service.
type Service struct{ Namespace, Name string }

func (s Service) String() string { return s.Namespace + "/" + s.Name }

// LackingError says that something could not be read for want of a right.
type LackingError struct{ Right Right }

func (e *LackingError) Error() string { return fmt.Sprintf("the user may not %s", e.Right) }
