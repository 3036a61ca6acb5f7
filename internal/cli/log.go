package cli

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"strconv"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// keyPos is the field that says which line of the source wrote a line of the log (spec vm.md VM-214).
const keyPos = "pos"

// WithLogger returns a context whose logger (klog.FromContext) writes JSON lines to w, each with time, level, pos and msg.
// Lines of logger.V(n) are written up to n = verbosity.
func WithLogger(ctx context.Context, w io.Writer, verbosity int) context.Context {
	return WithLiveLogger(ctx, w, Level(verbosity))
}

// WithLiveLogger is WithLogger for a verbosity that may change while the program runs: level is asked for every line.
func WithLiveLogger(ctx context.Context, w io.Writer, level slog.Leveler) context.Context {
	handler := slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, AddSource: true, ReplaceAttr: plain})
	logger := logr.FromSlogHandler(handler)
	klog.SetLogger(logger) // libraries of Kubernetes log to the global logger
	return klog.NewContext(ctx, logger)
}

// Level is the level of the least important lines that a verbosity lets pass.
func Level(verbosity int) slog.Level { return slog.Level(-verbosity) }

// plain makes a level one word, since that of logger.V(2) would be DEBUG+2, and the source one short text.
func plain(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	switch value := a.Value.Any().(type) {
	case slog.Level:
		if a.Key == slog.LevelKey {
			return slog.String(slog.LevelKey, word(value))
		}
	case *slog.Source:
		if a.Key == slog.SourceKey {
			return slog.String(keyPos, position(value))
		}
	}
	return a
}

func word(level slog.Level) string {
	switch {
	case level < slog.LevelInfo:
		return slog.LevelDebug.String()
	case level < slog.LevelWarn:
		return slog.LevelInfo.String()
	case level < slog.LevelError:
		return slog.LevelWarn.String()
	default:
		return slog.LevelError.String()
	}
}

// position is folder, file and line.
func position(source *slog.Source) string {
	dir, file := filepath.Split(source.File)
	return filepath.Join(filepath.Base(dir), file) + ":" + strconv.Itoa(source.Line)
}
