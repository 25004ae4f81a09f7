package snapshot

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
)

const (
	headerKind = "ClusterSnapshot"
	// format is the version of the file; another one is refused.
	format = 1
	// largest bounds what a compressed file may come to.
	largest = 4 << 30
)

// header is the first document of a file.
type header struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Format     int         `json:"format"`
	Taken      metav1.Time `json:"taken"`
	Kubernetes string      `json:"kubernetes"`
	Absent     []string    `json:"absent,omitempty"`
	Missing    []Right     `json:"missing,omitempty"`
}

// Save writes the snapshot to a file, compressed when the name ends in .gz. Others may
// not read the file: it says where a cluster is weak.
func (s *Snapshot) Save(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(0o600); err != nil { // of one that was there
		return err
	}
	if !strings.HasSuffix(path, ".gz") {
		return s.Write(f)
	}
	z := gzip.NewWriter(f)
	return errors.Join(s.Write(z), z.Close())
}

// Write writes the snapshot as YAML documents, each of them one line of JSON, which is
// YAML too and read many times as fast.
func (s *Snapshot) Write(w io.Writer) error {
	h := header{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: headerKind},
		Format:   format, Taken: metav1.NewTime(s.Taken), Kubernetes: s.Kubernetes, Absent: s.Absent, Missing: s.Missing,
	}
	h.Metadata.Name = "cluster"
	text, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("write the head of the snapshot: %w", err)
	}
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "# What Meshvakt's policies read of a cluster; written by meshvakt check --save-state.\n---\n%s\n", text)
	for i := range s.Documents {
		fmt.Fprintf(b, "---\n%s\n", s.Documents[i].JSON)
	}
	return b.Flush() // which returns the first error of all
}

// Load reads a file that Save has written.
func Load(path string) (*Snapshot, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		if data, err = unpack(data); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	docs, err := check.Parse(path, data)
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 || docs[0].Kind.Kind != headerKind || docs[0].Kind.Group != v1alpha1.Group {
		return nil, fmt.Errorf("%s: not a snapshot: the first document must be a %s; meshvakt check --save-state writes one", path, headerKind)
	}
	var h header
	if err := json.Unmarshal(docs[0].JSON, &h); err != nil {
		return nil, fmt.Errorf("%s: read the head of the snapshot: %w", path, err)
	}
	if h.Format != format {
		return nil, fmt.Errorf("%s: format %d of a snapshot; must be %d: write it anew with this version of meshvakt", path, h.Format, format)
	}
	s := &Snapshot{Taken: h.Taken.UTC().Truncate(time.Second), Kubernetes: h.Kubernetes, Absent: h.Absent, Missing: h.Missing, Documents: docs[1:]}
	for i := range s.Documents {
		s.Documents[i].Stored = true
	}
	return s, nil
}

func unpack(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	data, err = io.ReadAll(io.LimitReader(z, largest+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("unpack: %w", err)
	case len(data) > largest:
		return nil, fmt.Errorf("unpack: more than %d GiB", largest>>30)
	}
	return data, nil
}
