package spool

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

const (
	childDirectory = "MESHVAKT_TEST_SPOOL"
	childName      = "MESHVAKT_TEST_SPOOL_LIFE"
	appenders      = 16
)

func killOptions() Options { return Options{SegmentSize: 64 << 10, ReserveSize: 64 << 10} }

// TestChild is no test: it is the process that TestKilledUnderLoad kills.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDirectory)
	if dir == "" {
		t.Skip("runs in a process of its own, under TestKilledUnderLoad")
	}
	s, err := Open(dir, killOptions())
	if err != nil {
		fmt.Printf("!open: %v\n", err)
		return
	}
	r := s.Recovery()
	fmt.Printf("resumed %d %x\n", r.LastSeq, r.LastHash)
	var out sync.Mutex
	var all sync.WaitGroup
	for a := range appenders {
		all.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%s.%d.%d", os.Getenv(childName), a, i)
				seq, hash, err := s.Append(context.Background(), named(id))
				out.Lock()
				switch {
				case err == nil:
					fmt.Printf("ack %s %d %x\n", id, seq, hash)
				case errors.As(err, new(*RefusedError)):
					fmt.Printf("refused %s .\n", id)
				}
				out.Unlock()
			}
		})
	}
	all.Wait()
}

// kill -9 under load, 50 times on one log, while a sealer reads it: no acknowledged line is
// missing or elsewhere, none is there twice, the chain is whole.
func TestKilledUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	dir := t.TempDir()
	sealer, err := OpenReader(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer sealer.Close()
	acked, refused := map[string]point{}, map[string]bool{}
	in := map[string]point{}
	var last point
	read := func() {
		for line, err := range sealer.Lines() {
			if err != nil {
				t.Fatalf("read: %v", err)
			}
			var seq uint64
			var prev, id string
			if _, err := fmt.Sscanf(string(line.Text), "%d %s %s", &seq, &prev, &id); err != nil {
				t.Fatalf("line %d is %q", line.Seq, line.Text)
			}
			if seq != last.seq+1 || line.Seq != seq || prev != fmt.Sprintf("%x", last.hash) {
				t.Fatalf("line %q stands at %d, after %d %x", line.Text, line.Seq, last.seq, last.hash)
			}
			if _, twice := in[id]; twice {
				t.Fatalf("%s is in the log twice", id)
			}
			last = point{line.Seq, line.Hash}
			in[id] = last
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for life := range 50 {
		killOnce(t, dir, life, 1+rng.IntN(400), acked, refused, read)
	}
	s, err := Open(dir, killOptions())
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	read()
	for id, at := range acked {
		if in[id] != at {
			t.Errorf("%s was acknowledged as line %d; in the log it is %d", id, at.seq, in[id].seq)
		}
	}
	for id := range refused {
		if at, is := in[id]; is {
			t.Errorf("%s was refused and is line %d", id, at.seq)
		}
	}
	if len(in) < len(acked) || last.seq != uint64(len(in)) {
		t.Errorf("%d lines, the last is %d, %d acknowledged", len(in), last.seq, len(acked))
	}
	t.Logf("%d acknowledged, %d in the log, %d refused", len(acked), len(in), len(refused))
}

// killOnce kills a life after so many of its answers, and takes all that it told.
func killOnce(t *testing.T, dir string, life, answers int, acked map[string]point, refused map[string]bool, read func()) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$")
	child.Env = append(os.Environ(), childDirectory+"="+dir, fmt.Sprintf("%s=%d", childName, life))
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for told := bufio.NewScanner(out); told.Scan(); {
		var at point
		var id, hash string
		line := told.Text()
		switch {
		case strings.HasPrefix(line, "ack "):
			// The last line may be cut by the kill; then its caller was not told.
			if _, err := fmt.Sscanf(line, "ack %s %d %s", &id, &at.seq, &hash); err != nil || len(hash) != 64 {
				continue
			}
			if _, err := hex.Decode(at.hash[:], []byte(hash)); err != nil {
				t.Fatal(err)
			}
			acked[id] = at
			n++
		case strings.HasPrefix(line, "refused ") && strings.HasSuffix(line, " ."):
			refused[strings.Fields(line)[1]] = true
			n++
		case strings.HasPrefix(line, "!"):
			t.Errorf("life %d: %s", life, line)
		}
		if n == answers {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if n%20 == 0 {
			read()
		}
	}
	_ = child.Wait() // killed
}
