package record

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata anew")

// The lines of testdata/records are what is on disks already: a change here is another version of the format.
func TestRecordsAreWrittenAsEver(t *testing.T) {
	path := filepath.Join("testdata", "records")
	var got bytes.Buffer
	for _, l := range chained(examples()) {
		got.Write(append(l.Line, '\n'))
	}
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range bytes.Split(got.Bytes(), []byte("\n")) {
		if lines := bytes.Split(want, []byte("\n")); i >= len(lines) || !bytes.Equal(lines[i], line) {
			t.Errorf("record %d is\n%s\nand not as in %s", i, line, path)
		}
	}
	if got.Len() != len(want) {
		t.Errorf("%d bytes; %s has %d", got.Len(), path, len(want))
	}
}

func TestEveryKindComesBackAsItWas(t *testing.T) {
	kinds := map[Kind]bool{}
	for i, want := range examples() {
		l := chained(examples())[i]
		got, err := Parse(l.Line)
		if err != nil {
			t.Errorf("%s: %v", want.Kind(), err)
			continue
		}
		if !reflect.DeepEqual(got.Body, want) {
			t.Errorf("%s: read\n%+v, wrote\n%+v", want.Kind(), got.Body, want)
		}
		if got.Seq != uint64(i) || !got.Time.Equal(clock().Add(got.Mono)) || got.Boot != firstRun {
			t.Errorf("%s: head %+v", want.Kind(), got.Head)
		}
		again, err := Encode(got)
		if err != nil || !bytes.Equal(again, l.Line) {
			t.Errorf("%s: written again it is\n%s\n%s\n%v", want.Kind(), again, l.Line, err)
		}
		kinds[want.Kind()] = true
		t.Logf("%-20s %5d bytes", want.Kind(), len(l.Line))
	}
	for _, k := range Kinds() {
		if !kinds[k] {
			t.Errorf("no example of kind %s", k)
		}
	}
}

// Whatever is not written in the one way is refused, with the field and without its value.
func TestOnlyOneWayToWriteIsRead(t *testing.T) {
	line := func(kind Kind) string {
		for i, b := range examples() {
			if b.Kind() == kind {
				return string(chained(examples())[i].Line)
			}
		}
		t.Fatalf("no kind %s", kind)
		return ""
	}
	for _, c := range []struct {
		what       string
		kind       Kind
		old, fresh string
		want       string
	}{
		{"a blank", "stop", `,"seq"`, `, "seq"`, "seq: must be the next field"},
		{"an unknown field", "stop", `,"why"`, `,"x":1,"why"`, "why: must be the next field"},
		{"an unknown field at the end", "stop", `10}}`, `10},"x":1}`, "must end after its last field"},
		{"a field twice", "stop", `"why":"terminated"`, `"why":"terminated","why":"failed"`, "counts: must be the next field"},
		{"another order", "stop", `"in":90211,"written":211`, `"written":211,"in":90211`, "counts.in: must be the next field"},
		{"another case", "stop", `"why"`, `"Why"`, "why: must be the next field"},
		{"a field missing", "stop", `"why":"terminated",`, ``, "why: must be the next field"},
		{"a second object", "stop", `10}}`, `10}}{}`, "does not end after its object"},
		{"a newline behind", "stop", `10}}`, "10}}\n", "does not end after its object"},
		{"a carriage return in between", "stop", `"why":`, "\"why\":\r", "why: must be a string"},
		{"an enumeration", "stop", `"terminated"`, `"secret"`, "why: must be one of terminated, failed"},
		{"a fraction", "stop", `"in":90211`, `"in":90211.0`, "counts.written: must be the next field"},
		{"an exponent", "stop", `"in":90211`, `"in":9e3`, "counts.written: must be the next field"},
		{"a negative number", "stop", `"in":90211`, `"in":-1`, "counts.in: must be an integer"},
		{"minus nought", "stop", `"unlogged":10`, `"unlogged":-0`, "counts.unlogged: must be an integer"},
		{"a leading nought", "stop", `"in":90211`, `"in":090211`, "counts.in: must be an integer"},
		{"a number as a string", "stop", `"in":90211`, `"in":"90211"`, "counts.in: must be an integer"},
		{"no number", "stop", `"in":90211`, `"in":null`, "counts.in: must be an integer"},
		{"a number that JavaScript rounds", "stop", `"in":90211`, `"in":9007199254740992`, "counts.in: must be at most 9007199254740991"},
		{"a number beyond 64 bits", "stop", `"in":90211`, `"in":99999999999999999999`, "counts.in: must be an integer"},
		{"a flag as a string", "gap", `"exact":true`, `"exact":"true"`, "exact: must be true or false"},
		{"another zone", "gap", `"from":"2026-07-01T08:30:00.123456789Z"`, `"from":"2026-07-01T10:30:00.123456789+02:00"`, "from: must be a time"},
		{"less than nanoseconds", "gap", `"from":"2026-07-01T08:30:00.123456789Z"`, `"from":"2026-07-01T08:30:00.1234Z"`, "from: must be a time"},
		{"a comma in a time", "gap", `"from":"2026-07-01T08:30:00.123`, `"from":"2026-07-01T08:30:00,123`, "from: must be a time"},
		{"a small z", "gap", `"from":"2026-07-01T08:30:00.123456789Z"`, `"from":"2026-07-01T08:30:00.123456789z"`, "from: must be a time"},
		{"no such day", "gap", `"from":"2026-07-01T`, `"from":"2026-06-31T`, "from: must be a time"},
		{"a leap second", "gap", `"from":"2026-07-01T08:30:00.`, `"from":"2026-07-01T08:30:60.`, "from: must be a time"},
		{"a list out of order", "gap", `"verdict":"deny"`, `"verdict":"allow"`, "counts[1]: must be sorted"},
		{"a list with one twice", "decision", `{"code":"MV106","action":"warn","n":2}`, `{"code":"MV103","action":"deny","n":1}`, "rules[1]: must be sorted"},
		{"fewer counted than listed", "decision", `"rulesN":3`, `"rulesN":1`, "rulesN: must count at least"},
		{"a comma at the end of a list", "decision", `"n":2}]`, `"n":2},]`, "rules[2]: must be an object"},
		{"no list", "decision", `"rules":[`, `"rules":{`, "rules: must be a list"},
		{"no object", "decision", `"by":{`, `"by":[`, "by: must be an object"},
		{"a name in clear", "decision", `"id":"p1:`, `"id":"ola`, "by.id: must be what its kind says"},
		{"another prefix", "decision", `"id":"p1:`, `"id":"h:x`, "by.id: must be what its kind says"},
		{"no name", "decision", `"kind":"user"`, `"kind":"unknown"`, "by.id: must be what its kind says"},
		{"a name of an object in clear", "decision", `"name":"h:`, `"name":"n:`, "obj.name: must be"},
		{"an escape that is not needed", "boot", `"version":"v`, `"version":"\u0076`, "version: must be a string"},
		{"an escaped solidus", "boot", `"version":"v`, `"version":"\/`, "version: must be a string"},
		{"a short escape", "boot", `"version":"v`, `"version":"\n`, "version: must be a string"},
		{"a control character", "boot", `"version":"v`, "\"version\":\"\x01", "version: must be a string"},
		{"another length of a hash", "boot", `"binary":"`, `"binary":"00`, "binary: must be 64 digits"},
		{"capitals in a hash", "boot", `"binary":"9a3a`, `"binary":"9A3A`, "binary: must be 64 digits"},
		{"a boot ID that is none", "boot", `"boot":"01`, `"boot":"0x`, "boot: must be 32 digits"},
		{"no mode", "state", `"mode":"STRICT"`, `"mode":"strict"`, "row.mode: must be one of STRICT"},
		{"no port", "state", `"port":8080`, `"port":65536`, "row.weak[0].port: must be at most 65535"},
		{"a part that is none", "snapshot", `"part":1`, `"part":2`, "part: must be from 1 to of"},
		{"a kind that is none", "stop", `"kind":"stop"`, `"kind":"Stop"`, "kind: must be lower-case"},
	} {
		before := line(c.kind)
		after := strings.Replace(before, c.old, c.fresh, 1)
		if after == before {
			t.Errorf("%s: nothing to change in\n%s", c.what, before)
			continue
		}
		_, err := Parse([]byte(after))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v; want %q", c.what, err, c.want)
		}
	}
}

func TestNothingIsSaidOfTheValue(t *testing.T) {
	_, err := Encode(Record{Head: Head{Time: clock(), Boot: firstRun}, Body: &Decision{Request: "ola nordmann"}})
	var field *FieldError
	if !errors.As(err, &field) || field.Field != "req" {
		t.Fatalf("got %v; want an error about req", err)
	}
	if strings.Contains(err.Error(), "ola") {
		t.Errorf("%q has the value", err)
	}
}

func TestLineIsUTF8AndBounded(t *testing.T) {
	line := chained(examples())[1].Line
	for what, wrong := range map[string][]byte{
		"nothing":      nil,
		"no UTF-8":     bytes.Replace(line, []byte("v0.2.0"), []byte("v0.2.\xff"), 1),
		"a mark":       append([]byte("\xef\xbb\xbf"), line...),
		"cut off":      line[:len(line)-1],
		"two lines":    append(append(bytes.Clone(line), '\n'), line...),
		"not a record": []byte("null"),
		"too long":     append(bytes.Clone(line), bytes.Repeat([]byte(" "), MaxLine)...),
	} {
		if r, err := Parse(wrong); err == nil {
			t.Errorf("%s: read as %+v", what, r)
		}
	}
	boot := &Boot{Why: BootStart, Version: "v\xff"}
	if _, err := Encode(Record{Head: Head{Time: clock(), Boot: firstRun}, Body: boot}); err == nil {
		t.Error("wrote what is not UTF-8")
	}
}

// What a newer Meshvakt has written is told from what is broken.
func TestNewerRecordsAreNoErrors(t *testing.T) {
	line := string(chained(examples())[4].Line)
	kind := strings.Replace(line, `"kind":"decision"`, `"kind":"prophecy"`, 1)
	r, err := Parse([]byte(kind))
	if !errors.Is(err, ErrUnknownKind) || r.Seq != 4 || r.Boot != firstRun || r.Body != nil {
		t.Errorf("got %+v and %v; want the head and ErrUnknownKind", r, err)
	}
	if strings.Contains(err.Error(), "prophecy") {
		t.Errorf("%q has the value", err)
	}
	_, err = Parse([]byte(strings.Replace(line, `{"v":1,`, `{"v":2,"anything":[],`, 1)))
	if !errors.Is(err, ErrUnknownVersion) {
		t.Errorf("got %v; want ErrUnknownVersion", err)
	}
}

func TestTextOfPeopleIsKeptAsItIs(t *testing.T) {
	for _, s := range []string{`"`, `\`, `\u0041`, "a\nb\r\t\x00\x7f", "æøå €", "😀", "\u2028", "</script>", strings.Repeat("€", 500)} {
		c := &codec{}
		c.first = true
		c.text("", &s, prose())
		if c.err != nil || bytes.ContainsAny(c.buf, "\n\r") {
			t.Errorf("%q: wrote %q, %v", s, c.buf, c.err)
			continue
		}
		var got string
		back := &codec{buf: c.buf, reading: true, first: true}
		back.text("", &got, prose())
		if back.err != nil || got != s {
			t.Errorf("%q: read %q, %v", s, got, back.err)
		}
	}
}

func TestTimesComeBackWhateverTheZone(t *testing.T) {
	at := time.Date(2026, 10, 25, 2, 30, 0, 0, time.FixedZone("CEST", 7200))
	line, err := Encode(Record{Head: Head{Time: at, Boot: firstRun}, Body: &Stop{Why: "failed"}})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(line, []byte(`"t":"2026-10-25T00:30:00.000000000Z"`)) {
		t.Errorf("wrote %s", line)
	}
	for _, at := range []time.Time{{}, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if _, err := Encode(Record{Head: Head{Time: at, Boot: firstRun}, Body: &Stop{Why: "failed"}}); err == nil {
			t.Errorf("wrote a record of the year %d", at.Year())
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, l := range chained(examples()) {
		f.Add(l.Line)
	}
	f.Add([]byte(`{"v":1,"kind":"future"`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := Parse(line)
		if err != nil {
			return
		}
		again, err := Encode(r)
		if err != nil || !bytes.Equal(line, again) {
			t.Fatalf("read\n%q\nwrote\n%q\n%v", line, again, err)
		}
		back, err := Parse(again)
		if err != nil || !reflect.DeepEqual(r, back) {
			t.Fatalf("read %+v, then %+v, %v", r, back, err)
		}
	})
}

// What fields say together must make sense, whether written or read.
func TestFieldsAgreeWithEachOther(t *testing.T) {
	k := testKey().ID()
	for field, wrong := range map[string][]Body{
		"id": {
			&KeyCreated{For: "pseudonyms"}, &KeyCreated{For: "log", ID: k, VerifierKey: "v"},
		},
		"vkey": {
			&KeyCreated{For: "log"}, &KeyCreated{For: "pseudonyms", ID: k, VerifierKey: "v"},
		},
		"source":   {&ClockDeclared{Source: "", MaxErrorMicros: 1}, &ClockDeclared{Source: "line\nbreak", MaxErrorMicros: 1}, &ClockDeclared{Source: strings.Repeat("x", 129), MaxErrorMicros: 1}},
		"maxErrUs": {&ClockDeclared{Source: "chrony"}},
		"by.id": {
			&KeyUsed{ID: k, Origin: "o", By: Subject{Kind: User}, Reason: "r"},
			&KeyUsed{ID: k, Origin: "o", By: Subject{Kind: Node}, Reason: "r"},
			&KeyUsed{ID: k, Origin: "o", By: Subject{Kind: Unknown, ID: "ola"}, Reason: "r"},
			&KeyUsed{ID: k, Origin: "o", By: Subject{Kind: Node, ID: "system:serviceaccount:a:b"}, Reason: "r"},
			&KeyUsed{ID: k, Origin: "o", By: Subject{Kind: ServiceAccount, ID: testNames().Subject("ola").ID}, Reason: "r"},
		},
		"before": {
			&ConfigChanged{GVK: "v1/Service", Name: "a", What: "created", Before: testNames().Digest(nil)},
		},
		"after": {
			&ConfigChanged{GVK: "v1/Service", Name: "a", What: "deleted", After: testNames().Digest(nil)},
		},
		"n": {
			&Admitted{Namespace: "a", OwnerGVK: "v1/Pod", Guards: testNames().Digest(nil), From: clock(), To: clock()},
			&ExceptionUsed{Object: exampleException(), How: "standing", From: clock(), To: clock()},
		},
		"prevSize": {
			&Genesis{Origin: "o", Cluster: uid, Replica: "r", Shard: "s", PrevOrigin: "p", Pseudonyms: k},
			&Genesis{Origin: "o", Cluster: uid, Replica: "r", Shard: "s", PrevSize: 1, Pseudonyms: k},
		},
		"beatSeconds": {
			&Boot{Why: BootStart, Pod: uid, Node: "n", Version: "v", Durability: "spool", Mode: "required"},
		},
		"next":  {&Close{Why: "end", Next: "o"}, &Close{Why: "size"}},
		"rowsN": {&Snapshot{Why: "boot", After: clock(), Part: 1, Of: 1, Rows: []Row{exampleRow("a")}}},
		"part":  {&Snapshot{Why: "boot", After: clock()}, &Snapshot{Why: "boot", After: clock(), Part: 2, Of: 1}},
	} {
		for i, b := range wrong {
			_, err := Encode(Record{Head{Time: clock(), Boot: firstRun}, b})
			var got *FieldError
			if !errors.As(err, &got) || got.Field != field {
				t.Errorf("%s, number %d: got %v", field, i, err)
			}
		}
	}
}

// A clock that was set back makes times that go back, and they can be recorded.
func TestTimesMayGoBack(t *testing.T) {
	before := clock().Add(-time.Hour)
	for _, b := range []Body{
		&Gap{Of: "clock", Cause: "clock", From: clock(), To: before},
		&Remediation{What: "restored", Object: exampleObject(), Outcome: "done", After: clock(), Found: before, Done: before.Add(-1)},
		&ExceptionUsed{Object: exampleException(), How: "standing", From: clock(), To: before, N: 1},
	} {
		line, err := Encode(Record{Head{Time: before, Boot: firstRun}, b})
		if err != nil {
			t.Errorf("%s: %v", b.Kind(), err)
			continue
		}
		if _, err := Parse(line); err != nil {
			t.Errorf("%s: %v", b.Kind(), err)
		}
	}
}
