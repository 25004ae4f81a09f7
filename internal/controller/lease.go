package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseTimeout is how long a request about the Lease may take: half of the time in which the elector wants it renewed,
// so that one that hangs leaves room for another.
const leaseTimeout = 5 * time.Second

// Lease is the lock by which one replica leads. It goes on being held while the API server does not answer: nobody else
// can be given it in that time, and a leader that gave up would end its process, which answers reviews too, and would
// come back only when the kubelet gets round to it, minutes after the API server. Once that answers, it says who leads:
// if another replica does, this one ends. Until it has noticed there may be two leaders for some seconds, as there may be
// with any Lease; what they write is idempotent, or bound to versions of objects.
type Lease struct {
	resourcelock.Interface
	log *slog.Logger

	// The elector uses a lock from one goroutine.
	held   bool // so the API server has said last
	silent bool // since then it does not answer
}

// NewLease returns the Lease of that name, for a holder nobody else is.
func NewLease(config *rest.Config, namespace, name string, log *slog.Logger) (*Lease, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name the holder of the Lease: %w", err)
	}
	config = rest.AddUserAgent(rest.CopyConfig(config), "leader-election")
	config.Timeout = leaseTimeout
	leases, err := coordinationv1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create the client of the Lease: %w", err)
	}
	return &Lease{log: log, Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name},
		Client:     leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + string(uuid.NewUUID())},
	}}, nil
}

// Get implements resourcelock.Interface.
func (l *Lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err == nil {
		l.answered(ctx, record.HolderIdentity)
	}
	return record, raw, err
}

// Create implements resourcelock.Interface.
func (l *Lease) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Create(ctx, record)
	if err == nil {
		l.answered(ctx, record.HolderIdentity)
	}
	return err
}

// Update implements resourcelock.Interface.
func (l *Lease) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Update(ctx, record)
	switch {
	case err == nil:
		l.answered(ctx, record.HolderIdentity)
	case l.held && unanswered(err):
		if !l.silent {
			l.log.WarnContext(ctx, "the Lease cannot be renewed: the API server does not answer; this replica goes on leading until it does", "lease", l.Describe(), "err", err.Error())
		}
		l.silent = true
		return nil
	}
	return err
}

func (l *Lease) answered(ctx context.Context, holder string) {
	if l.held = holder == l.Identity(); l.silent {
		l.log.InfoContext(ctx, "the API server answers about the Lease again", "lease", l.Describe(), "holder", holder)
	}
	l.silent = false
}

// unanswered reports whether a request has failed because the API server is away, or says that it cannot answer now.
func unanswered(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return err != nil
	}
	code := status.Status().Code
	return code >= http.StatusInternalServerError || code == http.StatusTooManyRequests
}
