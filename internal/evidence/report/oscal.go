package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// objective is what a finding is about. Each stands for one control alone: that a log can say something to a
// requirement does not make it an assessment of it.
type objective struct{ id, control, prose string }

const (
	objectiveStrict     = "mtls-strict"
	objectiveComplete   = "observation-complete"
	objectiveTwoPersons = "exceptions-two-persons"
	objectiveIntegrity  = "log-integrity"
)

func objectives() []objective {
	return []objective{
		{objectiveStrict, "gdpr-32", "Workloads of the namespace accept mutual TLS alone, as Istio applies it, for all of the period."},
		{objectiveComplete, "gdpr-5-2", "All of the period was observed."},
		{objectiveTwoPersons, "dora-6", "No exception was approved by whoever asked for it."},
		{objectiveIntegrity, "nsm-3.2.6", "The logs are whole and unchanged, none is missing, and their keys are known from elsewhere."},
	}
}

// oscal builds one document. Its identifiers follow from the logs, the period and what they are of, so that the same
// evidence gives the same document.
type oscal struct {
	*report
	base uuid.UUID
}

// OSCAL writes assessment results in the JSON of NIST's OSCAL 1.1.3.
func OSCAL(w io.Writer, in Input) error {
	r, err := narrow(in)
	if err != nil {
		return err
	}
	var seed strings.Builder
	fmt.Fprintf(&seed, "meshvakt evidence report\n%s %s %q %t\n", stamp(r.From), stamp(r.To), r.Namespaces, r.AcceptInferred)
	for _, l := range r.logs {
		fmt.Fprintf(&seed, "%q %d %s\n", l.Origin, l.Size, l.Root)
	}
	o := oscal{r, uuid.NewSHA1(uuid.NameSpaceOID, []byte(seed.String()))}
	text, err := json.MarshalIndent(o.document(), "", "  ")
	if err != nil {
		return fmt.Errorf("make the OSCAL document: %w", err)
	}
	if _, err := w.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("write the OSCAL document: %w", err)
	}
	return nil
}

func (o oscal) id(what ...string) string {
	return uuid.NewSHA1(o.base, []byte(strings.Join(what, "\x00"))).String()
}

func (o oscal) document() oscalDocument {
	modified := o.To
	for i, l := range o.logs {
		if i == 0 || modified.Before(l.To) {
			modified = l.To
		}
	}
	a := oscalResults{
		UUID:     o.id("assessment-results"),
		Metadata: oscalMetadata{Title: "Evidence of mutual TLS, " + stamp(o.From) + " to " + stamp(o.To), LastModified: stamp(modified), Version: "1", OSCAL: "1.1.3"},
		ImportAP: oscalImport{Href: "#" + o.id("no-plan"), Remarks: "There was no assessment plan. The resource that this leads to says so."},
	}
	var local oscalTopDefinitions
	for _, ob := range objectives() {
		local.Objectives = append(local.Objectives, oscalObjective{ControlID: ob.control, Parts: []oscalPart{{ID: ob.id, Name: "objective", Prose: ob.prose}}})
	}
	a.LocalDefinitions = &local
	clusters := o.clusters
	if len(clusters) == 0 {
		clusters = []string{""}
	}
	for _, c := range clusters {
		a.Results = append(a.Results, o.result(c))
	}
	a.BackMatter.Resources = []oscalResource{{
		UUID: o.id("no-plan"), Title: "No assessment plan",
		Description: "These results come out of continuous records of an admission webhook and not of a planned assessment. There was no assessment plan, and none is made up here.",
	}}
	for _, l := range o.logs {
		a.BackMatter.Resources = append(a.BackMatter.Resources, o.log(l))
	}
	return oscalDocument{a}
}

func (o oscal) log(l verify.Log) oscalResource {
	return oscalResource{
		UUID: o.id("log", l.Origin), Title: "Log " + shown(l.Origin, 300),
		Description: "A log of records in the format of C2SP tlog-tiles, verified as a whole. Records are named by their index in it.",
		Props:       properties("log-origin", l.Origin, "log-size", count(l.Size), "log-root", l.Root, "log-key", l.Key, "log-key-known-from", l.Trust),
		Remarks:     shown(strings.ReplaceAll(l.Checkpoint, "\n", " | "), 2000),
	}
}

// properties takes names and values in turn, and leaves empty values out, which OSCAL does not allow.
func properties(pairs ...string) []oscalProperty {
	var list []oscalProperty
	for i := 0; i+1 < len(pairs); i += 2 {
		if value := strings.TrimSpace(shown(pairs[i+1], 1000)); value != "" {
			list = append(list, oscalProperty{Name: pairs[i], NS: "https://meshvakt.io/ns/oscal", Value: value})
		}
	}
	return list
}

func (o oscal) result(cluster string) oscalResult {
	res := oscalResult{
		UUID: o.id("result", cluster), Title: "Cluster " + shown(cluster, 64), Start: stamp(o.From), End: stamp(o.To),
		Description: "What the logs of Meshvakt tell of the cluster in the period. Configuration as Istio applies it; not whether packets were encrypted.",
		Remarks:     "A finding is satisfied where everything that it takes was observed. There is no grade between: time that was not observed makes it not satisfied.",
		Props:       properties("cluster-uid", cluster),
	}
	if cluster == "" {
		res.Title = "No cluster"
		res.Description = "The logs tell of no cluster and no namespace in the period."
	}
	var selected oscalSelection
	var chosen oscalObjectiveSelection
	selected.Description = "The controls whose objectives there are findings about; each of them only in part."
	for _, ob := range objectives() {
		selected.Include = append(selected.Include, oscalControlID{ob.control})
		chosen.Include = append(chosen.Include, oscalObjectiveID{ob.id})
	}
	res.Reviewed = oscalReviewed{[]oscalSelection{selected}, []oscalObjectiveSelection{chosen}}
	if cluster == "" {
		return res
	}
	var local oscalComponents
	subject := func(name, title, description string) string {
		id := o.id("component", cluster, name)
		local.Components = append(local.Components, oscalComponent{UUID: id, Type: "system", Title: title, Description: description, Status: oscalState{State: "operational"}})
		return id
	}
	own := subject("", "Cluster "+shown(cluster, 64), "A Kubernetes cluster, by the UID of its namespace kube-system.")
	for i := range o.namespaces {
		n := &o.namespaces[i]
		if n.cluster != cluster {
			continue
		}
		s := subject(n.name, "Namespace "+shown(n.name, 64), "A namespace that a guard of Meshvakt selected.")
		res.add(o.strict(n, s))
		res.add(o.complete(n, s))
	}
	res.add(o.twoPersons(cluster, own))
	res.add(o.integrity(cluster, own))
	res.LocalDefinitions = &local
	return res
}

func (res *oscalResult) add(ob oscalObservation, f oscalFinding) {
	f.Related = []oscalRelated{{ob.UUID}}
	res.Observations = append(res.Observations, ob)
	res.Findings = append(res.Findings, f)
}

// conclude makes an observation and the finding that follows from it.
func (o oscal) conclude(objective, cluster, namespace, subject string, satisfied bool, reason, description string, props []oscalProperty) (oscalObservation, oscalFinding) {
	state := "not-satisfied"
	if satisfied {
		state, reason = "satisfied", "pass"
	}
	title := objective + " of cluster " + shown(cluster, 64)
	if namespace != "" {
		title = objective + " of namespace " + shown(namespace, 64)
	}
	ob := oscalObservation{
		UUID: o.id("observation", objective, cluster, namespace), Title: title, Description: description, Methods: []string{"TEST"}, Types: []string{"control-objective"},
		Subjects: []oscalSubject{{subject, "component", ""}}, Props: props, Collected: stamp(o.From), Expires: stamp(o.To),
	}
	for _, l := range o.logs {
		if l.Cluster == cluster {
			ob.Evidence = append(ob.Evidence, oscalEvidence{"#" + o.id("log", l.Origin), fmt.Sprintf("Records 0 to %d of log %s", l.Size-min(l.Size, 1), shown(l.Origin, 300))})
		}
	}
	return ob, oscalFinding{
		UUID: o.id("finding", objective, cluster, namespace), Title: title, Description: description,
		Target: oscalTarget{"objective-id", objective, oscalStatus{state, reason}},
	}
}

func (o oscal) strict(n *namespace, subject string) (oscalObservation, oscalFinding) {
	s := n.sums(o.From, o.To)
	props := properties("answer", string(n.verdict))
	var said []string
	for _, g := range shownGrades() {
		props = append(props, properties("seconds-"+strings.ToLower(string(g)), seconds(s[g]))...)
		if s[g] > 0 {
			said = append(said, string(g)+" "+s[g].String())
		}
	}
	reason := "other"
	if n.verdict == verify.IsViolated {
		reason = "fail"
	}
	description := fmt.Sprintf("The claim that namespace %q accepted mutual TLS alone: %s. Of the period it was %s.", shown(n.name, 64), n.verdict, strings.Join(said, ", "))
	return o.conclude(objectiveStrict, n.cluster, n.name, subject, n.verdict == verify.Holds && len(o.Result.Newer) == 0, reason, description, props)
}

func (o oscal) complete(n *namespace, subject string) (oscalObservation, oscalFinding) {
	s := n.sums(o.From, o.To)
	holes := s.whole() - s.seen()
	for _, g := range []verify.Grade{verify.Excepted, verify.Violated} {
		holes -= s[g] // what was seen to be weak was seen
	}
	description := fmt.Sprintf("Of namespace %q, all of the period was observed.", shown(n.name, 64))
	if holes > 0 {
		description = fmt.Sprintf("Of namespace %q, %s were not observed.", shown(n.name, 64), holes)
	}
	return o.conclude(objectiveComplete, n.cluster, n.name, subject, holes == 0 && o.sound(), "other", description, properties("seconds-not-observed", seconds(holes)))
}

// sound tells that all records are there to be believed.
func (o oscal) sound() bool { return len(o.Result.Problems) == 0 && len(o.Result.Newer) == 0 }

func (o oscal) twoPersons(cluster, subject string) (oscalObservation, oscalFinding) {
	granted, own := 0, o.findingsOf(cluster, verify.FindingSelfApproved, verify.FindingNoPrevious)
	for _, e := range o.exceptions {
		if e.Cluster == cluster && !e.Granted.IsZero() {
			granted++
			if selfApproved(e) && own == 0 {
				own++
			}
		}
	}
	description := fmt.Sprintf("Exceptions granted: %d. Findings of approval by whoever asked, or of no request being there: %d.", granted, own)
	return o.conclude(objectiveTwoPersons, cluster, "", subject, own == 0 && o.sound(), "fail", description, properties("exceptions-granted", count(uint64(granted)), "exceptions-wanting", count(uint64(own))))
}

func (o oscal) integrity(cluster, subject string) (oscalObservation, oscalFinding) {
	missing := o.findingsOf(cluster, verify.FindingMissingLog, verify.FindingMissingShard, verify.FindingCounters, verify.FindingMemory)
	logs, own := 0, 0
	for _, l := range o.logs {
		if l.Cluster == cluster {
			logs++
			if l.Trust == verify.TrustOwn {
				own++
			}
		}
	}
	reason := "other"
	if len(o.Result.Problems) > 0 {
		reason = "fail"
	}
	description := fmt.Sprintf("Logs: %d. Problems of integrity in all logs together: %d. Records of a newer format: %d. Findings of what is missing: %d. Logs whose key only they themselves vouch for: %d.",
		logs, len(o.Result.Problems), len(o.Result.Newer), missing, own)
	return o.conclude(objectiveIntegrity, cluster, "", subject, logs > 0 && o.sound() && missing == 0 && own == 0, reason, description, properties("logs", count(uint64(logs)), "problems", count(uint64(len(o.Result.Problems)))))
}

func (o oscal) findingsOf(cluster string, codes ...string) int {
	n := 0
	for _, f := range o.findings {
		for _, c := range codes {
			if f.Code == c && (f.Cluster == cluster || f.Cluster == "") {
				n++
			}
		}
	}
	return n
}
