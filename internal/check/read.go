package check

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Stdin is the path that stands for standard input.
const Stdin = "-"

// Read reads the objects of files, of directories with everything below them
// (files named *.yaml, *.yml and *.json; names that begin with a dot are passed
// over), and of standard input. The errors of all files are reported together.
func Read(stdin io.Reader, paths ...string) ([]Document, error) {
	var docs []Document
	var errs []error
	for _, path := range paths {
		found, err := readPath(stdin, path)
		if err != nil {
			errs = append(errs, err)
		}
		docs = append(docs, found...)
	}
	return docs, errors.Join(errs...)
}

func readPath(stdin io.Reader, path string) ([]Document, error) {
	if path == Stdin {
		data, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return Parse("stdin", data)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return readFile(path)
	}
	files, err := manifests(path)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: no files named *.yaml, *.yml or *.json", path)
	}
	var docs []Document
	var errs []error
	for _, file := range files {
		found, err := readFile(file)
		if err != nil {
			errs = append(errs, err)
		}
		docs = append(docs, found...)
	}
	return docs, errors.Join(errs...)
}

// manifests lists the files of a directory in lexical order.
func manifests(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := path != dir && strings.HasPrefix(entry.Name(), ".")
		switch {
		case entry.IsDir() && hidden:
			return filepath.SkipDir
		case entry.IsDir() || hidden || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
			return nil
		}
		// A mounted ConfigMap is made of symbolic links.
		if info, err := os.Stat(path); err != nil {
			return err
		} else if info.Mode().IsRegular() {
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

func readFile(path string) ([]Document, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data)
}

// In puts the objects that name no namespace into the given one, "" for none. Of those
// that are in no namespace it changes nothing that counts.
func In(namespace string, docs []Document) []Document {
	if namespace == "" {
		return docs
	}
	for i := range docs {
		if docs[i].Namespace == "" && !clusterScoped(docs[i].Kind.GroupKind()) {
			docs[i].Namespace = namespace
		}
	}
	return docs
}
