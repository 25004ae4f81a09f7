package verify

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"

	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

const (
	// maxCheckpoint has room for the signatures of many witnesses.
	maxCheckpoint = 64 << 10
	// maxManifest is for the list of all tiles of five million records.
	maxManifest = 32 << 20
)

// Source is one log as it lies somewhere: a checkpoint and tiles, by the paths of C2SP tlog-tiles.
type Source struct {
	// Name is what it is called in errors before its origin is known: never a path.
	Name  string
	files files
	close io.Closer
}

// Close ends the reading of s.
func (s *Source) Close() error {
	if s.close == nil {
		return nil
	}
	return s.close.Close()
}

// files reads whole files, none longer than most. A file that is not there is fs.ErrNotExist.
type files interface {
	read(ctx context.Context, name string, most int) ([]byte, error)
}

// Open finds the logs in input: a bundle (zip), the directory of a log, the directory of a
// replica's evidence, or the http or https URL of a log. Of any other directory, such as a copy of a
// mirror, it is all that lies below.
func Open(input string, client *http.Client) ([]*Source, error) {
	if u, err := url.Parse(input); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		return []*Source{{Name: u.Redacted(), files: &remote{strings.TrimSuffix(input, "/"), client}}}, nil
	}
	info, err := os.Stat(input)
	if err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	if !info.IsDir() {
		return openBundle(input)
	}
	if _, err := os.Stat(path.Join(input, "checkpoint")); err == nil {
		return openLog(input)
	}
	if _, err := os.Stat(volume.Dir(input).Logs()); errors.Is(err, fs.ErrNotExist) {
		return openAllBelow(input, maxDepth)
	}
	return openReplica(volume.Dir(input))
}

// maxDepth is how far below a directory logs are looked for: NAME, of several parts, CLUSTER, REPLICA.
const maxDepth = 10

// openAllBelow opens bundles and what Open takes for a directory of logs, and follows no links.
func openAllBelow(dir string, depth int) (all []*Source, err error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open evidence: %w", err)
	}
	for _, e := range list {
		name := path.Join(dir, e.Name())
		var some []*Source
		switch {
		case e.Type().IsRegular() && strings.HasSuffix(e.Name(), ".zip"):
			some, err = openBundle(name)
		case !e.IsDir() || depth == 0:
		case exists(name, "checkpoint"):
			some, err = openLog(name)
		case exists(name, "logs"):
			some, err = openReplica(volume.Dir(name))
		default:
			if some, err = openAllBelow(name, depth-1); errors.Is(err, errNothing) {
				err = nil
			}
		}
		all = append(all, some...)
		if err != nil {
			return all, err
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("open evidence: %w: %s is no log, no bundle and no directory of a replica's evidence, and none lies below", errNothing, path.Base(dir))
	}
	return all, nil
}

var errNothing = errors.New("there is none")

func exists(dir, name string) bool {
	_, err := os.Stat(path.Join(dir, name))
	return err == nil
}

func openLog(dir string) ([]*Source, error) {
	// Through a root, no link leads out of the directory.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return []*Source{{Name: "log " + path.Base(dir), files: tree{regular{root.FS()}}, close: root}}, nil
}

func openBundle(file string) ([]*Source, error) {
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open bundle %s: it is of mode %s; must be a regular file", path.Base(file), info.Mode())
	}
	z, err := zip.OpenReader(file)
	if err != nil {
		return nil, fmt.Errorf("open bundle %s: %w", path.Base(file), err)
	}
	s := &Source{Name: "bundle " + path.Base(file), files: tree{z}, close: z}
	if err := plainNames(&z.Reader); err != nil {
		s.files = unreadable{err}
	}
	return []*Source{s}, nil
}

// plainNames returns an error for a bundle that is not the same for all who read it: of two files of one name some take the
// first and some the last, and some take other names for the same.
func plainNames(z *zip.Reader) error {
	names := make(map[string]bool, len(z.File))
	for _, f := range z.File {
		name := strings.TrimSuffix(f.Name, "/") // of a directory
		if names[name] || !fs.ValidPath(name) || strings.Contains(name, `\`) {
			return fmt.Errorf("the bundle has a file %q; must have each once, by its path within the bundle", f.Name)
		}
		names[name] = true
	}
	return nil
}

// unreadable is what proves nothing, whatever it has.
type unreadable struct{ err error }

func (u unreadable) read(context.Context, string, int) ([]byte, error) { return nil, u.err }

// openReplica takes the log of each shard and its bundle. Where there are both, neither may say what the other does not: the
// bundle may lie where nobody can write over it.
func openReplica(dir volume.Dir) ([]*Source, error) {
	var all []*Source
	add := func(list []*Source, err error) error {
		all = append(all, list...)
		return err
	}
	logs, err := os.ReadDir(dir.Logs())
	if err != nil {
		return nil, fmt.Errorf("open evidence: it is no log, no bundle and no directory of a replica's evidence: %w", err)
	}
	for _, l := range logs {
		if _, err := os.Stat(path.Join(dir.Log(l.Name()), "checkpoint")); err != nil {
			continue // no checkpoint has been signed yet, so there is nothing to verify
		}
		if err := add(openLog(dir.Log(l.Name()))); err != nil {
			return all, err
		}
	}
	bundles, err := os.ReadDir(dir.Bundles())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return all, fmt.Errorf("open evidence: %w", err)
	}
	for _, b := range bundles {
		if !strings.HasSuffix(b.Name(), ".zip") {
			continue
		}
		if err := add(openBundle(path.Join(dir.Bundles(), b.Name()))); err != nil {
			return all, err
		}
	}
	if len(all) == 0 {
		return nil, errors.New("open evidence: the directory has no log with a checkpoint and no bundle")
	}
	return all, nil
}

// regular has regular files alone. To open a pipe that somebody has left in a directory would never end.
type regular struct{ fs.FS }

func (r regular) Open(name string) (fs.File, error) {
	info, err := fs.Stat(r.FS, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is of mode %s; must be a regular file", name, info.Mode())
	}
	return r.FS.Open(name)
}

type tree struct{ fs.FS }

func (t tree) read(_ context.Context, name string, most int) ([]byte, error) {
	f, err := t.Open(name)
	if err != nil {
		return nil, err
	}
	// How long a file is said to be saves copying it again and again; what comes out is what counts.
	var said int64
	if info, err := f.Stat(); err == nil {
		said = max(0, min(info.Size(), int64(most)))
	}
	text := bytes.NewBuffer(make([]byte, 0, said+bytes.MinRead))
	_, err = text.ReadFrom(io.LimitReader(f, int64(most)+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if text.Len() > most {
		return nil, fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return text.Bytes(), nil
}

type remote struct {
	base   string
	client *http.Client
}

func (r *remote) read(ctx context.Context, name string, most int) (text []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+"/"+name, nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: the server answers %s", name, resp.Status)
	}
	if text, err = io.ReadAll(io.LimitReader(resp.Body, int64(most)+1)); err != nil {
		return nil, err
	}
	if len(text) > most {
		return nil, fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return text, nil
}
