package main

import (
	"strings"
	"testing"

	"github.com/meshvakt/meshvakt/internal/probe"
)

// Flags that cannot mean what they say are refused before anything is measured.
func TestProbeRefuses(t *testing.T) {
	publish := []string{"--publish", "--node-name", "a"}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"--interval", "1h"}, "--interval is of no use without --publish"},
		{[]string{"--node-name", "a"}, "--node-name is of no use without --publish"},
		{[]string{"--disk-interval", "9h"}, "--disk-interval is of no use"},
		{[]string{"--contended-at", "9"}, "--contended-at is of no use"},
		{[]string{"--kubeconfig", "x"}, "--kubeconfig is of no use"},
		{[]string{"--log-level", "debug"}, "--log-level is of no use"},
		{[]string{"--log-format", "text"}, "--log-format is of no use"},
		{[]string{"--publish"}, `--node-name: ""`},
		{append(publish, "-o", "json"), "[output publish]"},
		{append(publish, "--window", "999ms"), "--window: 999ms; must be at least 1s"},
		{append(publish, "--interval", "1m"), "--interval: 1m0s; must be longer than --window, 1m0s"},
		{append(publish, "--disk-interval", "9m"), "--disk-interval: 9m0s"},
		{append(publish, "--contended-at", "0"), "--contended-at: 0"},
		{append(publish, "--contended-at", "100.5"), "--contended-at: 100.5"},
		{append(publish, "--contended-at", "NaN"), "--contended-at: NaN"},
		{append(publish, "--target", "istiod.istio-system"), `--target: "istiod.istio-system"; must be host:port`},
		{append(publish, "--target", strings.Repeat("x", 254)+":1"), "must be host:port"},
		{append(publish, strings.Fields(strings.Repeat(" --target a:1", 9))...), "--target: 9 of them; must be at most 8"},
		{append(publish, "--log-level", "loud"), "--log-level"},
		{append(publish, "--kubeconfig", t.TempDir()+"/absent"), "load the client configuration"},
	} {
		stdout, stderr, status := run("", append([]string{"probe"}, c.args...)...)
		if status != 2 || stdout != "" || !strings.Contains(stderr, c.says) {
			t.Errorf("%q: status %d, %q, %q; must be refused with %q", c.args, status, stdout, stderr, c.says)
		}
	}
}

// Without --publish nothing of it shows.
func TestProbeOnce(t *testing.T) {
	stdout, stderr, status := run("", "probe", "--window", "1s", "--dir", "", "-o", "json")
	if status != 0 || stderr != "" || !strings.Contains(stdout, `"stealPercent"`) {
		t.Fatalf("status %d, %s%s", status, stdout, stderr)
	}
	for _, field := range []string{"diskMeasuredAt", "StealMeasured", "stealMeasured"} {
		if strings.Contains(stdout, field) {
			t.Errorf("%s in %s", field, stdout)
		}
	}
}

// A steal that could not be measured is not a steal of nothing.
func TestProbeTable(t *testing.T) {
	for name, c := range map[string]struct {
		result probe.Result
		says   string
	}{
		"measured":     {probe.Result{StealMeasured: true, StealPercent: 3.25}, "CPU steal  3.25 %\n"},
		"none":         {probe.Result{StealMeasured: true}, "CPU steal  0.00 %\n"},
		"not measured": {probe.Result{Errors: []string{"CPU steal: no /proc/stat"}}, "not measured  CPU steal: no /proc/stat\n"},
	} {
		var out strings.Builder
		if err := writeProbe(&out, &c.result); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), c.says) || strings.Contains(out.String(), " %\n") != c.result.StealMeasured {
			t.Errorf("%s: %q; must say %q", name, out.String(), c.says)
		}
	}
}
