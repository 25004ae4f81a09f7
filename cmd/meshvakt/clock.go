package main

import (
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// clock is what evidence is dated by, and judgements that depend on the time. There is one for the process, and in
// every build but that for tests it is the machine's. What others have a part in goes by the machine's clock always:
// certificates, the lease of the leader, the pace at which the API server is asked.
type clock struct {
	now func() time.Time
	// since is the time since the start of the process, which nobody sets.
	since func() time.Duration
	// ticker is as time.NewTicker: what comes, and how to end it.
	ticker func(time.Duration) (ticks <-chan time.Time, stop func())
	// quality is what is known of how wrong now may be.
	quality func() record.Clock
	// disk is how long a record may take to be stored, 0 for as long as the spool says.
	disk time.Duration
}
