package seal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// resume finds out from the disk how far sealing has come. It returns nil, and no error, while
// there is no spool yet. Up to the moment where it is sure, it changes nothing.
func (s *Sealer) resume() (_ *place, err error) {
	reader, err := spool.OpenReader(s.config.Dir.Spool(), 1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &place{reader: reader}
	defer func() {
		if err != nil {
			for _, l := range p.logs {
				l.stop()
			}
			err = errors.Join(err, p.reader.Close())
		}
	}()
	if err := s.openLogs(p); err != nil {
		return nil, err
	}
	extent, err := reader.Extent()
	if err != nil {
		return nil, err
	}
	if extent.Last == 0 {
		for _, l := range p.logs {
			l.stop()
		}
		return nil, reader.Close()
	}
	if p.next, err = s.find(p, extent); err != nil {
		return nil, err
	}
	if err := reader.Close(); err != nil {
		return nil, err
	}
	if p.reader, err = spool.OpenReader(s.config.Dir.Spool(), p.next); err != nil {
		return nil, err
	}
	for _, l := range p.logs {
		l.before += int64(p.next) - 1 - p.total
	}
	for _, l := range p.logs {
		if n, err := l.removeStale(); err != nil {
			return nil, err
		} else if n > 0 {
			s.config.Log.Info("removed files that were not finished", "shard", l.shard, "files", n)
		}
	}
	s.setOpen(p.logs)
	s.config.Log.Info("sealing goes on", "line", p.next, "shard", p.end.shard, "records", p.end.size)
	return p, nil
}

// openLogs opens those that are not finished, and looks up the end of the last one.
func (s *Sealer) openLogs(p *place) error {
	shards, err := shardsIn(s.config.Dir.Logs())
	if err != nil {
		return err
	}
	for i, shard := range shards {
		if _, err := os.Stat(s.config.Dir.Tombstone(shard)); err == nil {
			continue
		}
		key, err := existingKey(s.config.Dir, shard)
		if errors.Is(err, errNoLog) {
			continue // it was being made, and its genesis is in the spool still
		}
		if err != nil {
			return err
		}
		l, err := openLog(s.config.Dir.Log(shard), shard, key, s.config.Witnesses, s.config.Stall)
		if err != nil {
			return err
		}
		if l.size == 0 {
			l.stop()
			continue
		}
		last, err := l.entry(l.size-1, l.size)
		if err != nil {
			l.stop()
			return err
		}
		chain, err := record.Resume(last)
		if err != nil || chain.Size() != uint64(l.size) {
			l.stop()
			return &PartedError{fmt.Sprintf("the last of %d records in the log of shard %s is record %d of its chain (%v)", l.size, shard, int64(chain.Size())-1, err)}
		}
		// A log that another follows gets no more records, even if its spool was lost before its close.
		l.closed = chain.Closed() || i < len(shards)-1
		l.before = p.total
		p.total += l.size
		p.chain = chain
		p.end = end{shard: shard, origin: l.signer.Name(), size: l.size, hash: chain.Last()}
		if l.finished() {
			l.stop()
			continue
		}
		p.logs = append(p.logs, l)
	}
	return nil
}

// find returns the line to seal next.
func (s *Sealer) find(p *place, e spool.Extent) (uint64, error) {
	if p.end.shard == "" && e.First == 1 {
		return 1, nil
	}
	if p.end.shard == "" {
		return 0, &PartedError{fmt.Sprintf("the spool begins with line %d and there is no log that holds the %d before it", e.First, e.First-1)}
	}
	if e.Before == p.end.hash {
		return e.First, nil
	}
	hint, err := s.config.Dir.ReadSealed()
	if err != nil {
		hint = volume.Sealed{} // advice
	}
	for _, from := range slices.Compact([]uint64{max(min(hint.Line, e.Last), e.First), e.First}) {
		line, err := lookUp(s.config.Dir, from, p.end.hash)
		if err != nil {
			return 0, err
		}
		if line > 0 {
			return line + 1, nil
		}
	}
	return s.anew(p, e)
}

// lookUp finds the line with a hash; 0: there is none.
func lookUp(dir volume.Dir, from uint64, hash record.Hash) (_ uint64, err error) {
	r, err := spool.OpenReader(dir.Spool(), from)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for line, err := range r.Lines() {
		if err != nil {
			return 0, err
		}
		if line.Hash == hash {
			return line.Seq, nil
		}
	}
	return 0, nil
}

// anew takes a spool that begins with a shard of its own behind those that there are: the one
// before was lost, or moved away because it was damaged. The log that it had filled stays without
// its close, which whoever verifies it is told.
func (s *Sealer) anew(p *place, e spool.Extent) (uint64, error) {
	parted := &PartedError{fmt.Sprintf("the log of shard %s ends with record %d (%s), and the spool, with lines %d to %d, does not have it", p.end.shard, p.end.size-1, p.end.hash, e.First, e.Last)}
	if e.First != 1 {
		return 0, parted
	}
	r, err := spool.OpenReader(s.config.Dir.Spool(), 1)
	if err != nil {
		return 0, err
	}
	var genesis *record.Genesis
	for line, err := range r.Lines() {
		if err != nil {
			return 0, errors.Join(err, r.Close())
		}
		if first, err := record.Parse(line.Text); err == nil {
			genesis, _ = first.Body.(*record.Genesis)
		}
		break
	}
	if err := r.Close(); err != nil {
		return 0, err
	}
	if genesis == nil || compareShards(genesis.Shard, p.end.shard) <= 0 || !sameReplica(genesis.Origin, p.end.origin) {
		return 0, parted
	}
	s.config.Log.Warn("the spool begins anew; what the one before had and was not sealed is lost", "shard", p.end.shard, "records", p.end.size, "next", genesis.Shard)
	if n := len(p.logs); n > 0 {
		p.logs[n-1].closed = true
	}
	p.end.shard, p.end.hash = "", record.Hash{}
	return 1, nil
}

func sameReplica(a, b string) bool {
	name1, cluster1, replica1, _, err1 := volume.SplitOrigin(a)
	name2, cluster2, replica2, _, err2 := volume.SplitOrigin(b)
	return err1 == nil && err2 == nil && name1 == name2 && cluster1 == cluster2 && replica1 == replica2
}

// begin opens the log of the shard that line begins.
func (s *Sealer) begin(line spool.Line) (*shardLog, record.Chain, error) {
	p := s.place
	parted := func(format string, a ...any) error {
		return &PartedError{fmt.Sprintf("line %d of the spool: ", line.Seq) + fmt.Sprintf(format, a...)}
	}
	r, err := record.Parse(line.Text)
	if err != nil {
		return nil, record.Chain{}, parted("it must begin a shard: %v", err)
	}
	g, is := r.Body.(*record.Genesis)
	if !is {
		return nil, record.Chain{}, parted("it is of kind %s; must be of kind %s, as no shard is open", r.Body.Kind(), record.KindGenesis)
	}
	_, cluster, replica, shard, err := volume.SplitOrigin(g.Origin)
	if err != nil || shard != g.Shard || cluster != g.Cluster || replica != g.Replica {
		return nil, record.Chain{}, parted("origin %q is not that of shard %q of %s in cluster %s", g.Origin, g.Shard, g.Replica, g.Cluster)
	}
	chain := record.Begin(r.Prev)
	if p.end.shard != "" {
		chain = record.Begin(p.end.hash)
		if g.PrevOrigin != p.end.origin || g.PrevSize != uint64(p.end.size) || compareShards(g.Shard, p.end.shard) <= 0 {
			return nil, record.Chain{}, parted("shard %s follows %q with %d records; must follow %q with %d", g.Shard, g.PrevOrigin, g.PrevSize, p.end.origin, p.end.size)
		}
	}
	if _, _, err := chain.Follow(line.Text); err != nil {
		return nil, record.Chain{}, parted("%v", err)
	}
	if _, err := os.Stat(s.config.Dir.Tombstone(g.Shard)); err == nil {
		return nil, record.Chain{}, parted("shard %s has a tombstone", g.Shard)
	}
	key, err := s.config.Dir.LogKey(g.Shard, g.Origin, s.config.Random)
	if err != nil {
		return nil, record.Chain{}, err
	}
	if !slices.Contains(g.Keys, key.Verifier) {
		return nil, record.Chain{}, parted("shard %s names %q as its keys; the key that is here is %q", g.Shard, g.Keys, key.Verifier)
	}
	l, err := openLog(s.config.Dir.Log(g.Shard), g.Shard, key, s.config.Witnesses, s.config.Stall)
	if err != nil {
		return nil, record.Chain{}, err
	}
	l.before = int64(line.Seq) - 1
	p.logs = append(p.logs, l)
	if l.size != 0 {
		return nil, record.Chain{}, parted("shard %s begins, and its log has %d records", g.Shard, l.size)
	}
	return l, chain, nil
}

// errNoLog says that a directory of logs has none in it.
var errNoLog = errors.New("there is no log")

// existingKey is the key of a log that is there. No key is made for one.
func existingKey(dir volume.Dir, shard string) (volume.LogKey, error) {
	signed, err := files{dir.Log(shard)}.read("checkpoint")
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(dir.Log(shard) + "/tile"); err == nil {
			return volume.LogKey{}, &PartedError{fmt.Sprintf("the log of shard %s has records and no checkpoint", shard)}
		}
		return volume.LogKey{}, fmt.Errorf("log of shard %s: %w", shard, errNoLog)
	}
	if err != nil {
		return volume.LogKey{}, fmt.Errorf("read the checkpoint of shard %s: %w", shard, err)
	}
	origin, _, _ := strings.Cut(string(signed), "\n")
	if _, err := os.Stat(dir.LogKeyFile(shard)); err != nil {
		return volume.LogKey{}, fmt.Errorf("the log of shard %s has no key: %w", shard, err)
	}
	key, err := dir.LogKey(shard, origin, nil)
	if err != nil {
		return volume.LogKey{}, err
	}
	v, err := note.NewVerifier(key.Verifier)
	if err == nil {
		_, err = note.Open(signed, note.VerifierList(v))
	}
	if err != nil {
		return volume.LogKey{}, &PartedError{fmt.Sprintf("the checkpoint of shard %s is not signed by the key that is here: %v", shard, err)}
	}
	return key, nil
}

// shardsIn lists the shards that have something in a directory, oldest first.
func shardsIn(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list shards: %w", err)
	}
	var shards []string
	for _, e := range list {
		if _, _, err := volume.ParseShard(e.Name()); err == nil {
			shards = append(shards, e.Name())
		}
	}
	slices.SortFunc(shards, compareShards)
	return shards, nil
}

// compareShards orders by time. What is no shard comes first.
func compareShards(a, b string) int {
	p1, n1, _ := volume.ParseShard(a)
	p2, n2, _ := volume.ParseShard(b)
	if p1 != p2 {
		return strings.Compare(string(p1), string(p2))
	}
	return n1 - n2
}
