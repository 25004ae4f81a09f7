package webhook

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func TestRefusal(t *testing.T) {
	const text = `namespace "prod" is PERMISSIVE; must be STRICT [MV101]; set it to STRICT`
	a := newWebhook(t, guarded(t), judgedBy(func(*facts.Review, *facts.Guard) ([]policies.Finding, error) {
		return []policies.Finding{{
			Reason: policies.StrictMTLS().Reasons[0], Type: metav1.CauseTypeForbidden, Field: "metadata.namespace",
			Message: `namespace "prod" is PERMISSIVE; must be STRICT`, Remedy: "set it to STRICT",
		}}, nil
	})).ask(t, podReview("u"))
	s := a.Result
	if a.Allowed || s == nil {
		t.Fatalf("got %+v, want a refusal", a)
	}
	if want := "violates MeshGuard \"production\" (1 finding)\nmetadata.namespace: " + text; s.Message != want {
		t.Errorf("message\n%s\nwant\n%s", s.Message, want)
	}
	if s.Status != metav1.StatusFailure || s.Code != 403 || s.Reason != metav1.StatusReasonForbidden {
		t.Errorf("status %s, code %d, reason %s; want Failure, 403, Forbidden", s.Status, s.Code, s.Reason)
	}
	d := s.Details
	if d == nil || d.Name != "web" || d.Group != "" || d.Kind != "Pod" || len(d.Causes) != 1 {
		t.Fatalf("details %+v", d)
	}
	if want := (metav1.StatusCause{Type: metav1.CauseTypeForbidden, Message: text, Field: "metadata.namespace"}); d.Causes[0] != want {
		t.Errorf("cause %+v, want %+v", d.Causes[0], want)
	}
	for key, want := range map[string]string{AnnotationDecision: "deny", AnnotationPolicies: "strict-mtls", AnnotationFindings: "MV101"} {
		if got := a.AuditAnnotations[key]; got != want {
			t.Errorf("annotation %s: %q, want %q", key, got, want)
		}
	}
	if len(a.Warnings) != 0 {
		t.Errorf("warnings %q beside the refusal that says the same", a.Warnings)
	}
}

func TestUnguardedIsAllowed(t *testing.T) {
	c := guarded(t)
	c.Guards = nil
	a := newWebhook(t, c).ask(t, podReview("u"))
	if !a.Allowed || a.Result != nil || a.AuditAnnotations[AnnotationDecision] != "allow" {
		t.Errorf("got %+v, want allowed", a)
	}
	if _, ok := a.AuditAnnotations[AnnotationPolicies]; ok {
		t.Error("a policy is said to have judged where no guard is")
	}
}

func ruling(code string, action v1alpha1.ValidationAction, guards ...string) policies.Ruling {
	return policies.Ruling{
		Policy: "p", Guards: guards, Action: action,
		Finding: policies.Finding{
			Reason: policies.Reason{Name: "R" + code, Code: code}, Type: metav1.CauseTypeFieldValueInvalid,
			Field: "spec.x", Message: "is bad; must be good", Remedy: "make it good",
		},
	}
}

func TestActions(t *testing.T) {
	d := policies.Decision{Outcome: policies.Deny, Judged: []string{"p"}, Findings: []policies.Ruling{
		ruling("MV1", v1alpha1.Deny, "b", "a"),
		ruling("MV2", v1alpha1.Deny, "b"),
		ruling("MV3", v1alpha1.Warn, "c"),
		ruling("MV1", v1alpha1.Audit, "b"),
	}}
	a := respond(&facts.Review{UID: "u"}, d)
	const want = `violates MeshGuards "a", "b" (2 findings)
spec.x: is bad; must be good [MV1]; make it good
spec.x: is bad; must be good [MV2]; make it good`
	if a.Result.Message != want {
		t.Errorf("message\n%s\nwant\n%s", a.Result.Message, want)
	}
	if len(a.Result.Details.Causes) != 2 {
		t.Errorf("%d causes, want 2", len(a.Result.Details.Causes))
	}
	if want := "spec.x: is bad; must be good [MV3]; make it good"; len(a.Warnings) != 1 || a.Warnings[0] != want {
		t.Errorf("warnings %q, want %q", a.Warnings, want)
	}
	if got := a.AuditAnnotations[AnnotationFindings]; got != "MV1,MV2,MV3" {
		t.Errorf("findings %q", got)
	}
	if want := "spec.x: is bad; must be good [MV1]; make it good"; a.AuditAnnotations[AnnotationAudit] != want {
		t.Errorf("audit findings %q, want %q", a.AuditAnnotations[AnnotationAudit], want)
	}

	d.Outcome, d.Findings = policies.Warn, d.Findings[2:3]
	if a := respond(&facts.Review{UID: "u"}, d); !a.Allowed || a.Result != nil || len(a.Warnings) != 1 || a.AuditAnnotations[AnnotationDecision] != "warn" {
		t.Errorf("warn only: %+v", a)
	}
}

func TestManyFindingsStayBounded(t *testing.T) {
	for _, n := range []int{1, 15, 16, 17, 99, 100, 101, 1000} {
		for _, size := range []int{10, 200, 300, 3000} {
			d := policies.Decision{Outcome: policies.Deny, Judged: []string{"p"}}
			for _, action := range []v1alpha1.ValidationAction{v1alpha1.Deny, v1alpha1.Warn, v1alpha1.Audit} {
				for i := range n {
					r := ruling(fmt.Sprintf("MV%d", i), action, "g")
					r.Message = strings.Repeat("ø", size)
					d.Findings = append(d.Findings, r)
				}
			}
			checkBounds(t, n, size, respond(&facts.Review{UID: "u"}, d).Result, annotations(d), warnings(d.Findings))
		}
	}
}

func checkBounds(t *testing.T, n, size int, s *metav1.Status, annotations map[string]string, warnings []string) {
	t.Helper()
	lines := strings.Split(s.Message, "\n")
	if want := fmt.Sprintf("violates MeshGuard \"g\" (%s)", count(n, "finding")); lines[0] != want {
		t.Errorf("first line %q, want %q", lines[0], want)
	}
	wantLines := 1 + n
	if n > maxFindings {
		wantLines = 1 + maxFindings + 1
		if want := "and " + count(n-maxFindings, "more finding"); lines[len(lines)-1] != want {
			t.Errorf("last line %q, want %q", lines[len(lines)-1], want)
		}
	}
	if len(lines) != wantLines {
		t.Errorf("%d findings make %d lines, want %d", n, len(lines), wantLines)
	}
	if got := len(s.Details.Causes); got != min(n, maxFindings) {
		t.Errorf("%d findings make %d causes", n, got)
	}
	for _, l := range lines {
		if utf8.RuneCountInString(l) > maxFindingRunes {
			t.Errorf("line of %d runes", utf8.RuneCountInString(l))
		}
	}
	for key, value := range annotations {
		if utf8.RuneCountInString(value) > maxAnnotationRunes {
			t.Errorf("annotation %s has %d runes", key, utf8.RuneCountInString(value))
		}
	}
	total, shown := 0, len(warnings)
	for _, w := range warnings {
		runes := utf8.RuneCountInString(w)
		total += runes
	}
	for _, w := range warnings {
		if runes := utf8.RuneCountInString(w); runes > maxWarningRunes && shown < n {
			t.Errorf("warning of %d runes among %d of %d", runes, shown, n)
		}
	}
	if total > maxWarningsRunes {
		t.Errorf("%d warnings of %d make %d runes", n, size, total)
	}
	if shown < n {
		if last, want := warnings[shown-1], count(n-shown+1, "more finding")+" not shown"; last != want {
			t.Errorf("last warning %q, want %q", last, want)
		}
	}
}

// A warning is whole while there is room; what must be cut loses the diagnosis
// before the remedy.
func TestLongWarningBeginsWithTheRemedy(t *testing.T) {
	r := ruling("MV9", v1alpha1.Warn, "g")
	r.Message = strings.Repeat("x", 300)
	if got := warnings([]policies.Ruling{r})[0]; got != "[MV9] make it good; spec.x: "+r.Message+" [MV9]" {
		t.Errorf("alone: got %q", got)
	}
	list := make([]policies.Ruling, 20)
	for i := range list {
		list[i] = r
	}
	got := warnings(list)[0]
	if !strings.HasPrefix(got, "[MV9] make it good; spec.x: xxx") || !strings.HasSuffix(got, "x…") || utf8.RuneCountInString(got) != maxWarningRunes {
		t.Errorf("among 20: got %q", got)
	}
}

// Values out of objects must not forge lines, drive terminals, or make the API
// server drop a warning because it fits no HTTP header.
func TestTextIsDefused(t *testing.T) {
	r := ruling("MV9", v1alpha1.Warn, "g")
	r.Message = "value a\nviolates nothing\x1b[31m\r\x00\u0085\u2028 \xff"
	r.Field = "metadata.labels[a\nb]"
	warning := warnings([]policies.Ruling{r})[0]
	if _, err := utilnet.NewWarningHeader(299, "-", warning); err != nil {
		t.Errorf("warning %q: %v", warning, err)
	}
	r.Action = v1alpha1.Deny
	if text := denialText([]policies.Ruling{r}); strings.Count(text, "\n") != 1 || strings.ContainsAny(text, "\r\x1b\x00\u0085\u2028") {
		t.Errorf("message %q", text)
	}
	for _, c := range causes([]policies.Ruling{r}) {
		if strings.ContainsAny(c.Message+c.Field, "\n\r\x1b\x00") {
			t.Errorf("cause %+v", c)
		}
	}
}
