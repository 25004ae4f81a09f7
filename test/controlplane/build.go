package controlplane

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// KubernetesBinaries are the paths of the Kubernetes programs, etcd included.
type KubernetesBinaries struct {
	Etcd              string
	APIServer         string
	ControllerManager string
	Scheduler         string
	Kubectl           string
}

// IstioBinaries are the paths of the Istio programs, and of the charts they go with.
type IstioBinaries struct {
	Istiod    string
	Istioctl  string
	Manifests string
}

// WitnessBinaries are the paths of a witness of transparency logs, and of what manages its logs.
type WitnessBinaries struct {
	Litewitness string
	Witnessctl  string
}

// Builder compiles the programs of a control plane, and what else tests need, from the modules pinned below
// binaries/ and caches them outside the source tree. The zero value is ready to use.
// Any number of processes may build at once: one works, the others wait for it.
type Builder struct {
	// Log receives the progress of a build, which takes about 20 minutes when the Go
	// build cache is cold. Nil discards it.
	Log io.Writer

	// CacheDir is where programs are kept. Empty means $MESHVAKT_CACHE, or the
	// directory meshvakt in the user's cache directory.
	CacheDir string

	// compile replaces the go command in tests.
	compile func(ctx context.Context, b build, out string, mains []mainPackage) error
}

// group is a set of programs that are compiled from one pinned module.
type group struct {
	name     string // also the directory below binaries/
	released string // module whose version names the group
	mains    []mainPackage
	ldflags  func(version string) string
}

type mainPackage struct{ binary, path string }

// build is one group with everything resolved that decides what comes out.
type build struct {
	group   group
	dir     string // of the pinned module
	version string
	ldflags string
}

func etcdGroup() group {
	return group{
		name:     "etcd",
		released: "go.etcd.io/etcd/server/v3",
		mains:    []mainPackage{{"etcd", "go.etcd.io/etcd/server/v3"}},
		ldflags:  func(string) string { return "-s -w" },
	}
}

func kubernetesGroup() group {
	return group{
		name:     "kubernetes",
		released: "k8s.io/kubernetes",
		mains: []mainPackage{
			{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
			{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
			{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
			{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
		},
		ldflags: kubernetesLdflags,
	}
}

func istioGroup() group {
	return group{
		name:     "istio",
		released: "istio.io/istio",
		mains: []mainPackage{
			{"pilot-discovery", "istio.io/istio/pilot/cmd/pilot-discovery"},
			{"istioctl", "istio.io/istio/istioctl/cmd/istioctl"},
		},
		ldflags: func(string) string { return "-s -w" },
	}
}

func s3Group() group {
	return group{
		name:     "s3",
		released: "github.com/versity/versitygw",
		mains:    []mainPackage{{"versitygw", "github.com/versity/versitygw/cmd/versitygw"}},
		ldflags:  func(string) string { return "-s -w" },
	}
}

func witnessGroup() group {
	return group{
		name:     "witness",
		released: "filippo.io/torchwood",
		mains: []mainPackage{
			{"litewitness", "filippo.io/torchwood/cmd/litewitness"},
			{"witnessctl", "filippo.io/torchwood/cmd/witnessctl"},
		},
		ldflags: func(string) string { return "-s -w" },
	}
}

// kubernetesLdflags stamps the version: an API server that calls itself v0.0.0-master
// is refused by clients that check the version.
func kubernetesLdflags(version string) string {
	const pkg = "k8s.io/component-base/version"
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return fmt.Sprintf("-s -w -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s",
		pkg, version, major, minor)
}

// Kubernetes returns etcd, the control plane of Kubernetes and kubectl, and builds what
// is missing. When KUBEBUILDER_ASSETS names a directory that holds etcd, kube-apiserver
// and kubectl, the programs found there are used instead; whether they fit the pinned
// versions is then the caller's concern.
func (b *Builder) Kubernetes(ctx context.Context) (KubernetesBinaries, error) {
	paths := assets(os.Getenv("KUBEBUILDER_ASSETS"))
	for _, g := range []group{etcdGroup(), kubernetesGroup()} {
		if err := b.complete(ctx, g, paths); err != nil {
			return KubernetesBinaries{}, fmt.Errorf("build %s: %w", g.name, err)
		}
	}
	return KubernetesBinaries{
		Etcd:              paths["etcd"],
		APIServer:         paths["kube-apiserver"],
		ControllerManager: paths["kube-controller-manager"],
		Scheduler:         paths["kube-scheduler"],
		Kubectl:           paths["kubectl"],
	}, nil
}

// Istio returns istiod and istioctl, and builds them when they are missing.
func (b *Builder) Istio(ctx context.Context) (IstioBinaries, error) {
	g, paths := istioGroup(), map[string]string{}
	if err := b.complete(ctx, g, paths); err != nil {
		return IstioBinaries{}, fmt.Errorf("build istio: %w", err)
	}
	binaries, err := binariesDir(ctx)
	if err != nil {
		return IstioBinaries{}, err
	}
	source, err := downloadModule(ctx, filepath.Join(binaries, g.name), g.released)
	if err != nil {
		return IstioBinaries{}, err
	}
	return IstioBinaries{
		Istiod:    paths["pilot-discovery"],
		Istioctl:  paths["istioctl"],
		Manifests: filepath.Join(source.Dir, "manifests"),
	}, nil
}

// S3 returns versitygw, an S3 server that checks signatures, and builds it when it is missing.
func (b *Builder) S3(ctx context.Context) (path string, err error) {
	paths := map[string]string{}
	if err := b.complete(ctx, s3Group(), paths); err != nil {
		return "", fmt.Errorf("build the S3 server: %w", err)
	}
	return paths["versitygw"], nil
}

// Witness returns litewitness and witnessctl, and builds them when they are missing.
func (b *Builder) Witness(ctx context.Context) (WitnessBinaries, error) {
	paths := map[string]string{}
	if err := b.complete(ctx, witnessGroup(), paths); err != nil {
		return WitnessBinaries{}, fmt.Errorf("build the witness: %w", err)
	}
	return WitnessBinaries{Litewitness: paths["litewitness"], Witnessctl: paths["witnessctl"]}, nil
}

// assets lists the programs in a KUBEBUILDER_ASSETS directory, or none of them when one
// of the three that such a directory always holds is missing.
func assets(dir string) map[string]string {
	found := map[string]string{}
	if dir == "" {
		return found
	}
	for _, m := range append(etcdGroup().mains, kubernetesGroup().mains...) {
		path := filepath.Join(dir, m.binary)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			found[m.binary] = path
		}
	}
	if found["etcd"] == "" || found["kube-apiserver"] == "" || found["kubectl"] == "" {
		return map[string]string{}
	}
	return found
}

// complete adds to paths the programs of g that it lacks.
func (b *Builder) complete(ctx context.Context, g group, paths map[string]string) error {
	var wanted []mainPackage
	for _, m := range g.mains {
		if paths[m.binary] == "" {
			wanted = append(wanted, m)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	bd, dir, err := b.resolve(ctx, g)
	if err != nil {
		return err
	}
	if err := b.fill(ctx, bd, dir, wanted); err != nil {
		return err
	}
	for _, m := range wanted {
		paths[m.binary] = filepath.Join(dir, m.binary)
	}
	return nil
}

// resolve names the cache directory of a group after all that decides what is in it.
func (b *Builder) resolve(ctx context.Context, g group) (build, string, error) {
	binaries, err := binariesDir(ctx)
	if err != nil {
		return build{}, "", err
	}
	bd := build{group: g, dir: filepath.Join(binaries, g.name)}
	if bd.version, err = moduleVersion(ctx, bd.dir, g.released); err != nil {
		return build{}, "", err
	}
	bd.ldflags = g.ldflags(bd.version)
	platform, err := goCommand(ctx, bd.dir, "env", "GOOS", "GOARCH", "GOVERSION")
	if err != nil {
		return build{}, "", err
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%s%s\n", platform, bd.ldflags)
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(bd.dir, name))
		if err != nil {
			return build{}, "", fmt.Errorf("read pinned module: %w", err)
		}
		hash.Write(content)
	}
	root, err := b.cacheRoot()
	if err != nil {
		return build{}, "", err
	}
	return bd, filepath.Join(root, fmt.Sprintf("%s-%s-%.6x", g.name, bd.version, hash.Sum(nil))), nil
}

func (b *Builder) cacheRoot() (string, error) {
	dir := b.CacheDir
	if dir == "" {
		dir = os.Getenv("MESHVAKT_CACHE")
	}
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the cache directory: %w", err)
		}
		dir = filepath.Join(user, "meshvakt")
	}
	dir, err := filepath.Abs(filepath.Join(dir, "controlplane"))
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	return dir, nil
}

// fill makes sure that dir holds every wanted program. A program appears under its name
// only by rename, so what is there is whole, whoever dies when.
func (b *Builder) fill(ctx context.Context, bd build, dir string, wanted []mainPackage) error {
	if len(missing(dir, wanted)) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create cache: %w", err)
	}
	release, err := lockFile(ctx, dir+".lock", b.log())
	if err != nil {
		return err
	}
	defer release()
	todo := missing(dir, wanted) // whoever held the lock may have built it
	if len(todo) == 0 {
		return nil
	}
	out := dir + ".building" // ours alone while we hold the lock, and on the same file system
	if err := os.RemoveAll(out); err != nil {
		return fmt.Errorf("clear an unfinished build: %w", err)
	}
	defer os.RemoveAll(out)
	if err := os.Mkdir(out, 0o755); err != nil {
		return fmt.Errorf("create build directory: %w", err)
	}
	compile := b.compile
	if compile == nil {
		compile = b.goBuild
	}
	if err := compile(ctx, bd, out, todo); err != nil {
		return err
	}
	for _, m := range todo {
		if err := os.Rename(filepath.Join(out, m.binary), filepath.Join(dir, m.binary)); err != nil {
			return fmt.Errorf("put %s into the cache: %w", m.binary, err)
		}
	}
	return nil
}

func missing(dir string, wanted []mainPackage) []mainPackage {
	var none []mainPackage
	for _, m := range wanted {
		if _, err := os.Stat(filepath.Join(dir, m.binary)); err != nil {
			none = append(none, m)
		}
	}
	return none
}

func (b *Builder) log() io.Writer {
	if b.Log == nil {
		return io.Discard
	}
	return b.Log
}
