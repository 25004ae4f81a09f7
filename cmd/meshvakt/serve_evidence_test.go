package main

import (
	"strings"
	"testing"
	"time"
)

func TestDeclaredClockFlags(t *testing.T) {
	for name, c := range map[string]struct {
		most   time.Duration
		source string
		says   string
	}{
		"nothing is said":     {0, "", ""},
		"both":                {500 * time.Millisecond, "chrony on the node", ""},
		"no source":           {time.Second, "", "--evidence-clock-source"},
		"no bound":            {0, "chrony", "--evidence-clock-error"},
		"a bound below 0":     {-time.Second, "chrony", "at least 1µs"},
		"nanoseconds":         {1500, "chrony", "whole microseconds"},
		"a source of 2 lines": {time.Second, "chrony\non the node", "printable ASCII"},
		"a long source":       {time.Second, strings.Repeat("x", 129), "--evidence-clock-source"},
	} {
		o := evidenceOptions{mode: evidenceBestEffort, beat: time.Minute, clockError: c.most, clock: c.source}
		switch err := o.check(); {
		case c.says == "" && err != nil, c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v; must say %q", name, err, c.says)
		}
		if d := o.declared(); c.says == "" && (d == nil) != (c.most == 0) {
			t.Errorf("%s: declared %+v", name, d)
		}
	}
}
