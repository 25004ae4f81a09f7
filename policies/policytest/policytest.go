// Package policytest reads the test cases of the policies. One corpus serves
// every reader: the unit tests of package policies, `meshvakt check`, the webhook
// over HTTP, a real API server, fuzzing and benchmarks. Where two readers come to
// different decisions, one of them has a bug.
//
// A case is a directory policies/testdata/<policy>/<case> with these files, each
// of which begins with a comment that states its intent:
//
//	object.yaml   the object under review; on DELETE, the object that goes
//	cluster.yaml  the state of the cluster before the request, with the old object
//	old.yaml      the old object, where the state cannot hold it
//	final.yaml    on CREATE of a pod, what it is after injection
//	want.yaml     the request besides its objects, and the decision
//
// A pod is judged twice: as its author submits it (object.yaml), where injection
// is predicted, and final, as the validating webhook sees it after all mutating
// ones. final.yaml holds only what makes the pod different from a golden, the
// plain pod "web" as the real istiod injects it, testdata/injected/<name>.yaml. It
// is a strategic merge patch, and names the golden below its intent:
//
//	# A pod whose port 9000 is not captured.
//	# base: native
//
// The goldens and the files final.yaml are recorded, and compared with what istiod
// makes of object.yaml, by
//
//	go test -C test/e2e ./recordfinal [-update]
//
// unless a third comment "# by hand" says that something other than istiod had its
// hands in the pod. Without final.yaml a pod is final as it stands in object.yaml;
// if it has been injected there already, nobody submits it. Templates are always as
// submitted.
//
// want.yaml states the decision on the final object. Where the one on the pod as
// submitted is another, it stands beside it under "submitted"; and what the mutating
// webhook changes in that pod stands under "patch", in the final one under "patchFinal".
//
// The name of a case begins with the verdict on the final object: deny-, warn-,
// pass- or na-, the last when no policy has anything to judge.
package policytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// NotApplicable is the decision when no policy judges the request. The webhook
// answers it like an allow.
const NotApplicable policies.Outcome = "NotApplicable"

// Now is when all cases play.
func Now() time.Time { return time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) }

// Case is one case of the corpus.
type Case struct {
	Policy string // directory above, the policy's ID
	Name   string
	Dir    string

	// The files as they are. Old is nil when there is no old.yaml.
	Object, Old, Cluster []byte
	// Final is nil when there is no final.yaml.
	Final *Final
	Want  Want

	// parsed are the documents of files by their text. Reading YAML is most of what
	// a case costs, and some tests review each case dozens of times.
	parsed *sync.Map
}

// Want is want.yaml.
type Want struct {
	Operation admissionv1.Operation `json:"operation"`
	// Subresource is the one that the request is for, such as ephemeralcontainers.
	Subresource string `json:"subresource,omitempty"`
	MayUnguard  bool   `json:"mayUnguard,omitempty"`
	// User is the requesting user, where that matters, and MayApprove their right.
	User       string `json:"user,omitempty"`
	MayApprove bool   `json:"mayApprove,omitempty"`
	// OfflineOnly says why a real API server cannot be brought into this state;
	// empty when it can.
	OfflineOnly string `json:"offlineOnly,omitempty"`
	Answer      `json:",inline"`
	// Submitted is the answer to the pod as submitted; nil where it is the same.
	Submitted *Answer `json:"submitted,omitempty"`
	// Patch is what the mutating webhook changes in the pod as submitted, PatchFinal
	// what it changes in the final one, which it sees when it is asked after Istio.
	Patch      []objects.Operation `json:"patch,omitempty"`
	PatchFinal []objects.Operation `json:"patchFinal,omitempty"`
}

// Answer is a decision with its reasons.
type Answer struct {
	Decision policies.Outcome `json:"decision"`
	Findings []WantFinding    `json:"findings,omitempty"`
}

// AsSubmitted is the answer to the object as its author submits it.
func (w *Want) AsSubmitted() Answer {
	if w.Submitted != nil {
		return *w.Submitted
	}
	return w.Answer
}

// WantFinding is a finding with its texts in full.
type WantFinding struct {
	Policy  string                    `json:"policy"`
	Reason  string                    `json:"reason"`
	Action  v1alpha1.ValidationAction `json:"action"`
	Field   string                    `json:"field,omitempty"`
	Message string                    `json:"message"`
	Remedy  string                    `json:"remedy,omitempty"`
	// Exception is the one that lets it pass, namespace/name.
	Exception string `json:"exception,omitempty"`
}

// Load reads all cases below a directory of the form testdata/<policy>/<case>,
// sorted by policy and name. Missing files and files of other names fail the test.
func Load(tb testing.TB, dir string) []Case {
	tb.Helper()
	dirs, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		tb.Fatal(err)
	}
	slices.Sort(dirs)
	cases := make([]Case, 0, len(dirs))
	for _, d := range dirs {
		if filepath.Base(filepath.Dir(d)) == injectedDir {
			continue
		}
		c, err := load(d)
		if err != nil {
			tb.Error(err)
			continue
		}
		cases = append(cases, c)
	}
	if len(cases) == 0 {
		tb.Fatalf("no cases below %s", dir)
	}
	return cases
}

func load(dir string) (Case, error) {
	c := Case{Policy: filepath.Base(filepath.Dir(dir)), Name: filepath.Base(dir), Dir: dir, parsed: &sync.Map{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Case{}, err
	}
	var want, final []byte
	files := map[string]*[]byte{
		"object.yaml": &c.Object, "old.yaml": &c.Old, "cluster.yaml": &c.Cluster, "final.yaml": &final, "want.yaml": &want,
	}
	for _, e := range entries {
		data := files[e.Name()]
		if data == nil {
			return Case{}, fmt.Errorf("%s: no part of a case", filepath.Join(dir, e.Name()))
		}
		if *data, err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			return Case{}, err
		}
		if !bytes.HasPrefix(*data, []byte("# ")) {
			return Case{}, fmt.Errorf("%s: must begin with a comment that states its intent", filepath.Join(dir, e.Name()))
		}
	}
	for _, name := range []string{"object.yaml", "cluster.yaml", "want.yaml"} {
		if *files[name] == nil {
			return Case{}, fmt.Errorf("%s: missing", filepath.Join(dir, name))
		}
	}
	if err := yaml.UnmarshalStrict(want, &c.Want); err != nil {
		return Case{}, fmt.Errorf("%s: %w", filepath.Join(dir, "want.yaml"), err)
	}
	if final == nil {
		return c, nil
	}
	if c.Want.Operation != admissionv1.Create {
		return Case{}, fmt.Errorf("%s: only a CREATE has it", filepath.Join(dir, "final.yaml"))
	}
	if c.Final, err = parseFinal(filepath.Dir(filepath.Dir(dir)), final); err != nil {
		return Case{}, fmt.Errorf("%s: %w", filepath.Join(dir, "final.yaml"), err)
	}
	return c, nil
}

// Intent is the sentence at the beginning of object.yaml.
func (c *Case) Intent() string {
	line, _, _ := strings.Cut(string(c.Object), "\n")
	return strings.TrimPrefix(line, "# ")
}

// Review builds the request and its facts in the way `meshvakt check --final`
// does.
func (c *Case) Review(tb testing.TB) *facts.Review {
	tb.Helper()
	return c.review(tb, c.FinalDocument(tb), true)
}

// ReviewSubmitted is Review as `meshvakt check` does it. Unless the case Submits
// a pod it is the same.
func (c *Case) ReviewSubmitted(tb testing.TB) *facts.Review {
	tb.Helper()
	return c.review(tb, c.ObjectDocument(tb), !c.Submits(tb))
}

func (c *Case) review(tb testing.TB, object check.Document, final bool) *facts.Review {
	tb.Helper()
	cluster := c.documents(tb, "cluster.yaml", c.Cluster)
	state, err := check.NewState(cluster)
	if err != nil {
		tb.Fatal(err)
	}
	q := check.Request{
		Object:      object,
		Operation:   c.Want.Operation,
		SubResource: c.Want.Subresource,
		MayUnguard:  c.Want.MayUnguard,
		User:        c.Want.User,
		MayApprove:  c.Want.MayApprove,
		Final:       final,
	}
	if c.Old != nil {
		q.Old = &c.documents(tb, "old.yaml", c.Old)[0]
	}
	r, err := state.Review(q)
	if err != nil {
		tb.Fatal(err)
	}
	r.Now = Now()
	return r
}

// ObjectDocument is the object under review with its JSON.
func (c *Case) ObjectDocument(tb testing.TB) check.Document {
	tb.Helper()
	docs := c.documents(tb, "object.yaml", c.Object)
	if len(docs) != 1 {
		tb.Fatalf("%s: %d objects; must be one", filepath.Join(c.Dir, "object.yaml"), len(docs))
	}
	return docs[0]
}

// OldDocument is the object before the request, from old.yaml or else from the
// cluster; ok is false when there is none.
func (c *Case) OldDocument(tb testing.TB) (old check.Document, ok bool) {
	tb.Helper()
	if c.Old != nil {
		return c.documents(tb, "old.yaml", c.Old)[0], true
	}
	object := c.ObjectDocument(tb)
	for _, d := range c.ClusterDocuments(tb) {
		if d.Kind.GroupKind() == object.Kind.GroupKind() && d.Namespace == object.Namespace && d.Name == object.Name {
			return d, true
		}
	}
	return check.Document{}, false
}

// ClusterDocuments are the objects of the cluster with their JSON, in the order
// in which they came to be.
func (c *Case) ClusterDocuments(tb testing.TB) []check.Document {
	tb.Helper()
	return c.documents(tb, "cluster.yaml", c.Cluster)
}

func (c *Case) documents(tb testing.TB, file string, data []byte) []check.Document {
	tb.Helper()
	if docs, ok := c.parsed.Load(string(data)); ok {
		return slices.Clone(docs.([]check.Document))
	}
	docs, err := check.Parse(filepath.Join(c.Dir, file), data)
	if err != nil {
		tb.Fatal(err)
	}
	c.parsed.Store(string(data), slices.Clone(docs))
	return docs
}

// Verdict is the decision as want.yaml states it.
func Verdict(d *policies.Decision) policies.Outcome {
	if len(d.Judged) == 0 {
		return NotApplicable
	}
	return d.Outcome
}

// Got is the want.yaml that the decisions on the final object and on the one as
// submitted call for.
func (c *Case) Got(tb testing.TB, final, submitted *policies.Decision) Want {
	tb.Helper()
	w := c.Want
	w.Answer, w.Submitted = answer(final), nil
	if as := answer(submitted); c.Submits(tb) && !reflect.DeepEqual(as, w.Answer) {
		w.Submitted = &as
	}
	w.Patch, w.PatchFinal = nil, patch(tb, c.Review(tb), c.FinalDocument(tb))
	if c.Submits(tb) {
		w.Patch = patch(tb, c.ReviewSubmitted(tb), c.ObjectDocument(tb))
	}
	return w
}

// patch is what the policies change in an object.
func patch(tb testing.TB, r *facts.Review, d check.Document) []objects.Operation {
	tb.Helper()
	changes, err := policies.Mutate(policies.All(), r)
	if err != nil {
		tb.Fatal(err)
	}
	operations, err := objects.Patch(d.JSON, changes)
	if err != nil {
		tb.Fatal(err)
	}
	return asRead(tb, operations)
}

// asRead is a patch with values as want.yaml holds them, whatever the types were that
// they were made from.
func asRead(tb testing.TB, operations []objects.Operation) (patch []objects.Operation) {
	tb.Helper()
	raw, err := json.Marshal(operations)
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(raw, &patch); err != nil {
		tb.Fatal(err)
	}
	return patch
}

func answer(d *policies.Decision) Answer {
	a := Answer{Decision: Verdict(d)}
	for _, f := range d.Findings {
		w := WantFinding{
			Policy: f.Policy, Reason: f.Reason.Name, Action: f.Action,
			Field: f.Field, Message: f.Message, Remedy: f.Remedy,
		}
		if f.Exception != nil {
			w.Exception = f.Exception.Key()
		}
		a.Findings = append(a.Findings, w)
	}
	return a
}

// WriteWant rewrites want.yaml.
func (c *Case) WriteWant(tb testing.TB, w Want) {
	tb.Helper()
	data, err := yaml.Marshal(w)
	if err != nil {
		tb.Fatal(err)
	}
	data = append([]byte("# "+c.Intent()+"\n"), data...)
	if err := os.WriteFile(filepath.Join(c.Dir, "want.yaml"), data, 0o644); err != nil {
		tb.Fatal(err)
	}
}
