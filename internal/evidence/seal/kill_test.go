package seal

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

const (
	childDirectory = "MESHVAKT_TEST_SEAL"
	childRole      = "MESHVAKT_TEST_SEAL_ROLE"
	lives          = 50
	shardLimit     = 1500
)

// TestChild is no test: it is the processes that TestKilledUnderLoad kills.
func TestChild(t *testing.T) {
	dir := volume.Dir(os.Getenv(childDirectory))
	switch role := os.Getenv(childRole); role {
	case "":
		t.Skip("runs in a process of its own, under TestKilledUnderLoad")
	case "append":
		if err := appendForever(dir); err != nil {
			fmt.Printf("!append: %v\n", err)
		}
	case "seal":
		s, err := Open(Config{Dir: dir, Interval: 50 * time.Millisecond, Batch: 300, Now: time.Now, Random: rand.Reader, Log: quiet()})
		if err == nil {
			fmt.Println("sealing")
			err = s.Run(context.Background())
		}
		fmt.Printf("!seal: %v\n", err)
	}
}

// writer appends records as the webhook does, with one shard after the other.
type writer struct {
	dir   volume.Dir
	spool *spool.Spool
	boot  string
	mu    sync.RWMutex // for writing while shards change
	end   sync.Mutex   // of what is below
	chain record.Chain
	shard int
}

func (w *writer) add(body record.Body) (uint64, record.Hash, error) {
	seq, hash, err := w.spool.Append(context.Background(), func(_ uint64, prev [32]byte) ([]byte, error) {
		w.end.Lock()
		defer w.end.Unlock()
		chain := w.chain
		if _, is := body.(*record.Genesis); is {
			chain = record.Begin(prev)
		}
		if chain.Last() != prev {
			return nil, errors.New("a line was made and not stored")
		}
		link, next, err := chain.Next(body, w.boot, time.Now(), time.Second, rand.Reader)
		if err == nil {
			w.chain = next
		}
		return link.Line, err
	})
	return seq, hash, err
}

func (w *writer) origin(n int) string {
	return volume.Origin(testName, testCluster, "meshvakt-0", volume.Shard("2026q4", n))
}

func (w *writer) bootRecord() *record.Boot {
	return &record.Boot{Why: record.BootStart, Pod: "pod", Node: "node", Version: "v1", Durability: "spool", Mode: "required", BeatSeconds: 60}
}

// turn ends the shard, where there is one, and begins the next.
func (w *writer) turn() error {
	prev, size := "", uint64(0)
	if w.shard > 0 {
		if !w.chain.Closed() {
			if _, _, err := w.add(&record.Close{Why: "size", Next: w.origin(w.shard + 1)}); err != nil {
				return err
			}
		}
		prev, size = w.origin(w.shard), w.chain.Size()
	}
	w.shard++
	key, err := w.dir.LogKey(volume.Shard("2026q4", w.shard), w.origin(w.shard), rand.Reader)
	if err != nil {
		return err
	}
	_, _, err = w.add(&record.Genesis{
		Origin: w.origin(w.shard), Cluster: testCluster, Replica: "meshvakt-0", Shard: volume.Shard("2026q4", w.shard),
		PrevOrigin: prev, PrevSize: size, Keys: []string{key.Verifier}, Pseudonyms: "k:40b9d4d4066ec8c39685a29114be62cd",
	})
	if err == nil {
		err = w.remember()
	}
	if err == nil {
		_, _, err = w.add(w.bootRecord())
	}
	return err
}

// remember stores which shard is open, before anything follows its genesis: that is in the spool
// as long as it is the last line, and may be released afterwards.
func (w *writer) remember() error {
	return writeFile(string(w.dir)+"/shard", fmt.Append(nil, w.shard))
}

// begin goes on where the last life was killed, wherever that was.
func (w *writer) begin() error {
	r := w.spool.Recovery()
	if r.LastSeq == 0 {
		return w.turn()
	}
	if _, err := fmt.Sscanf(readOr(string(w.dir)+"/shard", "1"), "%d", &w.shard); err != nil {
		return err
	}
	from := r.FirstSeq
	last, err := w.last(from, r.LastSeq)
	for errors.Is(err, spool.ErrReleased) { // by the sealer, meanwhile
		e, wrong := extentOf(w.dir)
		if wrong != nil || e.First <= from {
			return errors.Join(err, wrong)
		}
		from = e.First
		last, err = w.last(from, r.LastSeq)
	}
	if err != nil {
		return err
	}
	if w.chain, err = record.Resume(last); err != nil {
		return err
	}
	if err := w.remember(); err != nil {
		return err
	}
	if w.chain.Closed() {
		return w.turn()
	}
	_, _, err = w.add(w.bootRecord())
	return err
}

// last reads the last line, and which shard it is in.
func (w *writer) last(from, upTo uint64) (last []byte, err error) {
	reader, err := spool.OpenReader(w.dir.Spool(), from)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	seq := uint64(0)
	for line, err := range reader.Lines() {
		if err != nil {
			return nil, err
		}
		last, seq = append(last[:0], line.Text...), line.Seq
		if parsed, err := record.Parse(last); err == nil {
			if g, is := parsed.Body.(*record.Genesis); is {
				if _, w.shard, err = volume.ParseShard(g.Shard); err != nil {
					return nil, err
				}
			}
		}
	}
	if seq != upTo {
		return nil, spool.ErrReleased // the next segment, between being found and being opened: there a reader ends
	}
	return last, nil
}

func extentOf(dir volume.Dir) (spool.Extent, error) {
	r, err := spool.OpenReader(dir.Spool(), 1)
	if err != nil {
		return spool.Extent{}, err
	}
	e, err := r.Extent()
	for errors.Is(err, fs.ErrNotExist) { // it was released between being found and being opened
		e, err = r.Extent()
	}
	return e, errors.Join(err, r.Close())
}

func readOr(name, otherwise string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return otherwise
	}
	return string(text)
}

func appendForever(dir volume.Dir) error {
	w := &writer{dir: dir}
	var err error
	if w.boot, err = record.NewBoot(rand.Reader); err != nil {
		return err
	}
	o := spoolOptions()
	o.SegmentSize = 256 << 10
	if w.spool, err = spool.Open(dir.Spool(), o); err != nil {
		return err
	}
	if err := w.begin(); err != nil {
		return err
	}
	var out sync.Mutex
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for {
				w.mu.RLock()
				seq, hash, err := w.add(gapOf())
				full := w.chain.Size() > shardLimit
				w.mu.RUnlock()
				out.Lock()
				if err == nil {
					fmt.Printf("ack %d %s\n", seq, hash)
				} else {
					fmt.Printf("!%v\n", err)
				}
				out.Unlock()
				if full {
					w.mu.Lock()
					if w.chain.Size() > shardLimit {
						err = w.turn()
					}
					w.mu.Unlock()
				}
				if err != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return errors.New("ended")
}

// kill -9 of sealer and appender under load, 50 times on one volume, over changes of shards: no
// acknowledged record is missing, none is there twice, and all stand in order.
func TestKilledUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	b := &book{dir: volume.Dir(t.TempDir()), replica: "meshvakt-0"}
	if err := b.dir.Create(); err != nil {
		t.Fatal(err)
	}
	acked := map[uint64]record.Hash{}
	rng := mathrand.New(mathrand.NewPCG(1, 2))
	for life := range lives {
		killBoth(t, b.dir, life, 50+rng.IntN(400), acked)
	}
	c := b.config()
	s := openSealer(t, c)
	mustPass(t, s)
	var line uint64
	shards, err := shardsIn(b.dir.Logs())
	if err != nil {
		t.Fatal(err)
	}
	for _, shard := range shards {
		_, entries, err := verifyLog(logOf(t, b.dir, shard), b.verifier(t, shard))
		if err != nil {
			t.Fatalf("%s: %v", shard, err)
		}
		var chain record.Chain
		for i, e := range entries {
			line++
			if i == 0 {
				r, err := record.Parse(e)
				if err != nil {
					t.Fatal(err)
				}
				chain = record.Begin(r.Prev)
			}
			if _, chain, err = chain.Follow(e); err != nil {
				t.Fatalf("%s: %v", shard, err)
			}
			if want, is := acked[line]; is && want != record.HashOf(e) {
				t.Fatalf("record %d of %s is not that which was acknowledged as line %d", i, shard, line)
			}
			delete(acked, line)
		}
	}
	if len(acked) != 0 {
		t.Errorf("%d acknowledged records are missing", len(acked))
	}
	t.Logf("%d records in %d shards after %d kills of both processes", line, len(shards), lives)
}

func killBoth(t *testing.T, dir volume.Dir, life, answers int, acked map[uint64]record.Hash) {
	t.Helper()
	start := func(role string) (*exec.Cmd, *bufio.Scanner) {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$")
		child.Env = append(os.Environ(), childDirectory+"="+string(dir), childRole+"="+role)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		return child, bufio.NewScanner(out)
	}
	sealer, sealerOut := start("seal")
	appender, appenderOut := start("append")
	told := make(chan struct{})
	go func() {
		defer close(told)
		for sealerOut.Scan() {
			if line := sealerOut.Text(); strings.HasPrefix(line, "!") {
				t.Errorf("life %d: %s", life, line)
			}
		}
	}()
	n := 0
	for appenderOut.Scan() {
		var seq uint64
		var text string
		var hash record.Hash
		line := appenderOut.Text()
		if strings.HasPrefix(line, "!") {
			t.Errorf("life %d: %s", life, line)
		}
		// The last line may be cut by the kill; then its caller was not told.
		if _, err := fmt.Sscanf(line, "ack %d %s", &seq, &text); err != nil || len(text) != 64 {
			continue
		}
		if _, err := hex.Decode(hash[:], []byte(text)); err != nil {
			t.Fatal(err)
		}
		acked[seq] = hash
		if n++; n == answers {
			// Which of the two goes first is the scheduler's choice.
			for _, c := range []*exec.Cmd{sealer, appender} {
				if err := c.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if n < answers {
		t.Errorf("life %d: the appender ended by itself after %d records", life, n)
		_ = sealer.Process.Kill()
	}
	<-told
	if t.Failed() {
		t.FailNow()
	}
	_, _ = appender.Wait(), sealer.Wait() // killed
}
