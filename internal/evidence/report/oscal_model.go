package report

// What follows is as much of the model of OSCAL assessment results, https://pages.nist.gov/OSCAL, as is written here.

type oscalDocument struct {
	Results oscalResults `json:"assessment-results"`
}

type oscalResults struct {
	UUID             string               `json:"uuid"`
	Metadata         oscalMetadata        `json:"metadata"`
	ImportAP         oscalImport          `json:"import-ap"`
	LocalDefinitions *oscalTopDefinitions `json:"local-definitions,omitempty"`
	Results          []oscalResult        `json:"results"`
	BackMatter       oscalBackMatter      `json:"back-matter"`
}

type oscalMetadata struct {
	Title        string `json:"title"`
	LastModified string `json:"last-modified"`
	Version      string `json:"version"`
	OSCAL        string `json:"oscal-version"`
}

type oscalImport struct {
	Href    string `json:"href"`
	Remarks string `json:"remarks,omitempty"`
}

type oscalTopDefinitions struct {
	Objectives []oscalObjective `json:"objectives-and-methods,omitempty"`
}

type oscalObjective struct {
	ControlID string      `json:"control-id"`
	Parts     []oscalPart `json:"parts"`
}

type oscalPart struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Prose string `json:"prose"`
}

type oscalResult struct {
	UUID             string             `json:"uuid"`
	Title            string             `json:"title"`
	Description      string             `json:"description"`
	Start            string             `json:"start"`
	End              string             `json:"end"`
	Props            []oscalProperty    `json:"props,omitempty"`
	LocalDefinitions *oscalComponents   `json:"local-definitions,omitempty"`
	Reviewed         oscalReviewed      `json:"reviewed-controls"`
	Observations     []oscalObservation `json:"observations,omitempty"`
	Findings         []oscalFinding     `json:"findings,omitempty"`
	Remarks          string             `json:"remarks,omitempty"`
}

type oscalProperty struct {
	Name  string `json:"name"`
	NS    string `json:"ns"`
	Value string `json:"value"`
}

type oscalComponents struct {
	Components []oscalComponent `json:"components"`
}

type oscalComponent struct {
	UUID        string     `json:"uuid"`
	Type        string     `json:"type"`
	Title       string     `json:"title"`
	Description string     `json:"description"`
	Status      oscalState `json:"status"`
}

type oscalState struct {
	State string `json:"state"`
}

type oscalReviewed struct {
	Selections []oscalSelection          `json:"control-selections"`
	Objectives []oscalObjectiveSelection `json:"control-objective-selections"`
}

type oscalSelection struct {
	Description string           `json:"description"`
	Include     []oscalControlID `json:"include-controls"`
}

type oscalControlID struct {
	ID string `json:"control-id"`
}

type oscalObjectiveSelection struct {
	Include []oscalObjectiveID `json:"include-objectives"`
}

type oscalObjectiveID struct {
	ID string `json:"objective-id"`
}

type oscalObservation struct {
	UUID        string          `json:"uuid"`
	Title       string          `json:"title"`
	Description string          `json:"description"`
	Props       []oscalProperty `json:"props,omitempty"`
	Methods     []string        `json:"methods"`
	Types       []string        `json:"types"`
	Subjects    []oscalSubject  `json:"subjects"`
	Evidence    []oscalEvidence `json:"relevant-evidence,omitempty"`
	// Collected and Expires are the period that was observed.
	Collected string `json:"collected"`
	Expires   string `json:"expires"`
}

type oscalSubject struct {
	UUID  string `json:"subject-uuid"`
	Type  string `json:"type"`
	Title string `json:"title,omitempty"`
}

type oscalEvidence struct {
	Href        string `json:"href"`
	Description string `json:"description"`
}

type oscalFinding struct {
	UUID        string         `json:"uuid"`
	Title       string         `json:"title"`
	Description string         `json:"description"`
	Target      oscalTarget    `json:"target"`
	Related     []oscalRelated `json:"related-observations"`
}

type oscalTarget struct {
	Type   string      `json:"type"`
	ID     string      `json:"target-id"`
	Status oscalStatus `json:"status"`
}

type oscalStatus struct {
	State  string `json:"state"`
	Reason string `json:"reason"`
}

type oscalRelated struct {
	UUID string `json:"observation-uuid"`
}

type oscalBackMatter struct {
	Resources []oscalResource `json:"resources"`
}

type oscalResource struct {
	UUID        string          `json:"uuid"`
	Title       string          `json:"title"`
	Description string          `json:"description"`
	Props       []oscalProperty `json:"props,omitempty"`
	Remarks     string          `json:"remarks,omitempty"`
}
