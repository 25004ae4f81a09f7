package controller

import (
	"fmt"
	"math"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/scan"
)

const (
	// statusEvery is how often the status of a guard is written at most for what the scan
	// finds.
	statusEvery = 2 * time.Second
	// ownAgain is how soon it is looked again at what was wrong with own objects.
	ownAgain = time.Minute
	// reasonsInStatus bounds the reasons that are named of a namespace.
	reasonsInStatus = 5
)

// fillScan adds what the scan has found to a status that knows the modes alone. Until
// this leader has looked at all, what the one before it wrote stays.
func (s *Standing) fillScan(guard *v1alpha1.MeshGuard, before *v1alpha1.MeshGuardStatus) {
	if s.Ledger == nil {
		return
	}
	status := &guard.Status
	at, _, failing := s.Ledger.Scanned()
	s.setDegraded(guard, failing)
	c := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionCompliant)
	if c == nil || c.Reason == reasonInvalidSelector {
		status.Scan = nil
		return
	}
	next := *c
	if at.IsZero() {
		status.Namespaces.Compliant, status.Namespaces.Violating = before.Namespaces.Compliant, before.Namespaces.Violating
		if was := meta.FindStatusCondition(before.Conditions, c.Type); was != nil && before.Scan != nil && c.Status == metav1.ConditionTrue && was.Reason != reasonNotStrict {
			next = *was
		}
	} else {
		t := s.Ledger.Totals(guard.Name, s.Now())
		status.Namespaces.Violating = count(t.Violating)
		status.Namespaces.Compliant = count(t.Guarded - t.Violating)
		status.Scan = scanStatus(&t, at)
		next = compliance(next, &t)
	}
	// As it was before, so that a change counts for one only when it is one.
	if was := meta.FindStatusCondition(before.Conditions, c.Type); was != nil {
		*c = *was
	} else {
		meta.RemoveStatusCondition(&status.Conditions, c.Type)
	}
	next.LastTransitionTime = metav1.Time{}
	meta.SetStatusCondition(&status.Conditions, next)
}

// compliance is the condition Compliant, which so far is about the modes alone, by what
// has been found.
func compliance(next metav1.Condition, t *scan.Totals) metav1.Condition {
	switch {
	case t.Found > 0:
		text := fmt.Sprintf("%s in %d of %d guarded namespaces: %s", counted(t.Found, "finding stands", "findings stand"), t.Violating, t.Guarded, worstText(t))
		if next.Status == metav1.ConditionFalse {
			next.Message += "; " + text
		} else {
			next.Status, next.Reason, next.Message = metav1.ConditionFalse, "FindingsStand", text
		}
	case next.Status == metav1.ConditionTrue:
		next.Reason = "NothingFound"
		next.Message += fmt.Sprintf(", and none of %d pods nor anything else in them breaks a policy", t.Pods)
		if t.Excepted > 0 {
			next.Message += ", but for " + counted(t.Excepted, "finding that an exception lets", "findings that exceptions let") + " pass"
		}
	}
	return next
}

// scanStatus is what a scan that ended at a time says of a guard.
func scanStatus(t *scan.Totals, at time.Time) *v1alpha1.ScanStatus {
	st := &v1alpha1.ScanStatus{
		LastScanTime: metav1.Time{Time: at.Truncate(time.Second)}, Pods: count(t.Pods), StaleInjection: count(t.Stale),
		Exceptions: v1alpha1.ExceptionCounts{Active: count(t.Active), Expiring: count(t.Expiring), Expired: count(t.Expired)},
	}
	for _, c := range t.Counts { // sorted by policy
		if n := len(st.Findings); n == 0 || st.Findings[n-1].Policy != c.Policy {
			st.Findings = append(st.Findings, v1alpha1.PolicyFindings{Policy: c.Policy})
		}
		last := &st.Findings[len(st.Findings)-1]
		last.Findings += count(c.Found)
		last.Excepted += count(c.Excepted)
	}
	for i := range t.Worst {
		w := &t.Worst[i]
		reasons := w.Reasons(t.Guard)
		st.Worst = append(st.Worst, v1alpha1.NamespaceFindings{
			Name: w.Namespace, Findings: count(w.Found(t.Guard)), Reasons: reasons[:min(len(reasons), reasonsInStatus)],
		})
	}
	return st
}

func worstText(t *scan.Totals) string {
	const named = 3
	var parts []string
	for i := range t.Worst[:min(len(t.Worst), named)] {
		w := &t.Worst[i]
		parts = append(parts, fmt.Sprintf("%s (%d, %s)", w.Namespace, w.Found(t.Guard), w.Reasons(t.Guard)[0]))
	}
	if more := t.Violating - len(parts); more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(parts, ", "), more)
	}
	return strings.Join(parts, ", ")
}

// setDegraded says whether Meshvakt can do its part.
func (s *Standing) setDegraded(guard *v1alpha1.MeshGuard, failing error) {
	c := metav1.Condition{
		Type: v1alpha1.ConditionDegraded, Status: metav1.ConditionFalse, ObservedGeneration: guard.Generation,
		Reason: "AsExpected", Message: "what is guarded is scanned, and what is restored stays",
	}
	var undone []string
	if s.Undone != nil {
		undone = s.Undone(guard.Name)
	}
	switch {
	case len(undone) > 0:
		c.Status, c.Reason = metav1.ConditionTrue, "RestorationUndone"
		c.Message = fmt.Sprintf("STRICT is restored and lost again time after time in %s: %s; find who changes their PeerAuthentications, GitOps perhaps", counted(len(undone), "namespace", "namespaces"), firstNames(undone))
	case failing != nil:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, "ScanFails", failing.Error()
	case s.Own != nil:
		if reason, message := s.Own.Degradation(); reason != "" {
			c.Status, c.Reason, c.Message = metav1.ConditionTrue, reason, message
		}
	}
	meta.SetStatusCondition(&guard.Status.Conditions, c)
}

func count(n int) int32 { return int32(min(n, math.MaxInt32)) } //nolint:gosec // bounded above, and never negative
