package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// The keys of audit annotations; the API server puts the webhook's name before.
const (
	AnnotationDecision = "decision"       // allow, warn or deny
	AnnotationPolicies = "policies"       // IDs of the policies that judged
	AnnotationFindings = "findings"       // codes of what they found
	AnnotationAudit    = "audit-findings" // the findings whose action is Audit
	AnnotationExcepted = "excepted"       // codes that exceptions let pass, and these
	AnnotationEvidence = "evidence"       // where the record is: ORIGIN#SEQ HASH, or "counted", or "gap"
)

// unchanged is the answer of a mutation that has nothing to change.
func unchanged(r *facts.Review) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{UID: types.UID(r.UID), Allowed: true}
}

// respondChanged turns changes into a JSON patch.
func respondChanged(q *request, changes []facts.Change) (*admissionv1.AdmissionResponse, error) {
	out := unchanged(q.review)
	if len(changes) == 0 {
		return out, nil
	}
	operations, err := objects.Patch(q.object, changes)
	if err != nil {
		return nil, err
	}
	if out.Patch, err = json.Marshal(operations); err != nil {
		return nil, fmt.Errorf("encode the patch: %w", err)
	}
	patchType := admissionv1.PatchTypeJSONPatch
	out.PatchType = &patchType
	return out, nil
}

// respond turns a decision into an answer. Every call makes its own: the UID
// must be that of the request, and nothing is shared that another request could
// write to.
func respond(r *facts.Review, d policies.Decision) *admissionv1.AdmissionResponse {
	out := unchanged(r)
	out.AuditAnnotations = annotations(d)
	out.Warnings = warnings(d.Findings)
	if d.Outcome != policies.Deny {
		return out
	}
	denials := slices.DeleteFunc(slices.Clone(d.Findings), func(f policies.Ruling) bool { return f.Action != v1alpha1.Deny })
	out.Allowed = false
	out.Result = &metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusForbidden,
		Reason:  metav1.StatusReasonForbidden,
		Message: denialText(denials),
		Details: &metav1.StatusDetails{
			Name:   r.Name,
			Group:  r.Kind.Group,
			Kind:   r.Kind.Kind,
			Causes: causes(denials),
		},
	}
	return out
}

// respondUnrecorded turns down what must not happen without a record. The request may be fine, so
// it is no 403: the same again will do once the log is back.
func respondUnrecorded(r *facts.Review, d policies.Decision, receipt string, refused error) *admissionv1.AdmissionResponse {
	out := unchanged(r)
	out.AuditAnnotations = annotations(d)
	out.AuditAnnotations[AnnotationEvidence] = receipt
	out.Allowed = false
	out.Result = &metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusServiceUnavailable,
		Reason:  metav1.StatusReasonServiceUnavailable,
		Message: clip(oneLine(refused.Error()), maxErrorRunes),
		Details: &metav1.StatusDetails{Name: r.Name, Group: r.Kind.Group, Kind: r.Kind.Kind},
	}
	return out
}

// causes repeats the findings for clients that read them one by one. The text is
// in the status message too, because kubectl prints one or the other, by reason.
func causes(denials []policies.Ruling) []metav1.StatusCause {
	list := make([]metav1.StatusCause, 0, min(len(denials), maxFindings))
	for _, r := range denials[:min(len(denials), maxFindings)] {
		f := r.Finding
		f.Field = ""
		list = append(list, metav1.StatusCause{
			Type:    f.Type,
			Message: clip(oneLine(f.Text()), maxFindingRunes),
			Field:   clip(oneLine(r.Field), maxFindingRunes),
		})
	}
	return list
}

func annotations(d policies.Decision) map[string]string {
	out := map[string]string{AnnotationDecision: strings.ToLower(string(d.Outcome))}
	if len(d.Judged) > 0 {
		out[AnnotationPolicies] = clip(strings.Join(d.Judged, ","), maxAnnotationRunes)
	}
	if list := codes(d); len(list) > 0 {
		out[AnnotationFindings] = clip(strings.Join(list, ","), maxAnnotationRunes)
	}
	if list := excepted(d); len(list) > 0 {
		out[AnnotationExcepted] = clip(strings.Join(list, ","), maxAnnotationRunes)
	}
	var audit strings.Builder
	for i := range d.Findings {
		if d.Findings[i].Action == v1alpha1.Audit && audit.Len() <= 4*maxAnnotationRunes {
			audit.WriteString(oneLine(d.Findings[i].Text()) + "\n")
		}
	}
	if audit.Len() > 0 {
		out[AnnotationAudit] = clip(strings.TrimSuffix(audit.String(), "\n"), maxAnnotationRunes)
	}
	return out
}

// excepted are the codes that exceptions let pass, each with the exception.
func excepted(d policies.Decision) []string {
	var list []string
	for _, f := range d.Findings {
		if f.Exception == nil {
			continue
		}
		if text := f.Reason.Code + " by " + f.Exception.Key(); !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	return list
}

// codes are the codes of a decision's findings, each once, hardest first.
func codes(d policies.Decision) []string {
	var list []string
	for _, f := range d.Findings {
		if !slices.Contains(list, f.Reason.Code) {
			list = append(list, f.Reason.Code)
		}
	}
	return list
}

// write sends the answer, in the version of the request, which is v1 since
// decode takes no other.
func (h *Handler) write(ctx context.Context, w http.ResponseWriter, r *facts.Review, response *admissionv1.AdmissionResponse) {
	out := admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Response: response,
	}
	body, err := json.Marshal(out)
	if err != nil {
		h.fail(ctx, w, r, failed(StageRespond, http.StatusInternalServerError, fmt.Errorf("encode AdmissionReview: %w", err)))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if _, err := w.Write(body); err != nil {
		h.recorder.Failed(StageRespond)
		h.log.LogAttrs(ctx, slog.LevelWarn, "answer not delivered", append(reviewAttrs(r), slog.String("err", err.Error()))...)
	}
}

func (h *Handler) logDecision(ctx context.Context, r *facts.Review, d policies.Decision, took time.Duration) {
	level := slog.LevelInfo
	if d.Outcome == policies.Allow {
		level = slog.LevelDebug
	}
	if !h.log.Enabled(ctx, level) {
		return
	}
	attrs := append(reviewAttrs(r),
		slog.Bool("dryRun", r.DryRun),
		slog.String("decision", strings.ToLower(string(d.Outcome))),
		slog.String("codes", strings.Join(codes(d), ",")),
		slog.Duration("duration", took),
	)
	h.log.LogAttrs(ctx, level, "decision", attrs...)
}

func (h *Handler) logChanges(ctx context.Context, r *facts.Review, changes []facts.Change, took time.Duration) {
	if !h.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	paths := make([]string, 0, len(changes))
	for _, c := range changes {
		paths = append(paths, strings.Join(c.Path, "."))
	}
	attrs := append(reviewAttrs(r), slog.Bool("dryRun", r.DryRun), slog.Any("changes", paths), slog.Duration("duration", took))
	h.log.LogAttrs(ctx, slog.LevelDebug, "mutation", attrs...)
}
