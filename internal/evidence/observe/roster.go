package observe

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// leasePrefix is before the name of the pod, in the Lease that has the ID of its start.
const leasePrefix = "meshvakt-evidence-"

// rosterPatience is how long the API server may take to say who is ready.
const rosterPatience = 3 * time.Second

// roster is who is behind the Service, as was known last. A replica that is left out here might have seen what the
// others have not.
type roster struct {
	ready  []record.Replica
	readyN uint64
}

// refresh renews the Lease of this replica and reads those of the others. What cannot be read stays as it was.
func (r *roster) refresh(ctx context.Context, o *Observer) {
	ctx, cancel := context.WithTimeout(ctx, rosterPatience)
	defer cancel()
	if err := o.renewLease(ctx); err != nil {
		o.config.Logger.WarnContext(ctx, "evidence: other replicas cannot learn the ID of this start", "error", err)
	}
	ready, err := o.replicas(ctx)
	if err != nil {
		o.config.Logger.WarnContext(ctx, "evidence: it is not known which replicas are ready; the last ones stay", "error", err)
		return
	}
	r.ready, r.readyN = ready[:min(len(ready), maxReady)], uint64(len(ready))
}

// renewLease says to the other replicas which start of this pod is running.
func (o *Observer) renewLease(ctx context.Context) error {
	c := &o.config
	key := client.ObjectKey{Namespace: c.Namespace, Name: leasePrefix + c.Pod}
	now, seconds := metav1.NewMicroTime(c.Now()), int32(c.Beat/time.Second)
	spec := coordinationv1.LeaseSpec{HolderIdentity: &c.Boot, RenewTime: &now, LeaseDurationSeconds: &seconds}
	var lease coordinationv1.Lease
	err := c.Client.Get(ctx, key, &lease)
	switch {
	case apierrors.IsNotFound(err):
		lease = coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{"app.kubernetes.io/managed-by": "meshvakt"}}, Spec: spec}
		if c.PodUID != "" {
			lease.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: c.Pod, UID: types.UID(c.PodUID)}}
		}
		err = c.Client.Create(ctx, &lease)
	case err == nil:
		lease.Spec = spec
		err = c.Client.Update(ctx, &lease)
	}
	if err != nil {
		return fmt.Errorf("renew Lease %s: %w", key, err)
	}
	return nil
}

// replicas are the pods that the Service leads to, sorted, with the IDs of their starts where those are known.
func (o *Observer) replicas(ctx context.Context) ([]record.Replica, error) {
	c := &o.config
	var slicesOf discoveryv1.EndpointSliceList
	if err := c.Client.List(ctx, &slicesOf, client.InNamespace(c.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: c.Service}); err != nil {
		return nil, fmt.Errorf("list EndpointSlices of Service %s/%s: %w", c.Namespace, c.Service, err)
	}
	pods := map[string]string{}
	for i := range slicesOf.Items {
		for _, e := range slicesOf.Items[i].Endpoints {
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready
			if ready && e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
				pods[e.TargetRef.Name] = ""
			}
		}
	}
	for pod := range pods {
		boot, err := o.bootOf(ctx, pod)
		if err != nil {
			return nil, err
		}
		pods[pod] = boot
	}
	list := make([]record.Replica, 0, len(pods))
	for pod, boot := range pods {
		list = append(list, record.Replica{Pod: pod, Boot: boot})
	}
	slices.SortFunc(list, func(a, b record.Replica) int { return cmp.Compare(a.Pod, b.Pod) })
	return list, nil
}

// bootOf is the ID of the start of a pod, empty where there is none, or none that is renewed: the pod may have started
// again since.
func (o *Observer) bootOf(ctx context.Context, pod string) (string, error) {
	c := &o.config
	if pod == c.Pod {
		return c.Boot, nil
	}
	var lease coordinationv1.Lease
	key := client.ObjectKey{Namespace: c.Namespace, Name: leasePrefix + pod}
	if err := c.Client.Get(ctx, key, &lease); err != nil {
		return "", client.IgnoreNotFound(err)
	}
	s := &lease.Spec
	if s.HolderIdentity == nil || s.RenewTime == nil || c.Now().Sub(s.RenewTime.Time) > c.Beat*5/2 || !isBoot(*s.HolderIdentity) {
		return "", nil
	}
	return *s.HolderIdentity, nil
}

// isBoot keeps what somebody else has written to a Lease out of records that could not be stored with it.
func isBoot(s string) bool {
	if len(s) != 32 {
		return false
	}
	for i := range len(s) {
		if (s[i] < '0' || s[i] > '9') && (s[i] < 'a' || s[i] > 'f') {
			return false
		}
	}
	return true
}
