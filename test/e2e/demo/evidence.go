package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// seal starts the second process of evidence, beside the webhook and on the same directory.
func (p *process) seal(dir string) error {
	log, err := os.Create(filepath.Join(dir, "sealer.log"))
	if err != nil {
		return err
	}
	defer log.Close()                                                                                                                 // the process has its own
	p.sealer = exec.Command(p.binary, "evidence", "seal", "--dir", p.evidence, "--checkpoint-interval", "1s", "--log-format", "text") //nolint:noctx // ends by SIGTERM, see stop
	p.sealer.Stderr = log
	p.sealer.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.sealer.Start(); err != nil {
		p.sealer = nil
		return err
	}
	fmt.Printf("   meshvakt evidence seal runs as process %d, evidence in %s\n", p.sealer.Process.Pid, p.evidence)
	return nil
}

// evidence shows what is left of all that for an auditor, who has the logs and no access to the
// cluster.
func (s *stage) evidence(dir string) error {
	fmt.Print("\n== All of it is in a log that is signed and can be verified offline. Where the namespace stood from the\n" +
		"   first time it was seen until now, an auditor asks the log and not us.\n")
	begun := time.Now()
	margin, clock, err := s.clock(dir)
	if err != nil {
		return err
	}
	from, err := s.firstSeen(dir, "journal")
	if err != nil {
		return err
	}
	from = from.Add(margin)
	// By then all that has happened so far is certain, and some of the time that is claimed.
	if wait := max(time.Until(from.Add(3*time.Second)), time.Until(begun.Add(margin+time.Second))); wait > 0 {
		fmt.Printf("   (waiting %s, by which the clock of this machine may be off)\n", wait.Round(time.Second))
		time.Sleep(wait)
	}
	to := time.Now().UTC()
	if margin > 5*time.Second {
		fmt.Printf("   (and as long once more)\n")
	}
	if err := s.watched(dir, to.Add(margin)); err != nil {
		return err
	}
	period := append([]string{"--from", from.Format(time.RFC3339), "--to", to.Format(time.RFC3339), "--trust-log-key"}, clock...)
	claim := append([]string{"evidence", "verify", dir, "--claim", "mtls=STRICT,namespace=journal"}, period...)
	if err := s.run(0, "HOLDS", claim...); err != nil {
		return err
	}
	fmt.Print("\n== The API server was told of each record in its answer, and keeps that in its own audit log. Both must agree.\n")
	if err := s.run(0, "audit log of cluster", append(claim[:len(claim):len(claim)], "--audit-log", s.plane.AuditLogPath)...); err != nil {
		return err
	}
	fmt.Print("\n== The exception was revoked, and what it let in is still there. The log says that too.\n")
	claim[4] = "mtls=STRICT,namespace=payments"
	if err := s.run(1, "VIOLATED", claim...); err != nil {
		return err
	}
	report := filepath.Join(s.plane.Dir, "report.html")
	fmt.Print("\n== The same as a page for people, which prints.\n")
	if err := s.run(0, "", append([]string{"evidence", "report", dir, "--out", report}, period...)...); err != nil {
		return err
	}
	fmt.Print("\n== Somebody with the disk changes one letter of one record, in a copy.\n")
	forged := filepath.Join(s.plane.Dir, "forged")
	if err := os.CopyFS(filepath.Join(forged, "logs"), os.DirFS(filepath.Join(dir, "logs"))); err != nil {
		return err
	}
	if err := forge(forged); err != nil {
		return err
	}
	claim[2], claim[4] = forged, "mtls=STRICT,namespace=journal"
	return s.run(3, "", claim...)
}

// clock says by how much the times in the log may be wrong, and how a claim must allow for it: on
// a machine that nobody keeps in time, the kernel does not vouch for its clock.
func (s *stage) clock(dir string) (margin time.Duration, flags []string, err error) {
	if err := s.sealed(dir, time.Time{}); err != nil {
		return 0, nil, err
	}
	out, err := exec.CommandContext(s.ctx, s.meshvakt, "evidence", "inspect", dir, "--kind", "beat", "-o", "json").Output()
	if err != nil {
		return 0, nil, err
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	var beat struct {
		Clock struct {
			MaxErrUs int64
			Unsync   bool
		}
	}
	if err := json.Unmarshal(line, &beat); err != nil {
		return 0, nil, err
	}
	margin = time.Duration(beat.Clock.MaxErrUs)*time.Microsecond + 2*time.Second
	if beat.Clock.Unsync {
		margin = 18 * time.Second
	}
	return margin, []string{"--max-clock-error", "20s"}, nil
}

// firstSeen is when the log first tells of a namespace.
func (s *stage) firstSeen(dir, namespace string) (time.Time, error) {
	deadline := time.Now().Add(time.Minute)
	for {
		out, err := exec.CommandContext(s.ctx, s.meshvakt, "evidence", "inspect", dir, "--kind", "state,snapshot", "-n", namespace, "-o", "json").Output()
		line, _, found := strings.Cut(string(out), "\n")
		if _, rest, is := strings.Cut(line, `"t":"`); found && is {
			text, _, _ := strings.Cut(rest, `"`)
			t, err := time.Parse(time.RFC3339Nano, text)
			// The second after it: a claim is made of whole seconds, and of no time before.
			return t.Truncate(time.Second).Add(time.Second), err
		}
		if time.Now().After(deadline) {
			return time.Time{}, fmt.Errorf("the log says nothing of namespace %s: %w", namespace, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// watched waits until it is sealed that the API server was heard after that time on each watch: what was seen
// ends there.
func (s *stage) watched(dir string, after time.Time) error {
	fmt.Print("   (waiting until the API server has said how far it is, as it does every 20 s)\n")
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		out, _ := exec.CommandContext(s.ctx, s.meshvakt, "evidence", "inspect", dir, "--kind", "beat", "--from", after.Format(time.RFC3339), "-o", "json").Output()
		for line := range bytes.Lines(out) {
			var beat struct {
				T       time.Time
				Watches []struct{ QuietMs int64 }
			}
			if err := json.Unmarshal(line, &beat); err != nil {
				return err
			}
			heard := beat.T
			for _, w := range beat.Watches {
				if at := beat.T.Add(-time.Duration(w.QuietMs) * time.Millisecond); at.Before(heard) {
					heard = at
				}
			}
			if heard.After(after) {
				return nil
			}
		}
	}
	return errors.New("nothing is sealed of what was heard within two minutes")
}

// sealed waits until a beat after that time is in the log.
func (s *stage) sealed(dir string, after time.Time) error {
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		out, _ := exec.CommandContext(s.ctx, s.meshvakt, "evidence", "inspect", dir, "--kind", "beat", "--from", after.Format(time.RFC3339), "-o", "json").Output()
		if bytes.Count(out, []byte("\n")) >= 2 {
			return nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	return errors.New("no beat is sealed within a minute")
}

// run shows a command of Meshvakt's, which must end in this way and say that.
func (s *stage) run(exit int, says string, args ...string) error {
	shown := strings.Join(args, " ")
	fmt.Printf("\n   $ meshvakt %s\n", s.shown.Replace(shown))
	cmd := exec.CommandContext(s.ctx, s.meshvakt, args...)
	out, err := cmd.CombinedOutput()
	fmt.Print(indent(s.shown.Replace(string(out)), "     "))
	fmt.Printf("     (exit %d)\n", cmd.ProcessState.ExitCode())
	if cmd.ProcessState.ExitCode() != exit || !strings.Contains(string(out), says) {
		return fmt.Errorf("the command must exit with %d and say %q: %w", exit, says, err)
	}
	return nil
}

// forge changes a letter in the first bundle of entries.
func forge(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, filepath.Join("tile", "entries")) {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		changed := bytes.Replace(text, []byte(`"verdict":"deny"`), []byte(`"verdict":"dend"`), 1)
		return os.WriteFile(path, changed, 0o600)
	})
}
