package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/meshvakt/meshvakt/internal/controller"
	"github.com/meshvakt/meshvakt/webhook"
	"github.com/meshvakt/meshvakt/webhook/server"
)

// serveOptions are the flags of `meshvakt serve`.
type serveOptions struct {
	kubeconfig      string
	namespace       string
	istioNamespace  string
	listen          string
	operations      string
	webhookURL      string
	service         string
	servicePort     int32
	certificates    string
	certFile        string
	keyFile         string
	caFile          string
	caSecret        string
	caDuration      time.Duration
	leafDuration    time.Duration
	tlsMinVersion   string
	clientCAFile    string
	clientNames     []string
	drainDelay      time.Duration
	shutdownTimeout time.Duration
	webhookTimeout  time.Duration
	mutation        bool
	maxInFlight     int
	leaderElect     bool
	scanInterval    time.Duration
	reports         string
	ownObjects      string
	ownDigest       string
	ownManager      string
	logLevel        string
	logFormat       string
	evidence        evidenceOptions
}

func newServe() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Answer the API server's admission reviews and keep the webhook registered",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return serve(ctx, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file; empty inside a cluster")
	f.StringVar(&o.namespace, "namespace", cmp.Or(os.Getenv("POD_NAMESPACE"), "meshvakt-system"), "namespace Meshvakt runs in, which is never guarded")
	f.StringVar(&o.istioNamespace, "istio-namespace", "istio-system", "namespace of istiod and its ConfigMaps")
	f.StringVar(&o.listen, "listen", server.DefaultAdmissionAddress, "address of the webhook (HTTPS)")
	f.StringVar(&o.operations, "operations-listen", server.DefaultOperationsAddress, "address of /healthz, /readyz and /metrics (HTTP)")
	f.StringVar(&o.webhookURL, "webhook-url", "", "URL under which the API server reaches the webhook, instead of the Service")
	f.StringVar(&o.service, "service", "meshvakt", "Service under which the API server reaches the webhook")
	f.Int32Var(&o.servicePort, "service-port", 443, "port of the Service")
	f.StringVar(&o.certificates, "certificates", "self-managed", "where the serving certificate comes from: self-managed or files")
	f.StringVar(&o.certFile, "cert-file", "", "certificate, with --certificates files; read again when it changes")
	f.StringVar(&o.keyFile, "key-file", "", "key of the certificate")
	f.StringVar(&o.caFile, "ca-file", "", "CA of the certificate, which the API server is told to trust")
	f.StringVar(&o.caSecret, "ca-secret", "meshvakt-ca", "Secret of the self-managed CA, in the own namespace")
	f.DurationVar(&o.caDuration, "ca-duration", 365*24*time.Hour, "lifetime of the self-managed CA; it is renewed after two thirds")
	f.DurationVar(&o.leafDuration, "leaf-duration", 7*24*time.Hour, "lifetime of self-managed serving certificates; they are renewed after two thirds")
	f.StringVar(&o.tlsMinVersion, "tls-min-version", "1.3", "lowest TLS version: 1.3 or 1.2")
	f.StringVar(&o.clientCAFile, "client-ca-file", "", "require a client certificate from these CAs (PEM) of the API server")
	f.StringArrayVar(&o.clientNames, "client-name", nil, "common name the client certificate must have; may be repeated")
	f.DurationVar(&o.drainDelay, "drain-delay", server.DefaultDrainDelay, "how long to go on serving after SIGTERM while endpoints are updated")
	f.DurationVar(&o.shutdownTimeout, "shutdown-timeout", server.DefaultShutdownTimeout, "how long requests in flight may take after that")
	f.DurationVar(&o.webhookTimeout, "webhook-timeout", 5*time.Second, "how long the API server waits for an answer, 1s to 30s")
	f.BoolVar(&o.mutation, "mutation", true, "fill in the resources of sidecars and steer pods to nodes when they are created, and not just judge them")
	f.IntVar(&o.maxInFlight, "max-in-flight", webhook.DefaultMaxInFlight, "reviews judged at once; more are answered 503")
	f.BoolVar(&o.leaderElect, "leader-elect", true, "let one replica at a time register the webhook, provision and report")
	f.DurationVar(&o.scanInterval, "scan-interval", 10*time.Minute, "how often the leader looks at all that is guarded, besides when something changes; at least 1m")
	f.StringVar(&o.reports, "reports", string(controller.OpenReports), "what the leader writes for other tools, if it is served: openreports (openreports.io/v1alpha1), policyreports (wgpolicyk8s.io/v1alpha2) or none")
	f.StringVar(&o.ownObjects, "own-objects", "", "ConfigMap in the own namespace that holds Meshvakt's own objects as installed; empty: they are not kept")
	f.StringVar(&o.ownDigest, "own-objects-digest", "", "SHA-256 of its content; a ConfigMap with another one is not believed")
	f.StringVar(&o.ownManager, "own-objects-field-manager", "helm", "field manager of the installer, in whose name own objects are put back")
	o.evidence.addFlags(f)
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "json", "json or text")
	return cmd
}

func (o *serveOptions) check() error {
	var errs []error
	if o.webhookTimeout < time.Second || o.webhookTimeout > 30*time.Second {
		errs = append(errs, fmt.Errorf("--webhook-timeout: %s; must be from 1s to 30s", o.webhookTimeout))
	}
	if o.scanInterval < time.Minute {
		errs = append(errs, fmt.Errorf("--scan-interval: %s; must be at least 1m", o.scanInterval))
	}
	if known := []controller.ReportFormat{controller.OpenReports, controller.PolicyReports, controller.NoReports}; !slices.Contains(known, controller.ReportFormat(o.reports)) {
		errs = append(errs, fmt.Errorf("--reports: %q; must be one of %q", o.reports, known))
	}
	if o.tlsMinVersion != "1.2" && o.tlsMinVersion != "1.3" {
		errs = append(errs, fmt.Errorf("--tls-min-version: %q; must be 1.3 or 1.2", o.tlsMinVersion))
	}
	if o.ownObjects != "" && o.ownDigest == "" {
		errs = append(errs, errors.New("--own-objects: --own-objects-digest must be given"))
	}
	errs = append(errs, o.evidence.check())
	switch o.certificates {
	case "self-managed":
	case "files":
		if o.certFile == "" || o.keyFile == "" || o.caFile == "" {
			errs = append(errs, errors.New("--certificates files: --cert-file, --key-file and --ca-file must be given"))
		}
	default:
		errs = append(errs, fmt.Errorf("--certificates: %q; must be self-managed or files", o.certificates))
	}
	return errors.Join(errs...)
}

// newLogger makes the process's logger and sends what libraries log through it.
func newLogger(minLevel, format string) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(minLevel)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	var h slog.Handler
	switch format {
	case "json":
		h = slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level})
	case "text":
		h = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})
	default:
		return nil, fmt.Errorf("--log-format: %q; must be json or text", format)
	}
	ctrllog.SetLogger(logr.FromSlogHandler(h))
	klog.SetSlogLogger(slog.New(h))
	return slog.New(h), nil
}

// clientQPS and clientBurst bound what one replica asks of the API server. Live
// reads take a handful of requests per judged change.
const (
	clientQPS   = 200
	clientBurst = 400
)

func (o *serveOptions) restConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("load the client configuration: %w", err)
	}
	config.UserAgent = "meshvakt/" + version()
	config.QPS, config.Burst = clientQPS, clientBurst
	return config, nil
}
