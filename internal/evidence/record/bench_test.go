package record

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// Any reader of JSON reads a record: the one way to write it is a way of JSON.
func TestRecordsAreJSON(t *testing.T) {
	for _, l := range chained(examples()) {
		if !json.Valid(l.Line) || bytes.ContainsAny(l.Line, "\n\r") {
			t.Errorf("not JSON in one line: %s", l.Line)
		}
	}
	want := "vendor's \"appliance\"\nuntil the upgrade"
	for _, l := range chained(examples()) {
		var r struct {
			Kind, Why string
		}
		if err := json.Unmarshal(l.Line, &r); err != nil {
			t.Fatal(err)
		}
		if r.Kind == "exception.requested" && r.Why != want {
			t.Errorf("reads %q; want %q", r.Why, want)
		}
	}
}

// plainDecision has the fields of a Decision as encoding/json would have them, for comparison.
type plainDecision struct {
	V                  int
	Kind               string
	Seq                uint64
	Prev, Salt, T      string
	Mono               uint64
	Boot, Req, Op, Sub string
	Obj                struct {
		GVK, NS, Name, UID string
		Gen                uint64
		Digest             string
	}
	By      struct{ Kind, ID string }
	Groups  []string
	GroupsN uint64
	Rules   []struct {
		Code, Action string
		N            uint64
	}
	RulesN          uint64
	Guards, Verdict string
	Exceptions      []string
	ExceptionsN     uint64
	BreakGlass      bool
	US              uint64
}

// BenchmarkAgainstJSON is the same record, written and read, here and by encoding/json with no check at all.
func BenchmarkAgainstJSON(b *testing.B) {
	line := chained(examples())[4].Line
	if !strings.Contains(string(line), `"kind":"decision"`) {
		b.Fatal("not a decision")
	}
	r, err := Parse(line)
	if err != nil {
		b.Fatal(err)
	}
	var p plainDecision
	if err := json.Unmarshal(line, &p); err != nil {
		b.Fatal(err)
	}
	ours := map[string]func() error{
		"encode": func() error { _, err := Encode(r); return err },
		"parse":  func() error { _, err := Parse(line); return err },
	}
	theirs := map[string]func() error{
		"encode": func() error { _, err := json.Marshal(&p); return err },
		"parse":  func() error { return json.Unmarshal(line, &plainDecision{}) },
	}
	for _, name := range []string{"encode", "parse"} {
		run := func(b *testing.B, f func() error) {
			b.ReportAllocs()
			b.SetBytes(int64(len(line)))
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.Run(name+"/record", func(b *testing.B) { run(b, ours[name]) })
		b.Run(name+"/json", func(b *testing.B) { run(b, theirs[name]) })
	}
}
