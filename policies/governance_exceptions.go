package policies

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// GuardException. Who writes its terms is its requester, also where somebody changes
// what another has asked for. It is approved by a request that sets spec.approved and
// changes nothing else, so that nobody approves what they have not seen; from then on
// its terms stand, and it can only be ended earlier.
//
// How long it may last counts from its creation, so that it means the same whoever looks
// at it and whenever.

func judgeException(r *facts.Review, old, e *v1alpha1.GuardException) ([]Finding, error) {
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns == nil {
		return nil, fmt.Errorf("%w: namespace %q of the GuardException", ErrMissingFact, r.Namespace)
	}
	if e.DeletionTimestamp != nil {
		return nil, nil
	}
	j := &exceptionReview{Review: r, namespace: ns, old: old, e: e}
	written := old == nil || !sameTerms(&old.Spec, &e.Spec)
	switch {
	case old != nil && (old.Spec.Approved || old.Spec.Revoked):
		j.judgeFixed()
	case r.Approves():
		j.judgeApproval()
	default:
		j.judgeRequester(written)
		j.judgeUnapproved()
	}
	if written {
		j.judgeReasons()
		j.judgeEnd()
	}
	return j.found, nil
}

type exceptionReview struct {
	*facts.Review
	namespace *facts.Namespace
	old, e    *v1alpha1.GuardException
	found     []Finding
}

func (j *exceptionReview) refuse(reason Reason, field, message, remedy string) {
	j.found = append(j.found, refuse(reason, field, message, remedy))
}

// judgeRequester: whoever has written the terms has asked for them.
func (j *exceptionReview) judgeRequester(written bool) {
	want, whose := j.User.Username, "the user of this request"
	if !written {
		want, whose = j.old.Spec.Requester, "as before, for its terms are not changed"
	}
	if j.e.Spec.Requester != want {
		j.refuse(reasonRequesterForged(), "spec.requester", fmt.Sprintf("%s; must be %s, %s", quote(j.e.Spec.Requester), quote(want), whose),
			"leave it out, and Meshvakt fills it in; if it does not, its mutating webhook has not answered: give it yourself")
	}
}

// judgeUnapproved: nothing is approved by the one who writes it.
func (j *exceptionReview) judgeUnapproved() {
	if j.e.Spec.Approved {
		j.refuse(reasonApprovalForged(), "spec.approved", "true when the exception is created; must be set by another person, once it is there", "leave it out, and have another person set it")
	}
	if j.e.Spec.Approver != "" {
		j.refuse(reasonApprovalForged(), "spec.approver", fmt.Sprintf("%s, and nobody has approved; must be absent", quote(j.e.Spec.Approver)), "leave it out")
	}
}

func (j *exceptionReview) judgeApproval() {
	if names := j.changed(); len(names) > 0 {
		j.refuse(reasonApprovalForged(), "spec."+names[0], fmt.Sprintf("changed by the request that approves (%s); must be as it was", strings.Join(names, ", ")),
			"approve what is there, or let the requester change it first")
	}
	if j.e.Spec.Revoked {
		j.refuse(reasonApprovedTermsChanged(), "spec.revoked", "true; a revoked exception must not be approved", "ask for a new one")
	}
	if j.e.Spec.Requester != j.old.Spec.Requester {
		j.refuse(reasonRequesterForged(), "spec.requester", fmt.Sprintf("%s; must be %s, as before", quote(j.e.Spec.Requester), quote(j.old.Spec.Requester)), "leave it as it was")
	}
	if j.e.Spec.Approver != j.User.Username {
		j.refuse(reasonApprovalForged(), "spec.approver", fmt.Sprintf("%s; must be %s, the user of this request", quote(j.e.Spec.Approver), quote(j.User.Username)),
			"leave it out, and Meshvakt fills it in; if it does not, its mutating webhook has not answered: give it yourself")
	}
	if j.User.Username == j.old.Spec.Requester {
		j.refuse(reasonSelfApproval(), "spec.approved", fmt.Sprintf("set by %s, who has asked for the exception; must be set by another person", quote(j.User.Username)), "have somebody else approve it")
	}
	if !j.MayApprove {
		j.refuse(reasonMayNotApprove(), "spec.approved", fmt.Sprintf("set by %s, who does not have the verb approve on guardexceptions.meshvakt.io in namespace %q; must be set by someone who has", quote(j.User.Username), j.Namespace),
			"have somebody approve it who is bound to the ClusterRole meshvakt-approve there")
	}
}

// changed names the terms that differ from those before.
func (j *exceptionReview) changed() []string {
	names := changedTerms(&j.old.Spec, &j.e.Spec)
	if !j.e.Spec.ExpiresAt.Equal(&j.old.Spec.ExpiresAt) {
		names = append(names, "expiresAt")
	}
	return names
}

// judgeFixed: what is approved or revoked can only be ended.
func (j *exceptionReview) judgeFixed() {
	is := "approved"
	if j.old.Spec.Revoked {
		is = "revoked"
	}
	const remedy = "leave it as it was, or ask for a new exception; this one can be ended by spec.revoked true, or earlier by spec.expiresAt"
	for _, name := range changedTerms(&j.old.Spec, &j.e.Spec) {
		j.refuse(reasonApprovedTermsChanged(), "spec."+name, fmt.Sprintf("changed after the exception was %s; must be as it was", is), remedy)
	}
	if j.e.Spec.ExpiresAt.After(j.old.Spec.ExpiresAt.Time) {
		j.refuse(reasonApprovedTermsChanged(), "spec.expiresAt", fmt.Sprintf("%q is later than before, after the exception was %s; must not be later than %q",
			instant(j.e.Spec.ExpiresAt.Time), is, instant(j.old.Spec.ExpiresAt.Time)), remedy)
	}
	if j.old.Spec.Approved != j.e.Spec.Approved {
		j.refuse(reasonApprovedTermsChanged(), "spec.approved", fmt.Sprintf("%t after the exception was %s; must be as it was", j.e.Spec.Approved, is), remedy)
	}
	if j.old.Spec.Revoked && !j.e.Spec.Revoked {
		j.refuse(reasonApprovedTermsChanged(), "spec.revoked", "false after the exception was revoked; must stay true", "ask for a new exception")
	}
	if j.e.Spec.Requester != j.old.Spec.Requester {
		j.refuse(reasonRequesterForged(), "spec.requester", fmt.Sprintf("%s; must be %s, as before", quote(j.e.Spec.Requester), quote(j.old.Spec.Requester)), remedy)
	}
	if j.e.Spec.Approver != j.old.Spec.Approver {
		j.refuse(reasonApprovalForged(), "spec.approver", fmt.Sprintf("%s; must be %s, as before", quote(j.e.Spec.Approver), quote(j.old.Spec.Approver)), remedy)
	}
}

// judgeReasons: a word that no policy says lets nothing pass, and its author will think
// it does.
func (j *exceptionReview) judgeReasons() {
	for i, p := range j.e.Spec.Policies {
		known := exceptableReasons(p.Name)
		for k, name := range p.Reasons {
			if !slices.Contains(known, name) {
				j.refuse(reasonReasonUnknown(), fmt.Sprintf("spec.policies[%d].reasons[%d]", i, k),
					fmt.Sprintf("%s; must be a reason for which %s refuses, and of which exceptions are made", quote(name), p.Name),
					"name one of those on the policy's page, or leave reasons out to mean all")
			}
		}
	}
}

// exceptableReasons are the names of the reasons of a policy, but for those that are
// about more than a namespace.
func exceptableReasons(policy string) []string {
	var names []string
	for _, p := range All() {
		if p.ID != policy {
			continue
		}
		for _, r := range p.Reasons {
			if !slices.Contains([]Reason{reasonNamespaceUnguarded(), reasonSettingsWeakenMTLS(), reasonMeshSettingsWeakened()}, r) {
				names = append(names, r.Name)
			}
		}
	}
	return names
}

// judgeEnd: an exception ends, and within what the guards of its namespace take.
func (j *exceptionReview) judgeEnd() {
	ends := j.e.Spec.ExpiresAt.Time
	later := j.old == nil || ends.After(j.old.Spec.ExpiresAt.Time)
	if !ends.After(j.Now) {
		if later {
			j.refuse(reasonExceptionTooLong(), "spec.expiresAt", fmt.Sprintf("%q has passed; must be in the future", instant(ends)), "give the time at which the exception is to end")
		}
		return
	}
	created := j.e.GetCreationTimestamp().Time
	if created.IsZero() {
		created = j.Now
	}
	var selecting, taking []string
	var latest time.Time
	for i := range j.Cluster.Guards {
		g := &j.Cluster.Guards[i]
		if !j.Cluster.Selects(g, j.namespace.Name, j.namespace.Labels) {
			continue
		}
		selecting = append(selecting, g.Name)
		if g.Exceptions == nil {
			continue
		}
		taking = append(taking, g.Name)
		if last := created.Add(g.Exceptions.MaxDuration.Duration); last.After(latest) {
			latest = last
		}
	}
	slices.Sort(selecting)
	slices.Sort(taking)
	switch {
	case len(selecting) == 0:
		j.remark(fmt.Sprintf("no MeshGuard selects namespace %q, so that there is nothing to except", j.Namespace), "")
	case len(taking) == 0:
		j.remark(fmt.Sprintf("%s no exceptions, and namespace %q is under no other; spec.exceptions must be set there for this one to apply", guardsTake(selecting), j.Namespace),
			"ask those who keep the guard")
	case ends.After(latest) && !later:
		j.remark(fmt.Sprintf("%s none that lasts after %q, so that this one does not apply", guardsTake(taking), instant(latest)), "let it end earlier")
	case ends.After(latest):
		j.refuse(reasonExceptionTooLong(), "spec.expiresAt", fmt.Sprintf("%q is later than %s; must not be later than %q", instant(ends), guardsTake(taking), instant(latest)), "let it end earlier, and ask again then")
	case len(taking) < len(selecting):
		j.remark(fmt.Sprintf("only %s exceptions, and namespace %q must satisfy %s too", guardsTake(taking), j.Namespace,
			guardsText(slices.DeleteFunc(selecting, func(name string) bool { return slices.Contains(taking, name) }))), "ask those who keep the guards")
	}
}

func (j *exceptionReview) remark(message, remedy string) {
	f := refuse(reasonExceptionWithoutEffect(), "metadata.namespace", message, remedy)
	f.Severity = Notice
	j.found = append(j.found, f)
}

// guardsTake says that guards take what is said next.
func guardsTake(names []string) string {
	if len(names) == 1 {
		return guardsText(names) + " takes"
	}
	return guardsText(names) + " take"
}

func guardsText(names []string) string {
	if len(names) == 1 {
		return fmt.Sprintf("MeshGuard %q", names[0])
	}
	return "MeshGuards " + strings.Join(quotes(names), ", ")
}
