package main

import (
	"context"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/controller"
	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/policies"
)

// addScan adds what the leader does about what is there already.
func (p *process) addScan(context.Context) error {
	m := p.manager
	watching, err := client.NewWithWatch(p.config, client.Options{Scheme: m.GetScheme(), Mapper: m.GetRESTMapper()})
	if err != nil {
		return fmt.Errorf("create the client of the scan: %w", err)
	}
	reporter := &controller.Reporter{Client: m.GetClient(), Live: m.GetAPIReader(), Format: controller.ReportFormat(p.options.reports), Log: p.log, Now: time.Now}
	announcer := controller.NewAnnouncer(m.GetEventRecorder("meshvakt"), p.scans)
	if err := controller.AddRestorer(m, p.source, p.restorer); err != nil {
		return err
	}
	if err := controller.AddExceptions(m, p.source, &controller.Exceptions{Client: m.GetClient(), Source: p.source, Events: m.GetEventRecorder("meshvakt"), Now: p.clock.now}); err != nil {
		return err
	}
	return controller.AddScan(m, p.source, &controller.Scanner{
		Source:   p.source,
		Touched:  cluster.NewTouched(watching, p.log),
		Ledger:   p.ledger,
		Policies: policies.All(),
		Interval: p.options.scanInterval,
		Recorder: p.scans,
		Log:      p.log,
		Now:      p.clock.now,
		Tell: func(ctx context.Context, namespace string, now *scan.Standing) {
			announcer.Tell(namespace, now)
			reporter.Tell(ctx, namespace, now)
			p.relied(namespace, now)
		},
		Passed: reporter.Sweep,
	})
}

// newRestorer makes what the status of the guards asks about too.
func (p *process) newRestorer(context.Context) error {
	m := p.manager
	p.restorer = &controller.Restorer{
		Client: m.GetClient(),
		Source: p.source,
		Memory: &controller.Memory{
			Client: m.GetClient(), Live: m.GetAPIReader(), Namespace: p.options.namespace, Log: p.log, Now: p.clock.now,
			Healthy: p.watchesWork,
		},
		Events:   m.GetEventRecorder("meshvakt"),
		Recorder: p.scans,
		Remedies: p.remedies(),
		Log:      p.log,
		Now:      p.clock.now,
	}
	return nil
}

func (p *process) watchesWork() error {
	for kind, age := range p.source.Ages(time.Now()) {
		if age > 0 {
			return fmt.Errorf("watch of %s is broken", kind)
		}
	}
	return p.factsReady()
}
