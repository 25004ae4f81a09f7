package check

import (
	"encoding/xml"
	"io"
	"strings"

	"github.com/meshvakt/meshvakt/policies"
)

// JUnit's format has no standard; this is what Jenkins, GitLab and others read: one suite
// for each file, one case for each object.

type junitSuites struct {
	XMLName  xml.Name      `xml:"testsuites"`
	Name     string        `xml:"name,attr"`
	Tests    int           `xml:"tests,attr"`
	Failures int           `xml:"failures,attr"`
	Skipped  int           `xml:"skipped,attr"`
	Suites   []*junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name      string        `xml:"name,attr"`
	Classname string        `xml:"classname,attr"`
	File      string        `xml:"file,attr,omitempty"`
	Line      int           `xml:"line,attr,omitempty"`
	Skipped   *junitMessage `xml:"skipped"`
	Failure   *junitMessage `xml:"failure"`
	Output    string        `xml:"system-out,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr,omitempty"`
	Text    string `xml:",chardata"`
}

// WriteJUnit prints the result as tests: an object that is denied has failed, and one
// that is denied by known findings alone is skipped. What is only told stands in the
// output of the case.
func (t *Result) WriteJUnit(w io.Writer) error {
	all := junitSuites{Name: "meshvakt check"}
	suites := map[string]*junitSuite{}
	for i := range t.Results {
		o := &t.Results[i]
		s := suites[o.File]
		if s == nil {
			s = &junitSuite{Name: o.File}
			suites[o.File] = s
			all.Suites = append(all.Suites, s)
		}
		c := o.junit()
		s.Cases = append(s.Cases, c)
		s.Tests++
		all.Tests++
		switch {
		case c.Failure != nil:
			s.Failures++
			all.Failures++
		case c.Skipped != nil:
			s.Skipped++
			all.Skipped++
		}
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(all); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func (o *ObjectResult) junit() junitCase {
	c := junitCase{Name: o.Object.text(), Classname: "meshvakt", File: o.File, Line: o.Line}
	var refused, told []string
	first := ""
	for _, f := range o.distinct() {
		if f.refuses() {
			refused = append(refused, f.textWithRemedy())
			if first == "" {
				first = f.Code
			}
			continue
		}
		told = append(told, f.textWithRemedy()+" ("+f.standing()+")")
	}
	switch {
	case len(refused) > 0:
		c.Failure = &junitMessage{Message: refused[0], Type: first, Text: strings.Join(refused, "\n")}
	case o.Decision == policies.Deny:
		c.Skipped = &junitMessage{Message: "denied by findings that the baseline knows"}
	}
	c.Output = strings.Join(told, "\n")
	return c
}
