package verify

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// Logs are held against the audit log of the API server, which was told in each answer where the record of it is and
// what its hash is. Neither can be changed alone without the other showing it.

// find returns the receipts of a record.
func (a *Audit) find(origin string, seq uint64) []auditedReceipt {
	list := a.receipts[origin]
	i, _ := slices.BinarySearchFunc(list, seq, func(r auditedReceipt, seq uint64) int { return cmp.Compare(r.seq, seq) })
	n := i
	for n < len(list) && list[n].seq == seq {
		n++
	}
	return list[i:n]
}

// agrees tells what is wrong with a record by what the API server was told of it, if it was.
func (a *Audit) agrees(origin string, seq uint64, hash record.Hash) error {
	for _, r := range a.find(origin, seq) {
		if r.hash != hash {
			return fmt.Errorf("its hash is %s, and the API server was told of one with the hash %s at %s: the log was rewritten", hash, r.hash, stamp(timeOf(r.at)))
		}
	}
	return nil
}

// decided counts a decision of which the API server must have been told.
func (a *Audit) decided(origin string, seq uint64, at time.Time) {
	x := instant(at)
	if !a.tells(span{x - int64(auditMargin), x + int64(auditMargin)}) {
		return
	}
	a.out.Decisions++
	if len(a.find(origin, seq)) == 0 {
		a.out.Untold++
	}
}

// ends tells of receipts for records that the logs do not have.
func (f *fleet) ends() {
	a := f.options.Audit
	if a == nil || a.out.Cluster == "" || f.clusters[a.out.Cluster] == nil {
		return
	}
	c := f.clusters[a.out.Cluster]
	for origin, list := range a.receipts {
		at := span{list[0].at, list[0].at}
		for _, r := range list {
			at.from, at.to = min(at.from, r.at), max(at.to, r.at)
		}
		i := slices.IndexFunc(f.logs, func(l Log) bool { return l.Origin == origin })
		if i < 0 {
			c.withheld = append(c.withheld, absence{span{at.from, at.to + 1}, "the API server was told of records of " + origin + ", which is not here"})
			c.findings = append(c.findings, Finding{Code: FindingMissingLog, Cluster: c.uid, Log: origin, Seq: -1, From: timeOf(at.from), To: timeOf(at.to),
				What: fmt.Sprintf("the API server was told of records of this log, which is not here: %d", len(list))})
			continue
		}
		l := &f.logs[i]
		beyond, _ := slices.BinarySearchFunc(list, l.Size, func(r auditedReceipt, size uint64) int { return cmp.Compare(r.seq, size) })
		left := list[beyond:]
		switch {
		case len(left) == 0:
		case l.Closed:
			f.problem(origin, int64(left[0].seq), fmt.Sprintf("the log ends with %d records, and the API server was told of this one at %s: the log was cut", l.Size, stamp(timeOf(left[0].at))))
		default:
			c.findings = append(c.findings, Finding{Code: FindingTail, Cluster: c.uid, Log: origin, Seq: int64(left[0].seq), From: timeOf(left[0].at), To: timeOf(left[len(left)-1].at),
				What: fmt.Sprintf("the API server was told of records behind the end of the log, which were sealed later than it was taken, or it was cut: %d", len(left))})
		}
	}
}

// judge says what the audit log is good for, once all logs are read.
func (a *Audit) judge(clusters map[string]*cluster) {
	o := &a.out
	missing := slices.DeleteFunc([]string{"configmaps", "peerauthentications", "pods"}, func(r string) bool { return a.writes[r] })
	switch {
	case o.Cluster == "":
		o.Why = "no answer of Meshvakt's with a record is in it, so it cannot be told whose it is"
	case clusters[o.Cluster] == nil:
		o.Why = "it is of a cluster of which no log is here"
	case o.Decisions == 0:
		o.Why = "the logs that are here have no decision in the time of which it tells"
	case o.Untold*100 > o.Decisions:
		o.Why = fmt.Sprintf("of %d decisions in its time it does not have %d: that of an API server is missing, or a part of one", o.Decisions, o.Untold)
	case len(missing) > 0:
		o.Why = fmt.Sprintf("it has no write of %s at all, which its policy may leave out", missing[0])
	default:
		o.Used = true
	}
}

// unchanged reports whether nothing came, in a time that nobody of ours saw, that could have weakened the namespace and
// gone again. What was there before and behind is known to be the same.
func (a *Audit) unchanged(namespace string, hole span) bool {
	wide := span{hole.from - int64(auditMargin), hole.to + int64(auditMargin)}
	return a.tells(wide) && !slices.ContainsFunc(a.settings, wide.has) && !slices.ContainsFunc(a.pods[namespace], wide.has)
}
