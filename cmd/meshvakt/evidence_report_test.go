package main

import (
	"bytes"
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// hourLog is one replica's log of an hour from 2026-10-01T00:00Z, in which payments took plaintext for a while, without
// anybody having asked to.
type hourLog struct {
	t      *testing.T
	chain  record.Chain
	random *rand.ChaCha8
	lines  [][]byte
	people record.Pseudonymiser
}

func (h *hourLog) add(at time.Duration, body record.Body) {
	h.t.Helper()
	begin := time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)
	link, next, err := h.chain.Next(body, "0123456789abcdef0123456789abcdef", begin.Add(at), at, h.random)
	if err != nil {
		h.t.Fatal(err)
	}
	h.chain = next
	h.lines = append(h.lines, link.Line)
}

func (h *hourLog) row(least string) record.Row {
	version := h.people.Digest([]byte(least))
	in := []record.Input{{Object: record.Object{GVK: "security.istio.io/v1/PeerAuthentication", Namespace: "payments", Name: version, UID: "pa", Generation: 1, Digest: version}, ResourceVersion: least}}
	hash, err := record.HashInputs(in)
	if err != nil {
		h.t.Fatal(err)
	}
	return record.Row{Namespace: "payments", UID: "ns", Guards: []string{"default"}, GuardsN: 1, Mode: least, Least: least, Unexcused: least, Authorization: "none", Inputs: in, InputsN: 1, InputsHash: hash}
}

func (h *hourLog) beat(minute int, row record.Row) {
	hash, err := record.HashRow(row)
	if err != nil {
		h.t.Fatal(err)
	}
	h.add(time.Duration(minute)*time.Minute, &record.Beat{Table: record.HashTable([]record.Hash{hash}), RowsN: 1, Guards: h.people.Digest([]byte("guards")),
		Watches: []record.Watch{{GVK: "security.istio.io/v1/PeerAuthentication", ResourceVersion: "1", Epoch: 1, Healthy: true}},
		Hooks:   []record.Hook{{GVK: "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration", Name: "meshvakt", UID: "h", ResourceVersion: "1", Digest: h.people.Digest([]byte("hook")), Failure: "Fail"}}, Enforcing: true})
}

const hourOrigin = "evidence.example.org/9a7ab2d8-1bb9-4f4c-9a3e-0f4c4b1d2e3f/meshvakt-0/2026q4"

// hour returns the directory of the log in C2SP tlog-tiles, and the key that has signed it.
func hour(t *testing.T) (dir, key string) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{7})
	secret, key, err := note.GenerateKey(random, hourOrigin)
	if err != nil {
		t.Fatal(err)
	}
	pseudonyms, err := record.NewKey(random)
	if err != nil {
		t.Fatal(err)
	}
	h := &hourLog{t: t, random: random, people: record.NewPseudonymiser(pseudonyms), chain: record.Begin(record.Hash{})}
	h.add(0, &record.Genesis{Origin: hourOrigin, Cluster: "9a7ab2d8-1bb9-4f4c-9a3e-0f4c4b1d2e3f", Replica: "meshvakt-0", Shard: "2026q4", Keys: []string{key}, Pseudonyms: pseudonyms.ID()})
	h.add(0, &record.Boot{Why: record.BootStart, Pod: "pod", Node: "node-a", Version: "v0.2.0", Durability: "spool", Mode: "bestEffort", BeatSeconds: 60})
	row := h.row("STRICT")
	parts, err := record.Snapshots("boot", time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC), []record.Row{row})
	if err != nil {
		t.Fatal(err)
	}
	h.add(0, parts[0])
	for minute := range 61 {
		if minute == 20 || minute == 30 {
			row = h.row(map[int]string{20: "PERMISSIVE", 30: "STRICT"}[minute])
			at := time.Duration(minute) * time.Minute
			h.add(at, &record.State{What: "set", After: time.Date(2026, 10, 1, 0, minute, 0, 0, time.UTC), Row: row})
		}
		h.beat(minute, row)
	}
	return h.write(secret), key
}

// write lays out fewer records than fill a tile.
func (h *hourLog) write(secret string) string {
	h.t.Helper()
	var entries, leaves []byte
	var stored tlog.HashReaderFunc
	var hashes []tlog.Hash
	stored = func(list []int64) (out []tlog.Hash, err error) {
		for _, i := range list {
			out = append(out, hashes[i])
		}
		return out, nil
	}
	for i, line := range h.lines {
		added, err := tlog.StoredHashes(int64(i), line, stored)
		if err != nil {
			h.t.Fatal(err)
		}
		hashes = append(hashes, added...)
		leaf := tlog.RecordHash(line)
		leaves = append(leaves, leaf[:]...)
		entries = append(binary.BigEndian.AppendUint16(entries, uint16(len(line))), line...)
	}
	root, err := tlog.TreeHash(int64(len(h.lines)), stored)
	if err != nil {
		h.t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		h.t.Fatal(err)
	}
	checkpoint, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%d\n%s\n", hourOrigin, len(h.lines), root)}, signer)
	if err != nil {
		h.t.Fatal(err)
	}
	dir := h.t.TempDir()
	for name, text := range map[string][]byte{"checkpoint": checkpoint, fmt.Sprintf("tile/0/000.p/%d", len(h.lines)): leaves, fmt.Sprintf("tile/entries/000.p/%d", len(h.lines)): entries} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			h.t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	return dir
}

// evidenceReport runs the command.
func evidenceReport(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append([]string{"evidence", "report"}, args...))
	err := root.Execute()
	var exit exitCode
	switch {
	case errors.As(err, &exit):
		code = int(exit)
	case err != nil:
		code = -1
	}
	return out.String(), errs.String(), code
}

func TestEvidenceReport(t *testing.T) {
	dir, key := hour(t)
	given := []string{dir, "--from", "2026-10-01T00:05:00Z", "--to", "2026-10-01T00:55:00Z", "--key", key}

	page, stderr, code := evidenceReport(given...)
	if code != 0 || !strings.Contains(page, "No. In at least one namespace plaintext could be received.") || !strings.Contains(page, "unexplained change") {
		t.Fatalf("exit status %d, %s\n%.300s", code, stderr, page)
	}
	if again, _, _ := evidenceReport(given...); again != page {
		t.Error("the same logs give another page")
	}
	if page, _, _ := evidenceReport(append(given, "--lang", "nb")...); !strings.Contains(page, "Nei. I minst ett navnerom kunne ukryptert trafikk mottas.") {
		t.Errorf("in Norwegian:\n%.300s", page)
	}

	// The same hour without the bad minutes holds, but only for who knows the key from elsewhere or waives that.
	quiet := []string{dir, "--from", "2026-10-01T00:31:00Z", "--to", "2026-10-01T00:55:00Z"}
	for flags, want := range map[string]string{"--key " + key: "v-holds", "": "v-notProvable", "--trust-log-key": "v-holds"} {
		page, stderr, code := evidenceReport(append(quiet, strings.Fields(flags)...)...)
		if code != 0 || !strings.Contains(page, `class="verdict `+want) {
			t.Errorf("%s: exit status %d, %s; want %s", flags, code, stderr, want)
		}
		if own := strings.Contains(page, "The keys were taken from the logs themselves"); own != (want != "v-holds" || flags == "--trust-log-key") {
			t.Errorf("%s: that the key is the log's own is said: %t", flags, own)
		}
	}

	out := filepath.Join(t.TempDir(), "registers")
	if _, stderr, code := evidenceReport(append(given, "-o", "csv", "--out", out)...); code != 0 {
		t.Fatal(stderr)
	}
	text, err := os.ReadFile(filepath.Join(out, "intervals.csv"))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var intervals []string
	for _, r := range rows[1:] {
		intervals = append(intervals, r[2]+" "+r[3]+" "+r[5]+" "+r[6])
	}
	want := []string{"2026-10-01T00:05:00Z 2026-10-01T00:20:00Z OBSERVED STRICT", "2026-10-01T00:20:00Z 2026-10-01T00:30:00Z VIOLATED PERMISSIVE", "2026-10-01T00:30:00Z 2026-10-01T00:55:00Z OBSERVED STRICT"}
	if strings.Join(intervals, "\n") != strings.Join(want, "\n") {
		t.Errorf("intervals:\n%s\nwant:\n%s", strings.Join(intervals, "\n"), strings.Join(want, "\n"))
	}
	if oscal, stderr, code := evidenceReport(append(given, "-o", "oscal")...); code != 0 || !strings.Contains(oscal, `"reason": "fail"`) {
		t.Errorf("oscal: exit status %d, %s", code, stderr)
	}
}

// TestEvidenceReportOfABrokenLog is written all the same, for it says so.
func TestEvidenceReportOfABrokenLog(t *testing.T) {
	dir, key := hour(t)
	entries, err := filepath.Glob(filepath.Join(dir, "tile", "entries", "000.p", "*"))
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	text, err := os.ReadFile(entries[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(entries[0], bytes.Replace(text, []byte("PERMISSIVE"), []byte("STRICTSTRI"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	page, _, code := evidenceReport(dir, "--from", "2026-10-01T00:05:00Z", "--to", "2026-10-01T00:55:00Z", "--key", key)
	if code != int(exitNotWhole) || !strings.Contains(page, `class="verdict v-broken"`) {
		t.Errorf("exit status %d\n%.300s", code, page)
	}
}

func TestEvidenceReportFlags(t *testing.T) {
	period := []string{"--from", "2026-10-01", "--to", "2027-01-01"}
	for want, args := range map[string][]string{
		"no evidence is given":               period,
		`--output "pdf"; must be html, csv`:  append(period, "x.zip", "-o", "pdf"),
		`--lang "de"; must be en or nb`:      append(period, "x.zip", "--lang", "de"),
		"--lang is of the page":              append(period, "x.zip", "-o", "oscal", "--lang", "nb"),
		"a report is on a period":            {"x.zip"},
		`--from "yesterday"; must be a time`: {"x.zip", "--from", "yesterday", "--to", "2027-01-01"},
		"must begin before it ends":          {"x.zip", "--from", "2027-01-01", "--to", "2026-10-01"},
	} {
		if _, stderr, code := evidenceReport(args...); code != int(exitUsage) || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit status %d, %q; want %q", args, code, stderr, want)
		}
	}
}
