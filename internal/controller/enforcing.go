package controller

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// enforcing sets the condition Enforcing: the configuration has an entry for the guard, and
// the canary says that the API server acts on it.
func enforcing(guard *v1alpha1.MeshGuard, config *admissionregistrationv1.ValidatingWebhookConfiguration, canary CanaryVerdict) {
	c := metav1.Condition{
		Type: v1alpha1.ConditionEnforcing, Status: metav1.ConditionFalse, ObservedGeneration: guard.Generation,
	}
	before := meta.FindStatusCondition(guard.Status.Conditions, v1alpha1.ConditionEnforcing)
	switch {
	case !registers(config, guard):
		c.Reason, c.Message = "NotRegistered", "the webhook configuration has no entry for this guard yet"
	case canary.Answered:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, "Registered", "the API server asks Meshvakt about the namespaces of this guard, and gets its answers"
	case canary.Known:
		c.Reason, c.Message = canary.Reason, canary.Message
	case before != nil:
		// A replica that has just begun to lead knows nothing yet. It will in a moment,
		// and until then what the one before it has found stands.
		return
	default:
		c.Reason, c.Message = "NotAskedYet", "no canary has been sent to the API server yet"
	}
	meta.SetStatusCondition(&guard.Status.Conditions, c)
}
