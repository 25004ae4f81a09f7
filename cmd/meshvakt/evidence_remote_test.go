package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A server that cannot be reached, or does not give what it has, says nothing of the log: the status is neither that of a
// log that is not whole nor that of a claim.
func TestEvidenceOfAServerThatFails(t *testing.T) {
	dir, key := hour(t)
	files := http.StripPrefix("/logs/2026q4", http.FileServer(http.Dir(dir)))
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request) bool // reports whether it has
		path   string
		code   int
		says   string
	}{
		"in order":       {nil, "/logs/2026q4", 0, ""},
		"no such log":    {nil, "/logs/2026q3", 4, "must be the URL of a log"},
		"not allowed":    {status(http.StatusForbidden, "/checkpoint"), "/logs/2026q4", 4, "403 Forbidden"},
		"fails later":    {status(http.StatusBadGateway, "/tile/"), "/logs/2026q4", 4, "502 Bad Gateway"},
		"ends too early": {cut("/tile/entries/"), "/logs/2026q4", 4, "unexpected EOF"},
		"lacks a tile":   {status(http.StatusNotFound, "/tile/entries/"), "/logs/2026q4", 3, ""},
		"has another":    {other("/tile/entries/"), "/logs/2026q4", 3, ""},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if c.answer == nil || !c.answer(w, r) {
				files.ServeHTTP(w, r)
			}
		}))
		for _, command := range []string{"verify", "inspect"} {
			_, stderr, code := evidenceCommand(command, server.URL+c.path, "--key", key)
			if code != c.code || !strings.Contains(stderr, c.says) {
				t.Errorf("%s: %s ends with %d, must be %d and say %q\n%s", name, command, code, c.code, c.says, stderr)
			}
		}
		server.Close()
	}
	// At port 0 nobody can listen; that of a server which is gone may be another's by now.
	if _, stderr, code := evidenceCommand("verify", "http://127.0.0.1:0/logs/2026q4", "--key", key); code != 4 || !strings.Contains(stderr, "connection refused") {
		t.Errorf("where nobody listens: exit %d\n%s", code, stderr)
	}
}

func status(code int, part string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		w.WriteHeader(code)
		return true
	}
}

// cut promises more than it gives.
func cut(part string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte("some"))
		return true
	}
}

// other gives something whole that is not what the log has.
func other(part string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		_, _ = w.Write([]byte("\x00\x04some"))
		return true
	}
}
