// Package controlplane builds and boots a real Kubernetes control plane, and istiod on
// request, for tests and for people: etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler as plain processes on loopback, with RBAC, ServiceAccount admission,
// an audit log, the CRDs of Istio and cert-manager, and a handful of users.
//
// There are no kubelets. Nodes are Node objects, pods are scheduled by the real
// scheduler and never run; a pod that is deleted after it was scheduled is removed by a
// stand-in, so that namespaces can be deleted.
//
// All state is in one directory that Stop removes. On Linux the components end with the
// process that booted them, however that ends.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
)

// bootTimeout bounds the boot, not the build. It is generous because test machines are
// often busy with other packages.
const bootTimeout = 3 * time.Minute

var errStopped = errors.New("the control plane is stopped")

// Options configure a control plane. The zero value is a control plane without Istio.
type Options struct {
	// Istio starts istiod, installed as "istioctl manifest generate" renders the
	// minimal profile, with its webhooks for injection and validation in force.
	Istio bool

	// IstioSet are values for istioctl's --set, such as
	// "meshConfig.rootNamespace=istio-config".
	IstioSet []string

	// Log receives progress for people. Nil discards it; Start uses standard error.
	Log io.Writer

	// Dir is the directory for data and logs; it must be empty or not exist. Empty
	// means a new temporary directory.
	Dir string

	// Keep leaves Dir behind at Stop. A control plane that failed leaves it in any case,
	// for its logs; the next one removes it if it is a temporary one.
	Keep bool

	// APIServerArgs are appended to the flags of kube-apiserver, in whose directory Dir
	// they are resolved. A later flag overrides an earlier one.
	APIServerArgs []string

	// SchedulerArgs and ControllerManagerArgs are appended to the flags of these in the
	// same way.
	SchedulerArgs, ControllerManagerArgs []string

	// AuditPolicy is an audit.k8s.io/v1 Policy in YAML. Empty means metadata of all
	// requests but reads.
	AuditPolicy string

	// OwnSignals says that the caller handles SIGINT and SIGTERM and calls Stop.
	// Otherwise either signal stops the control plane and then ends the process.
	OwnSignals bool
}

// ControlPlane is a running control plane. Its fields do not change after Boot.
type ControlPlane struct {
	URL          string // of the API server
	CA           []byte // PEM, signs the API server's certificate
	Dir          string // data, logs, kubeconfigs
	AuditLogPath string // JSON lines of audit.k8s.io/v1 Event
	IstioctlPath string // empty without Options.Istio

	options    Options
	kubernetes KubernetesBinaries
	istio      IstioBinaries
	pki        *pki
	accounts   map[User]account
	spawner    *spawner
	removeDir  func() error
	kubelet    func() // ends the stand-in for kubelets

	mu         sync.Mutex
	components []*component // in the order of their start
	stopping   bool
	failed     error
	done       chan struct{}
	stopOnce   sync.Once
	stopErr    error
	stopped    chan struct{}
}

// Boot builds what is missing, starts a control plane and returns when it is ready for
// use. The context bounds the boot, not the life of the control plane; Stop ends that.
func Boot(ctx context.Context, o Options) (*ControlPlane, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	cp := &ControlPlane{
		options:  o,
		accounts: newAccounts(),
		kubelet:  func() {},
		done:     make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	builder := &Builder{Log: o.Log}
	var err error
	if cp.kubernetes, err = builder.Kubernetes(ctx); err != nil {
		return nil, err
	}
	if o.Istio {
		if cp.istio, err = builder.Istio(ctx); err != nil {
			return nil, err
		}
		cp.IstioctlPath = cp.istio.Istioctl
	}
	if cp.Dir, cp.removeDir, err = claimDir(o.Dir); err != nil {
		return nil, err
	}
	if o.Keep { // not even the next control plane removes it then
		os.Remove(filepath.Join(cp.Dir, ownerLock))
	}
	cp.AuditLogPath = filepath.Join(cp.Dir, "audit.log")
	cp.spawner = newSpawner()
	if !o.OwnSignals {
		cp.stopOnSignal()
	}
	start := time.Now()
	if err := cp.boot(ctx); err != nil {
		if ctx.Err() == nil { // not because the caller gave up
			cp.fail(err)
		}
		return nil, errors.Join(fmt.Errorf("boot control plane: %w", err), cp.Stop())
	}
	fmt.Fprintf(o.Log, "controlplane: ready at %s after %s, logs in %s\n", cp.URL, elapsed(start), cp.Dir)
	return cp, nil
}

// boot starts the components. Kubernetes is ready before istiod starts; the rest runs
// side by side as far as it can.
func (cp *ControlPlane) boot(ctx context.Context) error {
	ctx, cancelTimeout := context.WithTimeout(ctx, bootTimeout)
	defer cancelTimeout()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // a component that dies, or Stop, ends the boot
		select {
		case <-cp.done:
			cancel(cp.Err())
		case <-ctx.Done():
		}
	}()

	var err error
	if cp.pki, err = newPKI(cp.Dir); err != nil {
		return err
	}
	cp.CA = cp.pki.ca
	if err := cp.writeInputs(); err != nil {
		return err
	}
	crds := inBackground(func() ([]crd, error) { return readCRDs(ctx) })
	manifest := inBackground(func() ([]byte, error) { return cp.renderIstio(ctx) })

	if err := cp.addEtcd().start(); err != nil {
		return err
	}
	var port int
	if err := startOnFreePorts(ctx, cp.addAPIServer(&port), []*int{&port}); err != nil {
		return err
	}
	cp.URL = "https://" + loopback(port)
	if err := cp.writeKubeconfigs(); err != nil {
		return err
	}
	admin, err := kubernetes.NewForConfig(cp.RestConfig(Admin))
	if err != nil {
		return fmt.Errorf("create client: %w", err)
	}
	for _, c := range []*component{cp.addControllerManager(admin), cp.addScheduler()} {
		if err := c.start(); err != nil {
			return err
		}
	}
	if err := cp.installCRDs(ctx, crds); err != nil {
		return err
	}
	if err := cp.Apply(ctx, rbac); err != nil {
		return fmt.Errorf("grant rights: %w", err)
	}
	cp.mu.Lock()
	components := cp.components
	cp.mu.Unlock()
	for _, c := range components {
		if err := c.waitReady(ctx); err != nil {
			return err
		}
	}
	if err := cp.startKubelet(); err != nil {
		return err
	}
	return cp.startIstio(ctx, manifest)
}

// inBackground runs work that does not need the API server while that starts.
func inBackground[T any](work func() (T, error)) func() (T, error) {
	type outcome struct {
		value T
		err   error
	}
	ch := make(chan outcome, 1)
	go func() {
		value, err := work()
		ch <- outcome{value, err}
	}()
	return func() (T, error) {
		o := <-ch
		return o.value, o.err
	}
}

// Done is closed when a component has died by itself, or Stop was called.
func (cp *ControlPlane) Done() <-chan struct{} { return cp.done }

// Err tells why Done is closed: which component died, with the end of its log. It is
// nil while all is well and when the control plane was just stopped.
func (cp *ControlPlane) Err() error {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	return cp.failed
}

// fail records the death of a component. The first one is the interesting one.
func (cp *ControlPlane) fail(err error) {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	if cp.stopping || cp.failed != nil {
		return
	}
	cp.failed = err
	close(cp.done)
}

// Stop kills all components and removes the directory, unless one died. It may be called again, and from
// several goroutines.
func (cp *ControlPlane) Stop() error {
	cp.stopOnce.Do(func() {
		cp.stopErr = cp.stop()
		close(cp.stopped)
	})
	return cp.stopErr
}

func (cp *ControlPlane) stop() error {
	cp.mu.Lock()
	cp.stopping = true
	if cp.failed == nil {
		close(cp.done)
	}
	components, kubelet := cp.components, cp.kubelet
	keep := cp.options.Keep || cp.failed != nil
	cp.mu.Unlock()

	kubelet()
	var gone sync.WaitGroup
	for _, c := range components {
		gone.Go(c.close)
	}
	gone.Wait()
	cp.spawner.close()
	if keep {
		return nil
	}
	return cp.removeDir()
}

// stopOnSignal stops the control plane at SIGINT and SIGTERM and then lets the signal do
// what it would have done without us, which is to end the process.
func (cp *ControlPlane) stopOnSignal() {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		defer signal.Stop(ch)
		select {
		case <-cp.stopped:
		case s := <-ch:
			if err := cp.Stop(); err != nil {
				fmt.Fprintf(cp.options.Log, "controlplane: %v\n", err)
			}
			signal.Reset(s)
			syscall.Kill(os.Getpid(), s.(syscall.Signal))
		}
	}()
}
