package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"runtime/debug"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/controller"
	"github.com/meshvakt/meshvakt/internal/evidence/journal"
	"github.com/meshvakt/meshvakt/internal/evidence/keyring"
	"github.com/meshvakt/meshvakt/internal/evidence/observe"
	"github.com/meshvakt/meshvakt/internal/keeper"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/internal/telemetry"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/webhook"
	"github.com/meshvakt/meshvakt/webhook/server"
	"github.com/meshvakt/meshvakt/webhook/servingcert"
)

// process is what `meshvakt serve` is made of.
type process struct {
	options serveOptions
	log     *slog.Logger
	config  *rest.Config
	manager manager.Manager
	source  *cluster.Source
	trust   *servingcert.Bundle
	certs   servingcert.Source
	server  *server.Server
	ledger  *scan.Ledger
	scans   *telemetry.Scan
	// restorer is made before the controllers, which ask it too.
	restorer *controller.Restorer
	repairs  *keeper.Ledger
	canary   *controller.Canary
	// journal, keys and observer are nil where no evidence is kept.
	journal  *journal.Journal
	keys     *keyring.Keyring
	observer *observe.Observer
	clock    clock
}

// gcPercent lets the heap grow by half between collections instead of doubling: a
// replica holds tens of megabytes of facts that never become garbage, and reviews
// make little of it.
const gcPercent = 50

// serve wires everything together and runs until ctx ends.
func serve(ctx context.Context, o serveOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	log, err := newLogger(o.logLevel, o.logFormat)
	if err != nil {
		return err
	}
	config, err := o.restConfig()
	if err != nil {
		return err
	}
	clock, err := newClock()
	if err != nil {
		return err
	}
	p := &process{options: o, clock: clock, log: log, config: config, trust: servingcert.NewBundle(0), ledger: scan.NewLedger()}
	for _, step := range []func(context.Context) error{p.reach, p.newManager, p.newCertificates, p.newEvidence, p.newServer, p.newObserver, p.newRestorer, p.addControllers, p.addScan} {
		err := step(ctx)
		if err == nil && ctx.Err() == nil {
			continue
		}
		return err // none, if it was told to end before there was anything to serve
	}
	return p.run(ctx)
}

// run serves until ctx ends. Caches and certificates outlive the server: reviews
// are answered, and need both, until it has drained. Evidence of the answers outlives
// even a manager that ends early, as it does when it loses the lead.
func (p *process) run(ctx context.Context) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, groupCtx := errgroup.WithContext(background)
	group.Go(func() error { return p.manager.Start(groupCtx) })
	group.Go(func() error { return p.certs.Start(groupCtx) })
	if p.journal != nil {
		group.Go(func() error { return p.journal.Start(background) })
	}

	// Either of the two ending early ends the server as well.
	serverCtx, stopServer := context.WithCancel(ctx)
	defer stopServer()
	context.AfterFunc(groupCtx, stopServer)
	err := p.server.Run(serverCtx)
	stop()
	return errors.Join(err, group.Wait())
}

func (p *process) newManager(context.Context) error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, cluster.AddToScheme} {
		if err := add(scheme); err != nil {
			return fmt.Errorf("register kinds: %w", err)
		}
	}
	o := &p.options
	cached := cluster.CacheOptions(o.istioNamespace)
	cached[&admissionregistrationv1.ValidatingWebhookConfiguration{}] = cache.ByObject{
		Field: fields.OneTermEqualSelector("metadata.name", controller.WebhookName),
	}
	cached[&corev1.Secret{}] = cache.ByObject{Field: fields.AndSelectors(
		fields.OneTermEqualSelector("metadata.namespace", o.namespace),
		fields.OneTermEqualSelector("metadata.name", o.caSecret),
	)}
	lease, err := controller.NewLease(p.config, o.namespace, "meshvakt-leader", p.log)
	if err != nil {
		return err
	}
	m, err := ctrl.NewManager(p.config, ctrl.Options{
		Scheme:                              scheme,
		Logger:                              logr.FromSlogHandler(p.log.Handler()),
		Metrics:                             metricsserver.Options{BindAddress: "0"}, // served by our own operations listener
		LeaderElection:                      o.leaderElect,
		LeaderElectionResourceLockInterface: lease,
		LeaderElectionReleaseOnCancel:       true,
		Cache: cache.Options{
			ByObject: cached,
			NewInformer: func(lw toolscache.ListerWatcher, example runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
				return p.source.NewInformer(lw, example, resync, indexers)
			},
			DefaultWatchErrorHandler: func(ctx context.Context, r *toolscache.Reflector, err error) {
				p.source.WatchErrorHandler(ctx, r, err)
			},
		},
	})
	if err != nil {
		return fmt.Errorf("create the manager: %w", err)
	}
	p.manager = m
	catalogue, err := nodes.NewCatalogue()
	if err != nil {
		return err
	}
	p.source = cluster.New(cluster.Config{
		Catalogue:      catalogue,
		Cache:          m.GetCache(),
		Live:           m.GetAPIReader(),
		IstioNamespace: o.istioNamespace,
		OwnNamespace:   o.namespace,
		Log:            p.log,
		Now:            p.clock.now,
		ShortWatches:   o.evidence.dir != "",
	})
	return m.Add(p.source)
}

func (p *process) newCertificates(context.Context) error {
	o := &p.options
	if o.certificates == "files" {
		files, err := servingcert.NewFiles(servingcert.FilesConfig{CertFile: o.certFile, KeyFile: o.keyFile, Log: p.log})
		p.certs = files
		return err
	}
	authority, err := servingcert.NewAuthority(servingcert.AuthorityConfig{
		RESTConfig:   p.config,
		Namespace:    o.namespace,
		Secret:       o.caSecret,
		Labels:       map[string]string{"app.kubernetes.io/managed-by": "meshvakt"},
		CADuration:   o.caDuration,
		LeafDuration: o.leafDuration,
	})
	if err != nil {
		return err
	}
	names, ips, err := o.servingNames()
	if err != nil {
		return err
	}
	p.certs, err = servingcert.NewSelfManaged(servingcert.SelfManagedConfig{
		Authority: authority, DNSNames: names, IPAddresses: ips, Trust: p.trust, Log: p.log,
	})
	return err
}

// servingNames returns what the API server will verify the certificate against.
func (o *serveOptions) servingNames() ([]string, []net.IP, error) {
	if o.webhookURL == "" {
		host := o.service + "." + o.namespace + ".svc"
		return []string{host, host + ".cluster.local"}, nil, nil
	}
	u, err := url.Parse(o.webhookURL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil, nil, fmt.Errorf("--webhook-url: %q; must be https://host[:port]", o.webhookURL)
	}
	if ip := net.ParseIP(u.Hostname()); ip != nil {
		return nil, []net.IP{ip}, nil
	}
	return []string{u.Hostname()}, nil, nil
}

func (p *process) newServer(ctx context.Context) error {
	// Beside controller-runtime's own, which has the collectors of Go and process.
	registry := prometheus.NewRegistry()
	metrics, err := telemetry.New(registry, telemetry.Known{Policies: policies.All(), Paths: webhook.Paths(), Stages: webhook.Stages()})
	if err != nil {
		return err
	}
	if err := metrics.ServingCertificate(registry, func() time.Time { return servingcert.NotAfter(p.certs) }); err != nil {
		return err
	}
	if err := metrics.FactsAge(registry, func() map[string]time.Duration { return p.source.Ages(time.Now()) }); err != nil {
		return err
	}
	if p.scans, err = telemetry.NewScan(registry, policies.All(), p.ledger, p.source.GuardNames, time.Now); err != nil {
		return err
	}
	if err := p.newWatchers(registry); err != nil {
		return err
	}
	if err := p.evidenceMetrics(registry); err != nil {
		return err
	}
	handler, err := webhook.New(webhook.Config{
		Policies:    policies.All(),
		Facts:       p.source,
		Authorizer:  cluster.Authorizer{Client: p.manager.GetClient()},
		Recorder:    metrics,
		Log:         p.log,
		MaxInFlight: p.options.maxInFlight,
		Canary:      func(r *facts.Review) bool { return controller.IsCanary(r, p.options.namespace) },
		Evidence:    p.evidence(),
		Now:         p.clock.now,
	})
	if err != nil {
		return err
	}
	minVersion := uint16(tls.VersionTLS13)
	if p.options.tlsMinVersion == "1.2" {
		minVersion = tls.VersionTLS12
	}
	clientCAs, err := p.options.clientCAs()
	if err != nil {
		return err
	}
	p.server, err = server.New(ctx, server.Config{
		AdmissionAddress:  p.options.listen,
		OperationsAddress: p.options.operations,
		Admission:         webhook.Routes(handler),
		GetCertificate:    p.certs.GetCertificate,
		MinTLSVersion:     minVersion,
		ClientCAs:         clientCAs,
		ClientNames:       p.options.clientNames,
		Metrics:           promhttp.HandlerFor(prometheus.Gatherers{registry, ctrlmetrics.Registry}, promhttp.HandlerOpts{}),
		Checks:            p.checks(),
		DrainDelay:        p.options.drainDelay,
		ShutdownTimeout:   p.options.shutdownTimeout,
		Log:               p.log,
	})
	return err
}

// newWatchers makes what watches over Meshvakt itself, and its metrics.
func (p *process) newWatchers(registry *prometheus.Registry) error {
	known := telemetry.OwnKnown{Kinds: keeper.Kinds(), Actions: keeper.Actions(), Outcomes: controller.CanaryOutcomes()}
	// Both are there before anybody reads metrics.
	own, err := telemetry.NewOwn(registry, known,
		func() map[string]int { return p.repairs.Wrong() },
		func() (time.Duration, bool) { return p.canary.Age() })
	if err != nil {
		return err
	}
	p.repairs = keeper.NewLedger(p.manager.GetEventRecorder("meshvakt"), own, p.log, p.clock.now)
	p.canary = &controller.Canary{
		Client: p.manager.GetClient(), Namespace: p.options.namespace, Count: own, Log: p.log, Now: time.Now,
	}
	return p.manager.Add(p.canary)
}

// addKeeper lets the leader keep Meshvakt's own objects, where it is told what they are.
func (p *process) addKeeper() error {
	o, m := &p.options, p.manager
	if o.ownObjects == "" {
		return nil
	}
	return keeper.Add(m,
		&keeper.Keeper{
			Client:    m.GetClient(),
			Live:      m.GetAPIReader(),
			ConfigMap: client.ObjectKey{Namespace: o.namespace, Name: o.ownObjects},
			Digest:    o.ownDigest,
			Manager:   o.ownManager,
			Ledger:    p.repairs,
			Log:       p.log,
			Now:       time.Now,
		},
		&keeper.Guards{Cache: m.GetCache(), Live: m.GetAPIReader(), Client: m.GetClient(), Elected: m.Elected(), Ledger: p.repairs, Log: p.log},
	)
}

func (p *process) certificateReady() error {
	if !p.certs.Healthy() {
		return errors.New("no serving certificate that the API server can accept yet")
	}
	return nil
}

func (p *process) factsReady() error { return p.source.Ready(time.Now()) }

func (o *serveOptions) clientCAs() (*x509.CertPool, error) {
	if o.clientCAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(o.clientCAFile)
	if err != nil {
		return nil, fmt.Errorf("--client-ca-file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--client-ca-file: no certificate in %s", o.clientCAFile)
	}
	return pool, nil
}

func (p *process) addControllers(context.Context) error {
	o, m := &p.options, p.manager
	if err := m.Add(&controller.TrustObserver{Cache: m.GetCache(), Bundle: p.trust}); err != nil {
		return err
	}
	if err := p.addKeeper(); err != nil {
		return err
	}
	return controller.Add(m, p.source,
		&controller.Registrar{
			Client: m.GetClient(),
			Live:   m.GetAPIReader(),
			Source: p.source,
			CA:     p.ca,
			Ready:  func() error { return errors.Join(p.certificateReady(), p.factsReady()) },
			Endpoint: controller.Endpoint{
				URL: o.webhookURL, ServiceNamespace: o.namespace, ServiceName: o.service, ServicePort: o.servicePort,
			},
			Policies: policies.All(),
			Timeout:  o.webhookTimeout,
			Mutation: o.mutation,
			Repairs:  p.repairs,
			Log:      p.log,
			Now:      time.Now,
		},
		&controller.Binder{Client: m.GetClient(), Live: m.GetAPIReader(), Source: p.source, Repairs: p.repairs, Log: p.log, Now: time.Now},
		&controller.Provisioner{Client: m.GetClient(), Source: p.source, Events: m.GetEventRecorder("meshvakt"), Remedies: p.remedies(), Log: p.log, Now: time.Now},
		&controller.Standing{Client: m.GetClient(), Source: p.source, Events: m.GetEventRecorder("meshvakt"), Ledger: p.ledger, Undone: p.restorer.Undone, Canary: p.canary, Own: p.repairs, Now: time.Now},
		&controller.NodeClasses{Client: m.GetClient(), Source: p.source, Log: p.log, Now: time.Now},
		&controller.Placement{Client: m.GetClient(), Source: p.source, Events: m.GetEventRecorder("meshvakt"), Now: time.Now},
	)
}

// ca returns the CA that the API server is to trust.
func (p *process) ca(ctx context.Context) ([]byte, error) {
	if p.options.certificates == "files" {
		pem, err := os.ReadFile(p.options.caFile)
		if err != nil {
			return nil, fmt.Errorf("read the CA: %w", err)
		}
		return pem, nil
	}
	var secret corev1.Secret
	key := client.ObjectKey{Namespace: p.options.namespace, Name: p.options.caSecret}
	if err := p.manager.GetClient().Get(ctx, key, &secret); err != nil {
		return nil, fmt.Errorf("get Secret %s: %w", key, err)
	}
	if len(secret.Data["ca.crt"]) == 0 {
		return nil, fmt.Errorf("no ca.crt in Secret %s yet", key)
	}
	return secret.Data["ca.crt"], nil
}
