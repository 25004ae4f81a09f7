//go:build !simulatedtime

package main

import (
	"strings"
	"testing"
	"time"
)

// An ordinary build goes by the machine's clock, whatever its environment says, and does not say that it is another.
func TestOrdinaryBuildHasTheMachinesClock(t *testing.T) {
	t.Setenv("MESHVAKT_SIMULATED_CLOCK", "/nowhere")
	c, err := newClock()
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	now := c.now()
	if now.Before(before) || time.Now().Before(now) {
		t.Errorf("it is %s; the machine says %s", now, before)
	}
	if strings.Contains(strings.ToLower(version()), "simulated") {
		t.Errorf("the version is %q", version())
	}
}
