package observe

import (
	"cmp"
	"slices"
	"strings"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// What a record of a row has room for.
const (
	maxExcuses    = 8
	maxExceptions = 4
)

// strictMTLS is the policy that a weaker mode breaks.
const strictMTLS = "strict-mtls"

// excuse is a mode weaker than STRICT, and the exceptions that are for all workloads for which it applies.
type excuse struct {
	mode       mesh.Mode
	exceptions []string // UIDs, sorted
}

func compareExcuses(a, b excuse) int {
	return cmp.Or(slices.Compare(a.exceptions, b.exceptions), cmp.Compare(a.mode, b.mode))
}

// excuses tells for what of a namespace's weakness there are exceptions, in force or not: that depends on the time,
// and whoever reads the log knows since when and until when they were. Unexcused is the weakest mode that no exception
// is for. What is more than a record has room for counts as not excused.
func excuses(classes []mesh.Class, exceptions []*facts.Exception) (list []excuse, unexcused mesh.Mode) {
	unexcused = mesh.ModeStrict
	for i := range classes {
		weakest, _ := classes[i].Effective.Weakest()
		if weakest >= mesh.ModeStrict {
			continue
		}
		e := excuse{mode: weakest, exceptions: exceptionsFor(&classes[i], exceptions)}
		at := slices.IndexFunc(list, func(o excuse) bool { return slices.Equal(o.exceptions, e.exceptions) })
		switch {
		case len(e.exceptions) == 0, at < 0 && len(list) == maxExcuses:
			unexcused = min(unexcused, weakest)
		case at >= 0:
			list[at].mode = min(list[at].mode, weakest)
		default:
			list = append(list, e)
		}
	}
	slices.SortFunc(list, compareExcuses)
	return list, unexcused
}

// exceptionsFor are those that select each workload of the class, whatever other labels it has.
func exceptionsFor(c *mesh.Class, exceptions []*facts.Exception) []string {
	var uids []string
	for _, e := range exceptions {
		if e.UID != "" && e.Names(strictMTLS, "") && e.SelectsAll(c.Selector) {
			uids = append(uids, string(e.UID))
		}
	}
	slices.Sort(uids)
	return uids[:min(len(uids), maxExceptions)]
}

// excused is the record of excuses.
func excused(list []excuse) []record.Excuse {
	var records []record.Excuse
	for _, e := range list {
		records = append(records, record.Excuse{Mode: e.mode.String(), Exceptions: e.exceptions})
	}
	slices.SortFunc(records, func(a, b record.Excuse) int {
		return cmp.Compare(strings.Join(a.Exceptions, " "), strings.Join(b.Exceptions, " "))
	})
	return records
}
