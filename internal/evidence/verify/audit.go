package verify

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

const (
	// maxAuditLine bounds one event: bodies are in it where the policy of the API server says so.
	maxAuditLine = 32 << 20
	// auditSilence is how long an audit log may say nothing for the time to count as told.
	auditSilence = 5 * time.Minute
	// auditMargin is how far the clocks of API server and replica may be apart.
	auditMargin = time.Minute
	// auditReceipt ends the name of the annotation in which a webhook entry says where its record is.
	auditReceipt = "meshvakt.io/evidence"
)

// Audit is an audit log of the API servers of one cluster, as audit.k8s.io/v1 has it: an event in each line. Nobody has
// signed it, and nothing shows that an API server is missing in it but the requests that are. It is believed as far as
// whoever gives it believes it.
type Audit struct {
	receipts map[string][]auditedReceipt // by origin; sorted by number once all is read
	told     []span                      // each event, and auditSilence behind it
	pods     map[string][]int64          // when one came or was changed, by namespace
	settings []int64                     // when a policy came, or settings of the mesh: in any namespace, which may be a root
	writes   map[string]bool             // resources of which any write was told
	out      AuditLog
}

// auditedReceipt is what the webhook has told the API server of a record.
type auditedReceipt struct {
	seq  uint64
	hash record.Hash
	at   int64
}

// auditEvent is the part of an event that matters here. It has no users and no bodies.
type auditEvent struct {
	Kind      string `json:"kind"`
	Stage     string `json:"stage"`
	Verb      string `json:"verb"`
	URI       string `json:"requestURI"`
	ObjectRef struct {
		APIGroup    string `json:"apiGroup"`
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"responseStatus"`
	Annotations map[string]string `json:"annotations"`
	Received    time.Time         `json:"requestReceivedTimestamp"`
	At          time.Time         `json:"stageTimestamp"`
}

// NewAudit is an audit log of which nothing is read yet.
func NewAudit() *Audit {
	return &Audit{receipts: map[string][]auditedReceipt{}, pods: map[string][]int64{}, writes: map[string]bool{}}
}

// Read takes the lines of a file, of one API server or of several, in any order. Name is for errors.
func (a *Audit) Read(name string, r io.Reader) error {
	lines := bufio.NewReaderSize(r, 1<<16)
	for n := 1; ; n++ {
		line, err := auditLine(lines)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("audit log %s, line %d: %w", name, n, err)
		case len(bytes.TrimSpace(line)) == 0:
			continue
		}
		var e auditEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("audit log %s, line %d: must be an event of audit.k8s.io/v1 in JSON: %w", name, n, err)
		}
		if e.Kind != "Event" || e.At.IsZero() {
			return fmt.Errorf("audit log %s, line %d: kind is %q with stageTimestamp %q; must be an Event of audit.k8s.io/v1", name, n, e.Kind, e.At.Format(time.RFC3339))
		}
		if err := a.take(&e); err != nil {
			return fmt.Errorf("audit log %s, line %d: %w", name, n, err)
		}
	}
}

// auditLine is the next line. The last one need not end: the API server may be about to write the rest of it, and
// then it is left out.
func auditLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxAuditLine:
			return nil, fmt.Errorf("has more than %d bytes", maxAuditLine)
		case err == nil:
			return line, nil
		case errors.Is(err, io.EOF) && json.Valid(line):
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

func (a *Audit) take(e *auditEvent) error {
	at := instant(e.At)
	a.out.Events++
	if a.out.From.IsZero() || e.At.Before(a.out.From) {
		a.out.From = e.At.UTC()
	}
	if e.At.After(a.out.To) {
		a.out.To = e.At.UTC()
	}
	if n := len(a.told); n > 0 && a.told[n-1].from <= at && at <= a.told[n-1].to {
		a.told[n-1].to = max(a.told[n-1].to, at+int64(auditSilence))
	} else {
		a.told = append(a.told, span{at, at + int64(auditSilence)})
	}
	if len(a.told) > 1<<16 {
		a.told = union(a.told)
	}
	if e.Stage != "ResponseComplete" && e.Stage != "Panic" {
		return nil
	}
	for key, value := range e.Annotations {
		if !strings.HasSuffix(key, auditReceipt) {
			continue
		}
		place, hash, is := strings.Cut(value, " ")
		if !is {
			continue // counted, or in a gap
		}
		if err := a.receipt(place, hash, at); err != nil {
			return fmt.Errorf("annotation %s is %q; must be as in ORIGIN#NUMBER HASH: %w", key, value, err)
		}
	}
	a.write(e, at)
	return nil
}

func (a *Audit) receipt(place, hash string, at int64) error {
	origin, number, _ := strings.Cut(place, "#")
	seq, err := strconv.ParseUint(number, 10, 63)
	if err != nil {
		return err
	}
	_, cluster, _, _, err := volume.SplitOrigin(origin)
	if err != nil {
		return err
	}
	r := auditedReceipt{seq: seq, at: at}
	if n, err := hex.Decode(r.hash[:], []byte(hash)); err != nil || n != len(r.hash) || len(hash) != 2*len(r.hash) {
		return fmt.Errorf("%q is no SHA-256 in hexadecimal digits", hash)
	}
	if a.out.Cluster != "" && a.out.Cluster != cluster {
		return fmt.Errorf("it is of cluster %s, and others of %s; give the audit log of one cluster at a time", cluster, a.out.Cluster)
	}
	a.out.Cluster = cluster
	a.out.Receipts++
	a.receipts[origin] = append(a.receipts[origin], r)
	return nil
}

// write notes what was stored. That objects which are there before and behind are the same is known by their
// resource versions; so what matters is what came, and may have gone again.
func (a *Audit) write(e *auditEvent, at int64) {
	o := &e.ObjectRef
	if o.Subresource != "" || e.refused() || e.tried() {
		return
	}
	switch e.Verb {
	case "create", "update", "patch", "delete", "deletecollection":
	default:
		return
	}
	created := e.ResponseStatus.Code == 201 || e.ResponseStatus.Code == 0 || e.ResponseStatus.Code >= 500
	switch {
	case o.APIGroup == "security.istio.io" && o.Resource == "peerauthentications":
	case o.APIGroup == "" && o.Resource == "configmaps":
		created = created && settings(o.Name)
	case o.APIGroup == "" && o.Resource == "pods":
		created = e.Verb != "delete" && e.Verb != "deletecollection" // labels may take one out of ambient
	default:
		return
	}
	a.writes[o.Resource] = true
	switch {
	case !created:
	case o.Resource == "pods":
		a.pods[o.Namespace] = append(a.pods[o.Namespace], at)
	default:
		a.settings = append(a.settings, at)
	}
}

// refused reports whether nothing was stored, for the request was not to be granted. What the API server or its storage failed
// to answer in time may have been stored all the same. Where it is a webhook that failed, nothing was stored yet, and while no
// replica of ours is there that is what most requests get.
func (e *auditEvent) refused() bool {
	s := &e.ResponseStatus
	return s.Code >= 400 && (s.Code < 500 || strings.Contains(s.Message, `failed calling webhook "`) || strings.HasPrefix(s.Message, `admission webhook "`))
}

// tried reports whether nothing was stored, because nothing was to be. The parameter must stand there as such: in others,
// people write what they like.
func (e *auditEvent) tried() bool {
	u, err := url.ParseRequestURI(e.URI)
	return err == nil && u.Query().Get("dryRun") == "All"
}

// settings reports whether a ConfigMap may be one of those that Istio takes its settings from.
func settings(name string) bool {
	return name == "" || name != "istio-ca-root-cert" && (strings.HasPrefix(name, "istio") || strings.HasPrefix(name, "values"))
}

// finish sorts what was read.
func (a *Audit) finish() {
	for _, list := range a.receipts {
		slices.SortFunc(list, func(x, y auditedReceipt) int { return cmp.Or(cmp.Compare(x.seq, y.seq), cmp.Compare(x.at, y.at)) })
	}
	a.told = union(a.told)
	for i := range a.told {
		a.told[i].to -= int64(auditSilence)
	}
}

// tells reports whether the audit log tells of all of a time.
func (a *Audit) tells(s span) bool {
	return slices.ContainsFunc(a.told, func(t span) bool { return t.from <= s.from && s.to <= t.to })
}
