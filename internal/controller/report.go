package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/scan"
)

// The bounds of a report: some 50 KiB.
const (
	resultsInReport = 50
	longestMessage  = 500
)

const (
	reportName = "meshvakt"
	// contentAnnotation is by what a new leader sees that a report is up to date.
	contentAnnotation = "meshvakt.io/content"
	// servedEvery is how often it is asked whether reports can be written.
	servedEvery = time.Minute
)

// ReportFormat is the API that reports are written to.
type ReportFormat string

// The formats, by the names of their flag.
const (
	OpenReports   ReportFormat = "openreports"
	PolicyReports ReportFormat = "policyreports"
	NoReports     ReportFormat = "none"
)

func (f ReportFormat) kind() schema.GroupVersionKind {
	if f == PolicyReports {
		return schema.GroupVersionKind{Group: "wgpolicyk8s.io", Version: "v1alpha2", Kind: "PolicyReport"}
	}
	return schema.GroupVersionKind{Group: "openreports.io", Version: "v1alpha1", Kind: "Report"}
}

// Reporter writes a report into every namespace that is scanned, for dashboards and
// other tools that read them. Where the API server does not serve them, it writes none.
type Reporter struct {
	Client client.Client
	Live   client.Reader // the cache is to hold no reports
	Format ReportFormat
	Log    *slog.Logger
	Now    func() time.Time

	mu      sync.Mutex
	written map[string]uint64 // guarded by mu; by namespace, what stands in the report; nil until it is known
	asked   time.Time         // guarded by mu; when it was last asked whether reports are served
	served  bool              // guarded by mu
}

// Tell writes the report of a namespace if it is another one than before, and takes it
// away for a namespace that is not looked at any more.
func (r *Reporter) Tell(ctx context.Context, namespace string, now *scan.Standing) {
	if err := r.tell(ctx, namespace, now); err != nil && ctx.Err() == nil {
		r.Log.WarnContext(ctx, "cannot write a report", "namespace", namespace, "error", err)
	}
}

func (r *Reporter) tell(ctx context.Context, namespace string, now *scan.Standing) error {
	if r.Format == NoReports || !r.ready(ctx) {
		return nil
	}
	if now == nil {
		return r.remove(ctx, namespace)
	}
	report, err := r.report(now)
	if err != nil {
		return err
	}
	content := report.GetAnnotations()[contentAnnotation]
	if r.has(namespace, content) {
		return nil
	}
	if err := r.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(report), FieldOwner, client.ForceOwnership); err != nil {
		return client.IgnoreNotFound(fmt.Errorf("apply the report in namespace %q: %w", namespace, err))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.written != nil { // else it is learnt again from what is there
		r.written[namespace] = sum(content)
	}
	return nil
}

func (r *Reporter) has(namespace, content string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was, ok := r.written[namespace]
	return ok && was == sum(content)
}

// ready reports whether reports are served, and learns which are there.
func (r *Reporter) ready(ctx context.Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	kind := r.Format.kind()
	if now := r.Now(); now.Sub(r.asked) >= servedEvery {
		r.asked = now
		_, err := r.Client.RESTMapper().RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil && !meta.IsNoMatchError(err) {
			r.Log.WarnContext(ctx, "cannot tell whether reports are served", "kind", kind.String(), "error", err)
		}
		if served := err == nil; served != r.served {
			r.served, r.written = served, nil
			r.Log.InfoContext(ctx, "reports", "kind", kind.String(), "served", served)
		}
	}
	if !r.served || r.written != nil {
		return r.served
	}
	written := map[string]uint64{}
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
	for next := ""; ; {
		err := r.Live.List(ctx, list, client.MatchingLabels{managedBy: "meshvakt"}, client.Limit(500), client.Continue(next))
		if err != nil {
			r.Log.WarnContext(ctx, "cannot list reports", "error", err)
			return false
		}
		for i := range list.Items {
			if o := &list.Items[i]; o.Name == reportName {
				written[o.Namespace] = sum(o.Annotations[contentAnnotation])
			}
		}
		if next = list.GetContinue(); next == "" {
			r.written = written
			return true
		}
	}
}

// Sweep takes away the reports of namespaces that are not known after a whole pass: they
// were left behind by a leader that has gone. Then it is learnt anew which are there, so
// that one that somebody has deleted is written again.
func (r *Reporter) Sweep(ctx context.Context, known func(namespace string) bool) {
	if r.Format == NoReports || !r.ready(ctx) {
		return
	}
	r.mu.Lock()
	var gone []string
	for namespace := range r.written {
		if !known(namespace) {
			gone = append(gone, namespace)
		}
	}
	r.mu.Unlock()
	slices.Sort(gone)
	for _, namespace := range gone {
		r.Tell(ctx, namespace, nil)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written = nil
}

func (r *Reporter) remove(ctx context.Context, namespace string) error {
	r.mu.Lock()
	_, there := r.written[namespace]
	r.mu.Unlock()
	if !there {
		return nil
	}
	report := &unstructured.Unstructured{}
	report.SetGroupVersionKind(r.Format.kind())
	report.SetNamespace(namespace)
	report.SetName(reportName)
	if err := r.Client.Delete(ctx, report); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete the report in namespace %q: %w", namespace, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.written, namespace)
	return nil
}

// managedBy is the label of what Meshvakt makes.
const managedBy = "app.kubernetes.io/managed-by"

// report is how a namespace stands, in the words of the API for reports. It holds no
// times, and so changes with what stands alone.
func (r *Reporter) report(s *scan.Standing) (*unstructured.Unstructured, error) {
	var results []any
	summary := map[string]any{"pass": int64(s.Passed), "fail": int64(0), "warn": int64(0), "skip": int64(0), "error": int64(s.Unjudged)}
	for i := range s.Results {
		entry := reportResult(s.Namespace, &s.Results[i])
		outcome, _ := entry["result"].(string)
		n, _ := summary[outcome].(int64)
		summary[outcome] = n + 1
		if len(results) < resultsInReport {
			results = append(results, entry)
		}
	}
	left := s.LeftOut + len(s.Results) - len(results)
	if left > 0 {
		results = append(results, map[string]any{
			"policy": "meshvakt", "rule": "LeftOut", "result": "fail", "source": "meshvakt", "scored": false,
			"message":    fmt.Sprintf("%d more results are left out; mend these first", left),
			"properties": map[string]any{"leftOut": fmt.Sprint(left)},
		})
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"scope":   map[string]any{"apiVersion": "v1", "kind": "Namespace", "name": s.Namespace},
		"summary": summary,
	}}
	if len(results) > 0 {
		u.Object["results"] = results
	}
	if r.Format == OpenReports {
		u.Object["source"] = "meshvakt"
	}
	text, err := json.Marshal(u.Object)
	if err != nil {
		return nil, fmt.Errorf("encode the report of namespace %q: %w", s.Namespace, err)
	}
	u.SetGroupVersionKind(r.Format.kind())
	u.SetNamespace(s.Namespace)
	u.SetName(reportName)
	u.SetLabels(map[string]string{managedBy: "meshvakt"})
	u.SetAnnotations(map[string]string{contentAnnotation: fmt.Sprintf("%016x", sum(string(text)))})
	return u, nil
}

func reportResult(namespace string, r *scan.Result) map[string]any {
	outcome, severity := "warn", "medium"
	if slices.Contains(r.Actions, v1alpha1.Deny) {
		outcome, severity = "fail", "high"
	}
	properties := map[string]any{"code": r.Reason.Code, "guards": fmt.Sprint(r.Guards), "objects": fmt.Sprint(r.Objects)}
	if r.Exception != "" {
		outcome, severity = "skip", "low"
		properties["exception"] = r.Exception
	}
	version, kind := r.Owner.Kind.ToAPIVersionAndKind()
	subject := map[string]any{"apiVersion": version, "kind": kind, "name": r.Owner.Name}
	if kind != "Namespace" || version != corev1.SchemeGroupVersion.String() {
		subject["namespace"] = namespace
	}
	if r.Owner.UID != "" {
		subject["uid"] = r.Owner.UID
	}
	return map[string]any{
		"policy": r.Policy, "rule": r.Reason.Name, "category": "Service mesh", "severity": severity, "result": outcome,
		"scored": true, "source": "meshvakt", "message": cut(resultText(r), longestMessage), "properties": properties, "resources": []any{subject},
	}
}

func sum(text string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(text))
	return h.Sum64()
}
