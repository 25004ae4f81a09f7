package servingcert

import (
	"bytes"
	"encoding/pem"
	"testing"
	"testing/synctest"
	"time"
)

func TestMergeBundle(t *testing.T) {
	now := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	age := func(days int) *testCA { return newTestCA(t, now.Add(-time.Duration(days)*day), 365*day) }
	c0, c1, c2, c3, expired := age(0), age(1), age(2), age(3), age(366)
	join := func(cas ...*testCA) []byte {
		var b []byte
		for _, ca := range cas {
			b = append(b, ca.pem()...)
		}
		return b
	}
	withHeader := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"a": "b"}, Bytes: c1.cert.Raw})
	garbage := []byte("-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\nnonsense\n")
	for name, c := range map[string]struct{ existing, current, want []byte }{
		"first":                  {nil, join(c0), join(c0)},
		"unchanged":              {join(c0), join(c0), join(c0)},
		"rotation":               {join(c1), join(c0), join(c0, c1)},
		"third":                  {join(c1, c2), join(c0), join(c0, c1, c2)},
		"fourth drops oldest":    {join(c3, c1, c2), join(c0), join(c0, c1, c2)},
		"expired is dropped":     {join(expired, c1), join(c0), join(c0, c1)},
		"expired but current":    {join(c1), join(expired), join(expired, c1)},
		"older becomes current":  {join(c0, c1), join(c1), join(c1, c0)},
		"doubles":                {join(c1, c1, c0), join(c0, c0), join(c0, c1)},
		"garbage beside":         {append(garbage, join(c1)...), join(c0), join(c0, c1)},
		"PEM headers are not CA": {withHeader, join(c1), join(c1)},
		"current is two":         {join(c2, c3), join(c0, c1), join(c0, c1, c2)},
	} {
		got, err := MergeBundle(c.existing, c.current, now)
		if err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: error %v, got\n%s\nwant\n%s", name, err, got, c.want)
		}
		if again, err := MergeBundle(got, c.current, now); err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s: merging again changes the bundle", name)
		}
	}
	for _, current := range [][]byte{nil, garbage} {
		if got, err := MergeBundle(join(c0), current, now); err == nil {
			t.Errorf("current %q merged to %s", current, got)
		}
	}
}

func TestBundleTrust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newTestCA(t, time.Now().Add(-day), 365*day)
		young := newTestCA(t, time.Now(), 365*day)
		oldLeaf, youngLeaf := old.leaf(t), young.leaf(t)
		both := append(old.pem(), young.pem()...)
		check := func(b *Bundle, when string, wantOld, wantYoung bool) {
			t.Helper()
			if got := b.Trusts(oldLeaf); got != wantOld {
				t.Errorf("%s: old is trusted: %t", when, got)
			}
			if got := b.Trusts(youngLeaf); got != wantYoung {
				t.Errorf("%s: young is trusted: %t", when, got)
			}
		}

		b := NewBundle(0)
		check(b, "before the first observation", false, false)
		b.Observe([]byte("\n"), nil)
		check(b, "nothing published", true, true)
		b.Observe(old.pem())
		check(b, "just published", false, false)
		time.Sleep(DefaultSettleDelay)
		check(b, "settled", true, false)
		b.Observe(both, both)
		check(b, "second just published", true, false)
		time.Sleep(DefaultSettleDelay - time.Nanosecond)
		b.Observe(both, nil, both)
		check(b, "second not settled", true, false)
		time.Sleep(time.Nanosecond)
		check(b, "both settled", true, true)
		b.Observe(both, old.pem())
		check(b, "second in one configuration only", true, false)
		b.Observe(both, both)
		check(b, "second is back", true, false)
		b.Observe(young.pem(), old.pem())
		check(b, "configurations without a common CA", false, false)

		b = NewBundle(0)
		b.Observe(young.pem())
		check(b, "restart, only CA", false, true)
		b = NewBundle(0)
		b.Observe(both)
		check(b, "restart in the middle of a rotation", true, false)
		time.Sleep(DefaultSettleDelay)
		check(b, "restart, settled", true, true)
		time.Sleep(time.Minute)
		b = NewBundle(0)
		b.Observe(both)
		check(b, "restart after a rotation", true, true)
	})
}
