package cluster

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// Authorizer asks the API server what users may do.
type Authorizer struct {
	Client client.Client
}

// MayUnguard reports whether the user may take namespaces out of a guard: the
// verb "unguard" on that MeshGuard.
func (a Authorizer) MayUnguard(ctx context.Context, user authenticationv1.UserInfo, guard string) (bool, error) {
	may, err := a.may(ctx, user, authorizationv1.ResourceAttributes{Resource: "meshguards", Name: guard, Verb: "unguard"})
	if err != nil {
		return false, fmt.Errorf("ask whether the user may unguard MeshGuard %q: %w", guard, err)
	}
	return may, nil
}

// MayApprove reports whether the user may approve an exception: the verb "approve" on
// that GuardException.
func (a Authorizer) MayApprove(ctx context.Context, user authenticationv1.UserInfo, namespace, name string) (bool, error) {
	may, err := a.may(ctx, user, authorizationv1.ResourceAttributes{Resource: "guardexceptions", Namespace: namespace, Name: name, Verb: "approve"})
	if err != nil {
		return false, fmt.Errorf("ask whether the user may approve GuardException %s/%s: %w", namespace, name, err)
	}
	return may, nil
}

func (a Authorizer) may(ctx context.Context, user authenticationv1.UserInfo, what authorizationv1.ResourceAttributes) (bool, error) {
	what.Group, what.Version = v1alpha1.Group, v1alpha1.Version
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for k, v := range user.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
		ResourceAttributes: &what,
	}}
	if err := a.Client.Create(ctx, review); err != nil {
		return false, err
	}
	return review.Status.Allowed, nil
}
