package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

const modulePath = "github.com/meshvakt/meshvakt/test/controlplane"

// module is what the go command says about one module of the build list.
type module struct {
	Path    string
	Version string
	Dir     string
}

// binariesDir finds the directory that holds the pinned modules. They are modules of
// their own, so the Go proxy would not deliver them with this one: a replace directive
// that points into a checkout is the only way another module can use this package.
func binariesDir(ctx context.Context) (string, error) {
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Dir(file)
	if !filepath.IsAbs(file) { // built with -trimpath
		out, err := goCommand(ctx, ".", "list", "-m", "-f", "{{.Dir}}", modulePath)
		if err != nil {
			return "", fmt.Errorf("find the source of %s: %w", modulePath, err)
		}
		root = strings.TrimSpace(string(out))
	}
	dir := filepath.Join(root, "binaries")
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("find the pinned modules: %w", err)
	}
	return dir, nil
}

// downloadModule returns a module of the pinned module in dir, with its source on disk.
func downloadModule(ctx context.Context, dir, path string) (module, error) {
	out, err := goCommand(ctx, dir, "mod", "download", "-json", path)
	if err != nil {
		return module{}, fmt.Errorf("download %s: %w", path, err)
	}
	var m module
	if err := json.Unmarshal(out, &m); err != nil {
		return module{}, fmt.Errorf("download %s: %w", path, err)
	}
	return m, nil
}

// moduleVersion reads the version that the pinned module in dir selects.
func moduleVersion(ctx context.Context, dir, path string) (string, error) {
	out, err := goCommand(ctx, dir, "list", "-m", "-f", "{{.Version}}", path)
	if err != nil {
		return "", fmt.Errorf("read the version of %s: %w", path, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// goCommand runs a short go command in dir and returns what it printed.
func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = goEnvironment()
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(exit.Stderr))
	}
	if err != nil {
		return nil, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// goEnvironment makes the go command ignore the caller's workspace and flags, which
// would change what is built without changing the name it is cached under. GOFLAGS
// gets a harmless value because an empty one falls back to "go env -w".
func goEnvironment() []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly")
}
