package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

const (
	storeKey    = "evidence"
	storeSecret = "a secret of the tests alone"
	storeBucket = "evidence"
	// storePrefix is one that fleets of other owners do not use.
	storePrefix = "fleet"
)

// storage is a real S3 server that checks signatures, with a bucket that has Object Lock and lets
// everybody read. Its objects are files, so that a test may do what nobody may do through it.
type storage struct {
	t       testing.TB
	program string
	dir     string // of the server's data
	address string
	client  *minio.Client
	cmd     *exec.Cmd
}

func startStorage(t testing.TB) *storage {
	t.Helper()
	program, err := (&controlplane.Builder{Log: os.Stderr}).S3(t.Context())
	must(t, err)
	s := &storage{t: t, program: program, dir: t.TempDir(), address: freeAddress(t)}
	for _, sub := range []string{"data", "versions"} {
		must(t, os.Mkdir(filepath.Join(s.dir, sub), 0o700))
	}
	s.client, err = minio.New(s.address, &minio.Options{Creds: credentials.NewStaticV4(storeKey, storeSecret, ""), Region: "us-east-1"})
	must(t, err)
	s.start()
	must(t, s.client.MakeBucket(t.Context(), storeBucket, minio.MakeBucketOptions{ObjectLocking: true}))
	must(t, s.client.SetBucketPolicy(t.Context(), storeBucket, `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Principal":"*","Action":["s3:GetObject"],"Resource":["arn:aws:s3:::`+storeBucket+`/*"]}]}`))
	return s
}

func (s *storage) start() {
	s.t.Helper()
	s.cmd = exec.Command(s.program, "--port", s.address, "--access", storeKey, "--secret", storeSecret, "--quiet",
		"posix", "--versioning-dir", filepath.Join(s.dir, "versions"), filepath.Join(s.dir, "data"))
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	must(s.t, s.cmd.Start())
	s.t.Cleanup(s.stop)
	eventually(s.t, 30*time.Second, func() error {
		_, err := s.client.ListBuckets(s.t.Context())
		return err
	})
}

func (s *storage) stop() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// flags are those of a sealer that mirrors to it.
func (s *storage) flags() []string {
	return []string{
		"--mirror", "s3://" + storeBucket + "/" + storePrefix, "--mirror-endpoint", "http://" + s.address,
		"--mirror-lock", "governance", "--mirror-lock-for", "24h",
	}
}

// copied is where the copies lie, as files and as an URL.
func (s *storage) copied() string { return filepath.Join(s.dir, "data", storeBucket, storePrefix) }

func (s *storage) url() string {
	return "http://" + s.address + "/" + storeBucket + "/" + storePrefix
}

// objects are the names of all that is there, below the prefix.
func (s *storage) objects() (list []string) {
	s.t.Helper()
	for o := range s.client.ListObjects(s.t.Context(), storeBucket, minio.ListObjectsOptions{Prefix: storePrefix + "/", Recursive: true}) {
		must(s.t, o.Err)
		list = append(list, strings.TrimPrefix(o.Key, storePrefix+"/"))
	}
	return list
}

// synced is a copy of all that is there, as a directory.
func (s *storage) synced() string {
	s.t.Helper()
	dir := filepath.Join(s.t.TempDir(), "copy")
	must(s.t, os.CopyFS(dir, os.DirFS(s.copied())))
	return dir
}

// sealer is a running `meshvakt evidence seal`.
type sealer struct {
	t   testing.TB
	cmd *exec.Cmd
	output
}

// output is what a process says.
type output struct {
	mu  sync.Mutex
	log bytes.Buffer // guarded by mu
}

// Write keeps it.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.Write(p)
}

func (o *output) said() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.String()
}

// startSealer gives it the credentials of the store with that secret.
func startSealer(t testing.TB, dir, secret string, args ...string) *sealer {
	t.Helper()
	s := &sealer{t: t}
	s.cmd = exec.Command(binary, append([]string{"evidence", "seal", "--dir", dir, "--checkpoint-interval", "1s", "--log-level", "warn"}, args...)...)
	s.cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+storeKey, "AWS_SECRET_ACCESS_KEY="+secret)
	s.cmd.Stdout, s.cmd.Stderr = s, s
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	must(t, s.cmd.Start())
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		if t.Failed() {
			t.Logf("log of the sealer:\n%s", s.said())
		}
	})
	return s
}

// says waits until its log has all of that in one line.
func (s *sealer) says(parts ...string) {
	s.t.Helper()
	eventually(s.t, 60*time.Second, func() error {
	lines:
		for line := range strings.Lines(s.said()) {
			for _, p := range parts {
				if !strings.Contains(line, p) {
					continue lines
				}
			}
			return nil
		}
		return fmt.Errorf("the sealer does not say %q but\n%s", parts, s.said())
	})
}

// end stops it as a kubelet does.
func (s *sealer) end() {
	s.t.Helper()
	must(s.t, s.cmd.Process.Signal(syscall.SIGTERM))
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("the sealer ended: %v\n%s", err, s.said())
	}
}

func (s *sealer) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// verdict runs `meshvakt evidence verify`, whose exit status must be as said.
func verdict(t testing.TB, status int, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"evidence", "verify", "--max-clock-error", "20s"}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != status {
		t.Errorf("verify %q exits with %d; must with %d:\n%s", args, got, status, out)
	}
	return string(out)
}

// checkpoints are those of the logs on a volume, and of their copies.
func checkpoints(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "checkpoint" {
			return err
		}
		text, err := os.ReadFile(name)
		origin, _, _ := strings.Cut(string(text), "\n")
		found[origin] = string(text)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return found
}
