package record

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func words(n, length int) []string { return many(n, func(i int) string { return long(i, length) }) }

func digests(n int) []string {
	list := many(n, func(i int) string { return testNames().Digest([]byte{byte(i)}) })
	slices.Sort(list)
	return list
}

// largest objects have all that one can have: names, group and kind of the greatest length.
func largestObject(i, gvk int) Object {
	o := Object{GVK: long(i, gvk), Namespace: long(0, 63), Name: digests(1)[0], UID: long(0, 64), Generation: maxNumber, Digest: digests(1)[0]}
	return o
}

func largestRow(i int) Row {
	return Row{
		Namespace: long(i, 63), UID: long(0, 64), Guards: words(8, 253), GuardsN: maxNumber, Mode: "PERMISSIVE", Least: "PERMISSIVE",
		Unexcused: "PERMISSIVE",
		Excused: many(8, func(i int) Excuse {
			return Excuse{"PERMISSIVE", many(4, func(j int) string { return fmt.Sprintf("%d%d%s", i, j, strings.Repeat("x", 62)) })}
		}),
		Weak:  many(16, func(i int) Weak { return Weak{digests(16)[i], 65535, "PERMISSIVE"} }),
		WeakN: maxNumber, Outside: maxNumber, Authorization: "unknown",
		Inputs:  many(12, func(i int) Input { return Input{largestObject(i, maxGVK), long(0, 32)} }),
		InputsN: maxNumber,
	}
}

func largestSubject() Subject {
	return Subject{ServiceAccount, serviceAccountPrefix + long(0, 63) + ":" + long(0, 253)}
}

// largest are bodies with all lists as long as they may be, and what is in them too.
func largest() []Body {
	const most = maxNumber
	h, control := digests(1)[0], strings.Repeat("\x01", 500)
	counts := Counters{most, most, most, most}
	end := time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)
	object := largestObject(0, maxGVK)
	return []Body{
		&Genesis{Origin: long(0, 255), Cluster: long(0, 64), Replica: long(0, 253), Shard: long(0, 32), PrevOrigin: long(0, 255),
			PrevSize: most, Keys: words(8, 512), Pseudonyms: testKey().ID()},
		&Boot{Why: "shard", Pod: long(0, 64), Node: long(0, 253), Version: strings.Repeat(`"`, 128), Durability: "memory",
			Mode: "bestEffort", BeatSeconds: most, Torn: most},
		&Stop{"terminated", counts},
		&Gap{"observation", "readOnly", end, end, false, many(32, func(i int) GapCount { return GapCount{"error", long(i, maxGVK), most} }), most},
		&Close{"period", long(0, 255)},
		&Decision{long(0, 64), "CONNECT", long(0, 63), object, largestSubject(),
			many(16, func(i int) string { return systemPrefix + long(i, 253-len(systemPrefix)) }), most,
			many(64, func(i int) Rule { return Rule{long(i, 16), "excepted", most} }), most, h, "error", words(8, 64), most, false, most},
		&Admitted{long(0, 63), long(0, maxGVK), h, h, h, end, end, most},
		&Remediation{"provisioned", object, "givenUp", most, end, end, end},
		&State{"unguarded", end, largestRow(0)},
		&Snapshot{"periodic", end, most, most, Hash{}, most, []Row{largestRow(0)}},
		&Beat{Table: Hash{}, RowsN: most, Guards: h,
			Watches:      many(32, func(i int) Watch { return Watch{long(i, ownGVK), long(0, 32), most, false, most} }),
			Hooks:        many(8, func(i int) Hook { return Hook{long(i, ownGVK), long(0, 253), long(0, 64), long(0, 32), h, "Ignore"} }),
			CanaryMillis: most, Ready: many(32, func(i int) Replica { return Replica{long(i, 64), firstRun} }), ReadyN: most,
			Counts: counts, Unsealed: most, LagMillis: most, Clock: Clock{MaxErrorMicros: most}},
		&ExceptionRequested{object, largestSubject(), words(64, 96), most, h, "TwoPerson", control, control, end},
		&ExceptionGranted{object, largestSubject(), largestSubject(), end},
		&ExceptionUsed{object, "admission", end, end, most},
		&ExceptionRevoked{object, largestSubject(), "shortened", end},
		&ExceptionExpired{object, end},
		&ConfigChanged{long(0, ownGVK), long(0, 63), long(0, 253), long(0, 64), long(0, 32), "repaired", h, h, end, false, largestSubject(),
			long(0, 64), control, most},
		&KeyCreated{"log", "", strings.Repeat(`\`, 512)},
		&KeyDestroyed{testKey().ID(), long(0, 255), "retention", largestSubject()},
		&KeyUsed{testKey().ID(), long(0, 255), largestSubject(), control, most},
		&ClockDeclared{strings.Repeat(`"`, 128), most},
	}
}

func largestHead() Head {
	return Head{Seq: maxNumber, Time: time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC), Mono: maxMono, Boot: firstRun}
}

// What keeps to the bounds of its fields fits into a record: no event can be so large that it is not recorded.
func TestWhatKeepsToItsBoundsFits(t *testing.T) {
	kinds := map[Kind]bool{}
	for _, b := range largest() {
		line, err := Encode(Record{largestHead(), b})
		if err != nil {
			t.Errorf("%s: %v", b.Kind(), err)
			continue
		}
		if back, err := Parse(line); err != nil || !reflect.DeepEqual(back.Body, b) {
			t.Errorf("%s: comes back as %+v, %v", b.Kind(), back.Body, err)
		}
		kinds[b.Kind()] = true
		t.Logf("%-20s at most %5d bytes", b.Kind(), len(line))
	}
	for _, k := range Kinds() {
		if !kinds[k] {
			t.Errorf("nothing of kind %s", k)
		}
	}
}

// One more in any list, and one byte more in any text, is an error and not cut.
func TestOneMoreIsRefused(t *testing.T) {
	lists, texts := 0, 0
	for n, b := range largest() {
		fresh := func() reflect.Value { return reflect.ValueOf(largest()[n]).Elem() }
		walk(reflect.ValueOf(b).Elem(), func(at func(reflect.Value) reflect.Value, kind reflect.Kind, where string) {
			v := fresh()
			field := at(v)
			switch kind {
			case reflect.Slice:
				lists++
				last := reflect.New(field.Type().Elem()).Elem()
				if field.Len() > 0 {
					last.Set(field.Index(field.Len() - 1))
				}
				if _, whole := b.(*Snapshot); whole && field.Len() == 1 {
					return // its rows are bounded by what fits
				}
				field.Set(reflect.Append(field, last))
			case reflect.String:
				texts++
				field.SetString(field.String() + "x")
			default:
				field.SetUint(field.Uint() + 1)
			}
			body := v.Addr().Interface().(Body)
			var wrong *FieldError
			_, err := Encode(Record{largestHead(), body})
			if !errors.As(err, &wrong) {
				t.Errorf("%s: one more in %s: %v", b.Kind(), where, err)
			}
		})
	}
	if lists < 10 || texts < 100 {
		t.Errorf("tried %d lists and %d texts only", lists, texts)
	}
}

// walk calls visit for each list, text and number in v that has something in it, with a way to the same place in
// another value.
func walk(v reflect.Value, visit func(at func(reflect.Value) reflect.Value, kind reflect.Kind, where string)) {
	var into func(v reflect.Value, at func(reflect.Value) reflect.Value, where string)
	into = func(v reflect.Value, at func(reflect.Value) reflect.Value, where string) {
		switch v.Kind() {
		case reflect.Struct:
			if v.Type() == reflect.TypeFor[time.Time]() {
				return
			}
			for i := range v.NumField() {
				into(v.Field(i), func(o reflect.Value) reflect.Value { return at(o).Field(i) }, where+"."+v.Type().Field(i).Name)
			}
		case reflect.Slice:
			visit(at, reflect.Slice, where)
			if v.Len() > 0 {
				last := v.Len() - 1
				into(v.Index(last), func(o reflect.Value) reflect.Value { return at(o).Index(last) }, fmt.Sprintf("%s[%d]", where, last))
			}
		case reflect.String:
			if v.Len() > 0 {
				visit(at, reflect.String, where)
			}
		case reflect.Uint64:
			if v.Uint() == maxNumber {
				visit(at, reflect.Uint64, where)
			}
		}
	}
	into(v, func(o reflect.Value) reflect.Value { return o }, "")
}

func TestTextsOfPeopleAreBounded(t *testing.T) {
	for _, c := range []struct {
		text string
		ok   bool
	}{{"", false}, {"x", true}, {strings.Repeat("x", 500), true}, {strings.Repeat("x", 501), false}, {strings.Repeat("😀", 500), true}, {strings.Repeat("😀", 501), false}} {
		_, err := Encode(Record{largestHead(), &KeyUsed{testKey().ID(), "o", Subject{Kind: Unknown}, c.text, 0}})
		if (err == nil) != c.ok {
			t.Errorf("%d bytes: %v", len(c.text), err)
		}
	}
	if _, err := Encode(Record{Head: Head{Time: clock(), Boot: firstRun, Mono: 1}, Body: &Stop{Why: "failed"}}); err == nil {
		t.Error("wrote a mono that is not in microseconds")
	}
	if _, err := Encode(Record{Head: largestHead()}); err == nil {
		t.Error("wrote a record without a body")
	}
}

func TestSnapshotsHoldAllRows(t *testing.T) {
	for _, make := range []func(i int) Row{
		largestRow,
		func(i int) Row { return exampleRow(long(i, 10)) },
		func(i int) Row {
			return Row{Namespace: long(i, 4), UID: "u", Mode: "STRICT", Least: "STRICT", Unexcused: "STRICT", Authorization: "none"}
		},
	} {
		for _, n := range []int{0, 1, 2, 63, 64, 65, 200} {
			rows := many(n, make)
			shuffled := slices.Clone(rows)
			slices.Reverse(shuffled)
			parts, err := Snapshots("boot", clock(), shuffled)
			if err != nil {
				t.Fatal(err)
			}
			var got []Row
			var hashes []Hash
			for i, p := range parts {
				line, err := Encode(Record{largestHead(), p})
				if err != nil {
					t.Fatalf("%d rows, part %d: %v", n, i, err)
				}
				back, err := Parse(line)
				if err != nil {
					t.Fatal(err)
				}
				s := back.Body.(*Snapshot)
				if s.Part != uint64(i+1) || s.Of != uint64(len(parts)) || s.RowsN != uint64(n) || s.Table != parts[0].Table {
					t.Errorf("%d rows: part %d is %d of %d with %d rows in all", n, i, s.Part, s.Of, s.RowsN)
				}
				got = append(got, s.Rows...)
			}
			for _, r := range got {
				h, err := HashRow(r)
				if err != nil {
					t.Fatal(err)
				}
				hashes = append(hashes, h)
			}
			if len(got) != n || n > 0 && !reflect.DeepEqual(got, rows) {
				t.Errorf("%d rows: %d came back, or others", n, len(got))
			}
			if HashTable(hashes) != parts[0].Table {
				t.Errorf("%d rows: the hash of the table is not that of its rows", n)
			}
		}
	}
	if _, err := Snapshots("boot", clock(), []Row{exampleRow("a"), exampleRow("a")}); err == nil {
		t.Error("took two rows for one namespace")
	}
}

func TestHashesSeeEveryChange(t *testing.T) {
	row := exampleRow("payments")
	before, err := HashRow(row)
	if err != nil {
		t.Fatal(err)
	}
	row.Outside = 1
	if after, _ := HashRow(row); after == before {
		t.Error("a pod outside of the mesh changes nothing")
	}
	in := many(20, func(i int) Input { return Input{largestObject(i, 40), "1"} })
	all, err := HashInputs(in)
	if err != nil {
		t.Fatal(err)
	}
	in[19].ResourceVersion = "2"
	if again, _ := HashInputs(in); again == all {
		t.Error("the last of many inputs changes nothing")
	}
	slices.Reverse(in)
	if _, err := HashInputs(in); err == nil {
		t.Error("took inputs out of order")
	}
}

func TestLongReasonsAreCounted(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""}, {"kort", "kort"}, {strings.Repeat("ø", 500), strings.Repeat("ø", 500)}, {strings.Repeat("ø", 501), strings.Repeat("ø", 500)},
	} {
		text, n := Excerpt(c.text)
		if text != c.want || n != uint64(len([]rune(c.text))) {
			t.Errorf("%d characters: got %d, counted %d", len([]rune(c.text)), len([]rune(text)), n)
		}
		g := *examples()[14].(*ConfigChanged)
		g.Reason, g.ReasonN = text, n
		if _, err := Encode(Record{largestHead(), &g}); err != nil {
			t.Errorf("%d characters: %v", n, err)
		}
		g.ReasonN++
		if _, err := Encode(Record{largestHead(), &g}); (err == nil) != (len([]rune(text)) == 500) {
			t.Errorf("%d characters, one more counted: %v", n, err)
		}
	}
}
