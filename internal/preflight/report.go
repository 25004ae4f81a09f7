package preflight

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// Result is what a check comes to.
type Result string

// The results. Unknown is what could not be looked at.
const (
	Pass    Result = "Pass"
	Warn    Result = "Warn"
	Fail    Result = "Fail"
	Unknown Result = "Unknown"
)

// Check is one thing looked at. IDs are permanent.
type Check struct {
	ID     string `json:"id"`
	Result Result `json:"result"`
	// Found is what was found, with its value.
	Found string `json:"found"`
	// Must is what must be; empty for a pass.
	Must string `json:"must,omitempty"`
	// Remedy is the cheapest way there.
	Remedy string `json:"remedy,omitempty"`
	// Details are single objects, at most detailsAtMost of them.
	Details []string `json:"details,omitempty"`
}

// Report is everything that preflight has to say.
type Report struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Time       time.Time `json:"time"`
	Kubernetes string    `json:"kubernetes"`
	// MissingRights are those that the user lacks, each as one would grant it.
	MissingRights []Right   `json:"missingRights"`
	Checks        []Check   `json:"checks"`
	Forecast      *Forecast `json:"forecast"`
	Summary       Summary   `json:"summary"`
}

// Summary counts the checks by result.
type Summary struct {
	Result  Result `json:"result"`
	Pass    int    `json:"pass"`
	Warn    int    `json:"warn"`
	Fail    int    `json:"fail"`
	Unknown int    `json:"unknown"`
}

// detailsAtMost bounds what a check lists.
const detailsAtMost = 5

// New judges what was read. The forecast is nil where there could be none; why says so.
func New(f *Facts, forecast *Forecast, why error) *Report {
	checks := slices.Concat(
		[]Check{kubernetesVersion(f)},
		istioChecks(f),
		webhookChecks(f),
		[]Check{nodeClasses(f)},
		ownChecks(f),
		forecastChecks(f, forecast, why),
	)
	r := &Report{
		APIVersion: v1alpha1.GroupVersion().String(), Kind: "PreflightReport", Time: f.Now.UTC(),
		Kubernetes: f.Version.Value, MissingRights: slices.Clone(f.Lacking), Checks: checks, Forecast: forecast,
	}
	if r.MissingRights == nil {
		r.MissingRights = []Right{}
	}
	for i := range checks {
		switch checks[i].Result {
		case Pass:
			r.Summary.Pass++
		case Warn:
			r.Summary.Warn++
		case Fail:
			r.Summary.Fail++
		case Unknown:
			r.Summary.Unknown++
		}
	}
	r.Summary.Result = r.Summary.result()
	return r
}

// result is the worst of all: a failure before what is not known, for no knowledge would
// mend it.
func (s *Summary) result() Result {
	switch {
	case s.Fail > 0:
		return Fail
	case s.Unknown > 0:
		return Unknown
	case s.Warn > 0:
		return Warn
	}
	return Pass
}

// unknown is a check that could not be made.
func unknown(id string, errs ...error) Check {
	c := Check{ID: id, Result: Unknown, Must: "be read, or nothing can be said about it"}
	var missing []string
	var other []error
	for _, err := range errs {
		var lacking *LackingError
		switch {
		case err == nil:
		case errors.As(err, &lacking):
			missing = append(missing, lacking.Right.Resource)
		default:
			other = append(other, err)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		c.Found = "not all could be looked at: the user may not list " + joined(slices.Compact(missing))
		c.Remedy = "have the roles that --print-rbac prints bound to the user"
		return c
	}
	c.Found = "not looked at"
	if len(other) > 0 {
		c.Found = fmt.Sprintf("not looked at: %v", other[0])
	}
	return c
}

// details bounds a list, and says how many are left out.
func details(list []string) []string {
	if len(list) <= detailsAtMost {
		return list
	}
	return append(slices.Clone(list[:detailsAtMost]), fmt.Sprintf("and %d more", len(list)-detailsAtMost))
}
