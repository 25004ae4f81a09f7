package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/policytest"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// findings are those of an action that the case states.
func (p *playedCase) findings(action v1alpha1.ValidationAction) []policies.Finding {
	var list []policies.Finding
	for _, w := range p.Want.Findings {
		if w.Action != action {
			continue
		}
		f := policies.Finding{Field: w.Field, Message: w.Message, Remedy: w.Remedy}
		for _, policy := range policies.All() {
			for _, r := range policy.Reasons {
				if policy.ID == w.Policy && r.Name == w.Reason {
					f.Reason = r
				}
			}
		}
		list = append(list, f)
	}
	return list
}

// compare returns how the answer differs from what the case states.
func compare(c *playedCase, err error, w *witness) error {
	var errs []error
	if c.Want.Decision != policies.Deny {
		if err != nil {
			errs = append(errs, fmt.Errorf("got %w; want %s", err, c.Want.Decision))
		}
	} else {
		errs = append(errs, c.compareDenial(err))
	}
	var warnings []string
	for _, f := range c.findings(v1alpha1.Warn) {
		warnings = append(warnings, warning(f))
	}
	warnings = append(warnings, c.exceptedWarnings()...)
	var got []string
	for _, text := range w.warnings {
		got = append(got, c.asPlayed(text))
	}
	if !slices.Equal(got, warnings) {
		errs = append(errs, fmt.Errorf("got warnings %q\n want %q", got, warnings))
	}
	return errors.Join(errs...)
}

func (p *playedCase) compareDenial(err error) error {
	whose := "MeshGuard"
	if p.Policy == "governance" {
		whose = "the rules of Meshvakt itself"
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != http.StatusForbidden || !strings.Contains(err.Error(), "meshvakt.io\" denied the request: violates "+whose) {
		return fmt.Errorf("got %v; want a refusal by Meshvakt", err) //nolint:errorlint // may be nil
	}
	var got, want []metav1.StatusCause
	if d := status.Status().Details; d != nil {
		for _, c := range d.Causes {
			got = append(got, metav1.StatusCause{Field: c.Field, Message: p.asPlayed(c.Message)})
		}
	}
	for _, f := range p.findings(v1alpha1.Deny) {
		field := f.Field
		if !strings.Contains(p.asPlayed(err.Error()), "\n"+f.Text()) {
			return fmt.Errorf("the message lacks %q:\n%w", f.Text(), err)
		}
		f.Field = ""
		want = append(want, metav1.StatusCause{Field: field, Message: f.Text()})
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("got causes %q\n want %q", got, want)
	}
	return nil
}

// warning is a finding as a warning: with the remedy first if the API server
// might cut it.
func warning(f policies.Finding) string {
	if text := f.Text(); utf8.RuneCountInString(text) <= 256 || f.Remedy == "" {
		return text
	}
	remedy := f.Remedy
	f.Remedy = ""
	return "[" + f.Reason.Code + "] " + remedy + "; " + f.Text()
}

// witness notes what comes with the answers a user gets.
type witness struct {
	mu       sync.Mutex
	warnings []string // guarded by mu
	auditID  string   // guarded by mu; of the last answer
}

func (w *witness) client(t *testing.T, user controlplane.User) client.Client {
	t.Helper()
	config := plane.RestConfig(user)
	config.WarningHandler = w
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			response, err := next.RoundTrip(r)
			if err == nil {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.auditID = response.Header.Get("Audit-Id")
			}
			return response, err
		})
	})
	c, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	return c
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// HandleWarningHeader keeps the warning, unless it is Kubernetes' own about a field
// of a pod: Istio sets some variables twice.
func (w *witness) HandleWarningHeader(code int, _, text string) {
	kubernetes := strings.HasPrefix(text, "spec.") && !strings.Contains(text, "[MV")
	if code == 299 && !kubernetes {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.warnings = append(w.warnings, text)
	}
}

var _ rest.WarningHandler = (*witness)(nil)

// checkAudit compares the audit annotations of all requests with the cases.
func (y *corpusPlayer) checkAudit(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	left := maps.Clone(y.audits)
	_, err := plane.WaitAudit(ctx, func(e controlplane.AuditEvent) bool {
		if c := left[e.AuditID]; c != nil && e.ResponseStatus.Code != 0 {
			delete(left, e.AuditID)
			y.audit(t, c, &e)
		}
		return len(left) == 0
	})
	if err != nil {
		t.Errorf("%v: %d requests are not in the audit log", err, len(left))
	}
}

func (y *corpusPlayer) audit(t *testing.T, c *playedCase, e *controlplane.AuditEvent) {
	t.Helper()
	var audit bytes.Buffer
	for _, f := range c.findings(v1alpha1.Audit) {
		audit.WriteString(f.Text() + "\n")
	}
	want := strings.TrimSuffix(audit.String(), "\n")
	asked, found, excepted := false, "", ""
	for key, value := range e.Annotations {
		switch {
		case strings.HasSuffix(key, "meshvakt.io/decision"):
			asked = true
			if value != strings.ToLower(string(c.Want.Decision)) {
				t.Errorf("%s: audit annotation %s is %q; must be %q", c.Name, key, value, c.Want.Decision)
			}
		case strings.HasSuffix(key, "meshvakt.io/audit-findings"):
			found = value
		case strings.HasSuffix(key, "meshvakt.io/excepted"):
			excepted = value
		}
	}
	if excepted != c.excepted() {
		t.Errorf("%s: audit annotation excepted is %q; must be %q", c.Name, excepted, c.excepted())
	}
	if found != want {
		t.Errorf("%s: audit findings %q; must be %q", c.Name, found, want)
	}
	if c.Want.Decision == policytest.NotApplicable && asked {
		t.Errorf("%s: the API server asked about what no policy judges", c.Name)
	}
	if !asked && len(c.Want.Findings) > 0 {
		t.Errorf("%s: has findings, but no decision in the audit log", c.Name)
	}
	if asked {
		y.asked++
	}
}
