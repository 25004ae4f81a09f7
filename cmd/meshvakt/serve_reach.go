package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"github.com/meshvakt/meshvakt/webhook/server"
)

const (
	// askAgain is how long a wait for the API server rests before it asks again, and askFor how long an answer may take.
	askAgain = time.Second
	askFor   = 5 * time.Second
	// readyFor is how long one that answers may take to be ready: at its start it knows neither whom it may answer nor all
	// kinds. One that stays that way, or does not say, will do if it tells what it serves.
	readyFor = time.Minute
	// saysAgain is how often the wait is logged.
	saysAgain = time.Minute
)

// apiServer is asked whether it can be worked with.
type apiServer struct {
	host    string
	client  discovery.DiscoveryInterface
	answers time.Time // since when it does, of late
}

func newAPIServer(config *rest.Config) (*apiServer, error) {
	config = rest.CopyConfig(config)
	config.Timeout = askFor
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create the client of the API server: %w", err)
	}
	return &apiServer{host: config.Host, client: client}, nil
}

// ready returns why it cannot be worked with yet.
func (a *apiServer) ready(ctx context.Context) error {
	_, err := a.client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &status):
		a.answers = time.Time{}
		return fmt.Errorf("the API server at %s does not answer: %w", a.host, err)
	case a.answers.IsZero():
		a.answers = time.Now()
	case time.Since(a.answers) > readyFor:
		if _, err = a.client.ServerGroups(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("the API server at %s is not ready: %w", a.host, err)
}

// reach waits for an API server that answers, and has what it serves together. A process that ended instead would be
// restarted ever more seldom, and not answer reviews for minutes after the API server is back. Meanwhile the operations
// listener says what is waited for.
func (p *process) reach(ctx context.Context) error {
	a, err := newAPIServer(p.config)
	if err != nil {
		return err
	}
	missing := a.ready(ctx)
	if missing == nil {
		return nil
	}
	return p.await(ctx, missing, a.ready)
}

// await asks until nothing is missing or ctx ends.
func (p *process) await(ctx context.Context, missing error, ask func(context.Context) error) error {
	var last atomic.Pointer[error]
	last.Store(&missing)
	serving, stop := context.WithCancel(ctx)
	group, groupCtx := errgroup.WithContext(serving)
	group.Go(func() error {
		return server.Wait(groupCtx, p.options.operations, p.log, server.Check{Name: "api-server", Ready: func() error { return *last.Load() }})
	})
	group.Go(func() error {
		defer stop()
		said := time.Time{}
		for err := missing; err != nil; err = ask(groupCtx) {
			last.Store(&err)
			if time.Since(said) >= saysAgain {
				said = time.Now()
				p.log.WarnContext(ctx, "waiting for the API server", "err", err.Error())
			}
			select {
			case <-groupCtx.Done():
				return nil
			case <-time.After(askAgain):
			}
		}
		p.log.InfoContext(ctx, "the API server answers")
		return nil
	})
	return group.Wait()
}
