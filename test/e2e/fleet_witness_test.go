package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// cosigner is a real litewitness, whose key is in an SSH agent as it wants it.
type cosigner struct {
	t        testing.TB
	programs controlplane.WitnessBinaries
	database string
	address  string
	key      string // as it says itself
	output
}

func startWitness(t testing.TB) *cosigner {
	t.Helper()
	programs, err := (&controlplane.Builder{Log: os.Stderr}).Witness(t.Context())
	must(t, err)
	dir, err := os.MkdirTemp("", "witness") // a socket in the directory of a test may have too long a name
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	keys := agent.NewKeyring()
	must(t, keys.Add(agent.AddedKey{PrivateKey: private}))
	socket := filepath.Join(dir, "agent")
	listener, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(keys, conn) }() // until litewitness ends
		}
	}()
	sshKey, err := ssh.NewPublicKey(public)
	must(t, err)
	w := &cosigner{t: t, programs: programs, database: filepath.Join(dir, "litewitness.db"), address: freeAddress(t)}
	cmd := exec.Command(programs.Litewitness, "-db", w.database, "-name", "witness.example.net/audit",
		"-key", ssh.FingerprintSHA256(sshKey), "-ssh-agent", socket, "-listen", w.address)
	cmd.Stderr = w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of the witness:\n%s", w.said())
		}
	})
	eventually(t, 30*time.Second, func() error {
		_, rest, found := strings.Cut(w.said(), "vkey=")
		if w.key, _, _ = strings.Cut(rest, "\n"); !found || w.key == "" {
			return errors.New("the witness does not say its key")
		}
		conn, err := net.Dial("tcp", w.address)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	return w
}

// knows adds a log, as the people do who run the witness.
func (w *cosigner) knows(key string) {
	w.t.Helper()
	origin, _, _ := strings.Cut(key, "+")
	for _, args := range [][]string{
		{"add-log", "-db", w.database, "-origin", origin},
		{"add-key", "-db", w.database, "-origin", origin, "-key", key},
	} {
		if out, err := exec.Command(w.programs.Witnessctl, args...).CombinedOutput(); err != nil {
			w.t.Fatalf("witnessctl %q: %v\n%s", args, err, out)
		}
	}
}

// policy is for sealers, and with keys of logs for who verifies.
func (w *cosigner) policy(keys ...string) string {
	w.t.Helper()
	text := fmt.Sprintf("witness audit %s http://%s/\nquorum audit\n", w.key, w.address)
	for _, k := range keys {
		text = "log " + k + "\n" + text
	}
	file := filepath.Join(w.t.TempDir(), "policy")
	must(w.t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// logKeys are those of the logs on a volume, as its owner reads them.
func logKeys(t testing.TB, dir string) (keys []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(volume.Dir(dir).Keys(), "*.key"))
	must(t, err)
	for _, f := range files {
		text, err := os.ReadFile(f)
		must(t, err)
		_, public, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		keys = append(keys, public)
	}
	return keys
}

// TestFleetWitness has evidence cosigned by a real witness: not before it knows the log, and never for
// a volume that was set back.
func TestFleetWitness(t *testing.T) {
	w := startWitness(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := tmpfs.TempDir(t)
	dev := clientFor(t, controlplane.Developer)
	ns := unique("witness")
	refuses := func(dir string) { // a run of the replica that leaves a record, and no process behind
		t.Helper()
		r := start(t, append(evidenceOf(dir), "--evidence-beat", "2s")...)
		enforcing(t, "default")
		must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
		eventually(t, 20*time.Second, func() error {
			err := dev.Create(t.Context(), weakPolicy(ns, "weak"))
			if err == nil { // nobody is asked yet
				return errors.Join(errors.New("a weak policy is let in"), dev.Delete(t.Context(), weakPolicy(ns, "weak")))
			}
			if !apierrors.IsForbidden(err) {
				return fmt.Errorf("a weak policy: %w", err)
			}
			return nil
		})
		r.stop()
		unregister(t)
	}
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	refuses(dir)
	sealers := w.policy()
	s := startSealer(t, dir, "", "--witness-policy", sealers)
	s.says("evidence is not witnessed", `"witnessed":0`)
	keys := logKeys(t, dir)
	auditors := w.policy(keys...)
	verdict(t, 0, dir, "--key", keys[0]) // it is whole, and only the log's own key vouches for it
	if out := verdict(t, 3, dir, "--policy", auditors); !strings.Contains(out, "PROBLEM") {
		t.Errorf("without the witness's signature:\n%s", out)
	}
	w.knows(keys[0])
	eventually(t, 30*time.Second, func() error { return cosigned(t, dir) })
	s.end()
	out := verdict(t, 0, dir, "--policy", auditors)
	if !strings.Contains(out, "witnesses 1") {
		t.Errorf("with the witness's signature:\n%s", out)
	}
	t.Logf("with the witness:\n%s", out)

	// Somebody keeps a copy of the volume, and puts it back after more has happened.
	old := filepath.Join(t.TempDir(), "old")
	must(t, os.CopyFS(old, os.DirFS(dir)))
	refuses(dir)
	s = startSealer(t, dir, "", "--witness-policy", sealers)
	eventually(t, 30*time.Second, func() error {
		if checkpoint(t, dir) == checkpoint(t, old) {
			return errors.New("nothing more is sealed")
		}
		return cosigned(t, dir)
	})
	s.end()
	verdict(t, 0, dir, "--policy", auditors)
	refuses(old)
	s = startSealer(t, old, "", "--witness-policy", sealers)
	s.says("evidence is not witnessed")
	s.end()
	if err := cosigned(t, old); err == nil {
		t.Error("the witness has signed a log that was set back")
	}
	verdict(t, 3, old, "--policy", auditors)
}

func checkpoint(t testing.TB, dir string) (text string) {
	t.Helper()
	for _, c := range checkpoints(t, dir) {
		text = c
	}
	return text
}

// cosigned: the checkpoint has a second signature.
func cosigned(t testing.TB, dir string) error {
	t.Helper()
	for origin, text := range checkpoints(t, dir) {
		if !strings.Contains(text, "\n— witness.example.net/audit ") {
			return fmt.Errorf("the checkpoint of %s is not cosigned", origin)
		}
	}
	return nil
}
