package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/policies"
)

func deployment(name string) scan.Object {
	return scan.Object{Kind: schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, Name: name, UID: "uid-" + name}
}

func resultOf(owner string, action v1alpha1.ValidationAction) scan.Result {
	return scan.Result{
		Owner: deployment(owner), First: scan.Object{Kind: schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, Name: owner + "-1"}, Objects: 2,
		Policy: "mesh-membership", Reason: policies.Reason{Name: "NotInMesh", Code: "MV201"}, Text: "spec.containers: there is no proxy [MV201]",
		Guards: []string{"default"}, Actions: []v1alpha1.ValidationAction{action},
	}
}

// reports is an API server that serves a kind of reports.
func reports(t *testing.T, format ReportFormat, served bool, writes *[]string) (*Reporter, client.Client) {
	t.Helper()
	scheme := runtime.NewScheme()
	kind := format.kind()
	mapper := meta.NewDefaultRESTMapper(nil)
	scheme.AddKnownTypeWithName(kind, &unstructured.Unstructured{})
	scheme.AddKnownTypeWithName(kind.GroupVersion().WithKind(kind.Kind+"List"), &unstructured.UnstructuredList{})
	if served {
		mapper.Add(kind, meta.RESTScopeNamespace)
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(mapper).WithInterceptorFuncs(interceptor.Funcs{
		// The fake knows no server-side apply of what has no schema.
		Apply: func(ctx context.Context, c client.WithWatch, config runtime.ApplyConfiguration, _ ...client.ApplyOption) error {
			*writes = append(*writes, "apply")
			raw, err := json.Marshal(config)
			if err != nil {
				return err
			}
			u := &unstructured.Unstructured{}
			if err := json.Unmarshal(raw, u); err != nil {
				return err
			}
			old := u.DeepCopy()
			if c.Get(ctx, client.ObjectKeyFromObject(u), old) == nil {
				u.SetResourceVersion(old.GetResourceVersion())
				return c.Update(ctx, u)
			}
			return c.Create(ctx, u)
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			*writes = append(*writes, "delete")
			return c.Delete(ctx, o, opts...)
		},
	}).Build()
	return &Reporter{Client: c, Live: c, Format: format, Log: slog.New(slog.DiscardHandler), Now: time.Now}, c
}

func storedReport(t *testing.T, c client.Client, format ReportFormat) map[string]any {
	t.Helper()
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(format.kind())
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "prod", Name: "meshvakt"}, u); err != nil {
		t.Fatal(err)
	}
	return u.Object
}

func TestReport(t *testing.T) {
	for _, format := range []ReportFormat{OpenReports, PolicyReports} {
		t.Run(string(format), func(t *testing.T) {
			var writes []string
			r, c := reports(t, format, true, &writes)
			excepted := resultOf("old", v1alpha1.Deny)
			excepted.Exception = "migration"
			s := &scan.Standing{Namespace: "prod", Passed: 2, Unjudged: 1, Results: []scan.Result{resultOf("web", v1alpha1.Deny), resultOf("cart", v1alpha1.Audit), excepted}}
			r.Tell(t.Context(), "prod", s)
			r.Tell(t.Context(), "prod", s) // nothing new
			if len(writes) != 1 {
				t.Fatalf("writes %q; want one", writes)
			}
			got := storedReport(t, c, format)
			if summary := fmt.Sprint(got["summary"]); summary != "map[error:1 fail:1 pass:2 skip:1 warn:1]" {
				t.Errorf("summary %s", summary)
			}
			if _, has := got["source"]; has != (format == OpenReports) {
				t.Errorf("source at the top: %t", has)
			}
			results, _ := got["results"].([]any)
			first, _ := results[0].(map[string]any)
			if len(results) != 3 || first["result"] != "fail" || first["rule"] != "NotInMesh" || !strings.Contains(fmt.Sprint(first["resources"]), "name:web") ||
				!strings.Contains(fmt.Sprint(first["message"]), "2 pods such as web-1: spec.containers") {
				t.Errorf("%d results, the first %v", len(results), first)
			}
			// The next leader knows what is written already.
			next := &Reporter{Client: c, Live: c, Format: format, Log: r.Log, Now: time.Now}
			next.Tell(t.Context(), "prod", s)
			s.Results = s.Results[:1]
			next.Tell(t.Context(), "prod", s)
			next.Tell(t.Context(), "dev", nil)
			next.Sweep(t.Context(), func(namespace string) bool { return namespace == "prod" })
			if got := strings.Join(writes, " "); got != "apply apply" {
				t.Errorf("writes %q; want one by the next leader", got)
			}
			next.Sweep(t.Context(), func(string) bool { return false })
			if got := strings.Join(writes, " "); got != "apply apply delete" {
				t.Errorf("writes %q; want the report of a namespace that is not guarded any more to be deleted", got)
			}
		})
	}
}

// A report that somebody has deleted is there again after the next pass, and one that is as
// it must be is not written.
func TestReportComesBack(t *testing.T) {
	var writes []string
	r, c := reports(t, OpenReports, true, &writes)
	pass := func() {
		for _, name := range []string{"dev", "prod"} {
			r.Tell(t.Context(), name, &scan.Standing{Namespace: name, Results: []scan.Result{resultOf("web", v1alpha1.Deny)}})
		}
		r.Sweep(t.Context(), func(string) bool { return true })
	}
	pass()
	pass()
	if got := strings.Join(writes, " "); got != "apply apply" {
		t.Fatalf("writes %q; want each report once", got)
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(OpenReports.kind())
	u.SetNamespace("prod")
	u.SetName("meshvakt")
	if err := c.Delete(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	pass()
	if got := strings.Join(writes, " "); got != "apply apply delete apply" {
		t.Errorf("writes %q; want the one that is gone, alone", got)
	}
	storedReport(t, c, OpenReports)
}

// It ceases to be served, or a pass ends, in the moment in which a report is written.
func TestReportWhileAllIsLearntAnew(t *testing.T) {
	var writes []string
	r, _ := reports(t, OpenReports, true, &writes)
	c := r.Client
	r.Client = interceptor.NewClient(c.(client.WithWatch), interceptor.Funcs{Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
		r.Sweep(ctx, func(string) bool { return true })
		return c.Apply(ctx, o, opts...)
	}})
	for range 2 {
		r.Tell(t.Context(), "prod", &scan.Standing{Namespace: "prod"})
	}
	if got := strings.Join(writes, " "); got != "apply" {
		t.Errorf("writes %q; want one", got)
	}
}

func TestReportIsBounded(t *testing.T) {
	var writes []string
	r, c := reports(t, OpenReports, true, &writes)
	s := &scan.Standing{Namespace: "prod", LeftOut: 7}
	for i := range scan.MaxResults {
		one := resultOf(fmt.Sprintf("web-%d", i), v1alpha1.Deny)
		one.Text = strings.Repeat("ø", 5000)
		s.Results = append(s.Results, one)
	}
	r.Tell(t.Context(), "prod", s)
	got := storedReport(t, c, OpenReports)
	results, _ := got["results"].([]any)
	raw, err := json.Marshal(got)
	if err != nil || len(raw) > 64<<10 || len(results) != resultsInReport+1 {
		t.Errorf("%d bytes, %d results, %v", len(raw), len(results), err)
	}
	if last := fmt.Sprint(results[resultsInReport]); !strings.Contains(last, "57 more results are left out") {
		t.Errorf("the last result is %s", last)
	}
}

func TestReportsThatNobodyServes(t *testing.T) {
	for name, r := range map[string]struct {
		format ReportFormat
		served bool
	}{"the kind is not there": {OpenReports, false}, "they are not wanted": {NoReports, true}} {
		var writes []string
		reporter, _ := reports(t, r.format, r.served, &writes)
		reporter.Tell(t.Context(), "prod", &scan.Standing{Namespace: "prod"})
		reporter.Sweep(t.Context(), func(string) bool { return false })
		if len(writes) > 0 {
			t.Errorf("%s: writes %q", name, writes)
		}
	}
}
