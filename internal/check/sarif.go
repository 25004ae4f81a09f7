package check

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
)

// SARIF 2.1.0, of which is written what code scanning shows, and what it keeps findings
// apart by: OASIS, Static Analysis Results Interchange Format, sections 3.13 to 3.58.

const (
	sarifSchema = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
	projectPage = "https://github.com/meshvakt/meshvakt"
	// fingerprint names the kind of IDs; another way to make them gets another name.
	fingerprint = "meshvaktFinding/v1"
)

type sarifLog struct {
	Schema  string     `json:"$schema"`
	Version string     `json:"version"`
	Runs    []sarifRun `json:"runs"`
}

type sarifRun struct {
	Tool    sarifTool     `json:"tool"`
	Results []sarifResult `json:"results"`
}

type sarifTool struct {
	Driver sarifDriver `json:"driver"`
}

type sarifDriver struct {
	Name           string      `json:"name"`
	Version        string      `json:"version,omitempty"`
	InformationURI string      `json:"informationUri"`
	Rules          []sarifRule `json:"rules"`
}

type sarifRule struct {
	ID               string    `json:"id"`
	Name             string    `json:"name"`
	ShortDescription sarifText `json:"shortDescription"`
	FullDescription  sarifText `json:"fullDescription"`
	HelpURI          string    `json:"helpUri"`
	Help             sarifText `json:"help"`
	Properties       sarifTags `json:"properties"`
}

type sarifTags struct {
	Tags []string `json:"tags"`
}

type sarifText struct {
	Text string `json:"text"`
}

type sarifResult struct {
	RuleID              string             `json:"ruleId"`
	RuleIndex           int                `json:"ruleIndex"`
	Level               string             `json:"level"`
	Message             sarifText          `json:"message"`
	Locations           []sarifLocation    `json:"locations"`
	PartialFingerprints map[string]string  `json:"partialFingerprints"`
	Suppressions        []sarifSuppression `json:"suppressions,omitempty"`
}

type sarifLocation struct {
	PhysicalLocation *sarifPhysical `json:"physicalLocation,omitempty"`
	LogicalLocations []sarifLogical `json:"logicalLocations"`
}

type sarifPhysical struct {
	ArtifactLocation struct {
		URI string `json:"uri"`
	} `json:"artifactLocation"`
	Region *sarifRegion `json:"region,omitempty"`
}

type sarifRegion struct {
	StartLine int `json:"startLine"`
}

type sarifLogical struct {
	FullyQualifiedName string `json:"fullyQualifiedName"`
	Kind               string `json:"kind"`
}

type sarifSuppression struct {
	Kind          string `json:"kind"`
	Status        string `json:"status"`
	Justification string `json:"justification"`
}

// WriteSARIF prints the findings for code scanning. The version is that of the program,
// and may be empty.
func (t *Result) WriteSARIF(w io.Writer, version string) error {
	rules, index := sarifRules()
	run := sarifRun{
		Tool:    sarifTool{sarifDriver{Name: "meshvakt", Version: version, InformationURI: projectPage, Rules: rules}},
		Results: []sarifResult{},
	}
	for i := range t.Results {
		o := &t.Results[i]
		for _, f := range o.distinct() {
			run.Results = append(run.Results, sarifFinding(o, f, index[f.Code]))
		}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(sarifLog{Schema: sarifSchema, Version: "2.1.0", Runs: []sarifRun{run}})
}

// sarifRules are the reasons of all policies, with the place of each by its code.
func sarifRules() (rules []sarifRule, index map[string]int) {
	index = map[string]int{}
	for _, p := range policies.All() {
		for _, r := range p.Reasons {
			index[r.Code] = len(rules)
			page := fmt.Sprintf("%s/blob/main/docs/policies/%s.md#%s", projectPage, p.ID, strings.ToLower(r.Name))
			rules = append(rules, sarifRule{
				ID: r.Code, Name: r.Name, ShortDescription: sarifText{r.Title}, FullDescription: sarifText{p.Title + ". " + p.Rationale},
				HelpURI: page, Help: sarifText{r.Title + ". " + page}, Properties: sarifTags{[]string{p.ID}},
			})
		}
	}
	return rules, index
}

func sarifFinding(o *ObjectResult, f *Finding, rule int) sarifResult {
	result := sarifResult{
		RuleID: f.Code, RuleIndex: rule, Level: "note",
		Message:             sarifText{o.Object.text() + ": " + f.textWithRemedy()},
		Locations:           []sarifLocation{{LogicalLocations: []sarifLogical{{FullyQualifiedName: o.Object.text(), Kind: "resource"}}}},
		PartialFingerprints: map[string]string{fingerprint: f.ID},
	}
	switch f.Action {
	case v1alpha1.Deny:
		result.Level = "error"
	case v1alpha1.Warn:
		result.Level = "warning"
	}
	if o.File != "" {
		p := &sarifPhysical{}
		p.ArtifactLocation.URI = fileURI(o.File)
		if line := f.lineIn(o); line > 0 {
			p.Region = &sarifRegion{line}
		}
		result.Locations[0].PhysicalLocation = p
	}
	switch {
	case f.Exception != "":
		result.Suppressions = []sarifSuppression{{"external", "accepted", "GuardException " + f.Exception}}
	case f.Known:
		result.Suppressions = []sarifSuppression{{"external", "accepted", "known to the baseline"}}
	}
	return result
}

// fileURI is a path as it is written in a URI, relative where the path is.
func fileURI(path string) string {
	u := url.URL{Path: filepath.ToSlash(filepath.Clean(path))}
	if filepath.IsAbs(path) {
		u.Scheme = "file"
	}
	return u.String()
}

// distinct are the findings of the object, each once and with its hardest action.
func (o *ObjectResult) distinct() []*Finding {
	var list []*Finding
	seen := map[string]bool{}
	for i := range o.Findings {
		f := &o.Findings[i]
		if !seen[f.ID] {
			list = append(list, f)
		}
		seen[f.ID] = true
	}
	return list
}

// lineIn is where the finding is shown: at its field, else where the object begins.
func (f *Finding) lineIn(o *ObjectResult) int {
	if f.Line > 0 {
		return f.Line
	}
	return o.Line
}

func (f *Finding) textWithRemedy() string {
	if f.Remedy == "" {
		return f.text()
	}
	return f.text() + "; " + f.Remedy
}
