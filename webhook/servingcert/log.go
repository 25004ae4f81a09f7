package servingcert

import (
	"context"
	"log/slog"

	"github.com/go-logr/logr"
)

// withLog hands our log to cert-manager's library, which takes it from the
// context.
func withLog(ctx context.Context, log *slog.Logger) context.Context {
	return logr.NewContext(ctx, logr.FromSlogHandler(quiet{log.Handler()}))
}

// quiet turns what cert-manager logs as information, every attempt included,
// into debug output. Errors stay errors.
type quiet struct{ inner slog.Handler }

func quieter(l slog.Level) slog.Level {
	if l < slog.LevelWarn {
		return min(l, slog.LevelDebug)
	}
	return l
}

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return q.inner.Enabled(ctx, quieter(l))
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = quieter(r.Level)
	return q.inner.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.inner.WithAttrs(attrs)} }

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.inner.WithGroup(name)} }
