package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// auditFlags name the audit log that logs are held against.
type auditFlags struct{ files []string }

func (f *auditFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.files, "audit-log", nil, "audit log of the API servers of one cluster (audit.k8s.io/v1, JSON lines, perhaps gzip), whose receipts the logs must keep and which may tell of times that nobody saw; repeatable: all files of all its API servers")
}

// read returns nil without any file.
func (f *auditFlags) read() (*verify.Audit, error) {
	if len(f.files) == 0 {
		return nil, nil
	}
	a := verify.NewAudit()
	for _, name := range f.files {
		if err := readAudit(a, name); err != nil {
			return nil, fmt.Errorf("--audit-log: %w", err)
		}
	}
	return a, nil
}

func readAudit(a *verify.Audit, name string) (err error) {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	buffered := bufio.NewReader(file)
	var text io.Reader = buffered
	if magic, _ := buffered.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) { // what is shorter is none
		unzipped, err := gzip.NewReader(buffered)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		text = unzipped
	}
	return a.Read(name, text)
}
