package mesh

import (
	"cmp"
	"strings"
	"time"
)

// PeerAuthentication is what resolution reads of a security.istio.io PeerAuthentication. The API versions v1
// and v1beta1 serve the same object with the same schema; Istio watches v1.
type PeerAuthentication struct {
	Namespace, Name string

	// UID and Generation tell which object it is, and which state of it. Resolution does not read them: they are here
	// so that whoever says what was resolved can say from what. Empty and 0 for what was never in an API server.
	UID        string
	Generation int64

	// Created is metadata.creationTimestamp, of which only the second counts. The zero time means "not created
	// yet", as a mutating webhook sees it: younger than everything that exists. Among several such policies,
	// the one later in the slice is the younger.
	Created time.Time

	Revision    string // value of label istio.io/rev
	HasRevision bool   // the label is present, even with an empty value

	// SelectorSet tells `selector: {}` from no selector. Sidecars do not care, ambient does.
	SelectorSet bool
	Selector    map[string]string // spec.selector.matchLabels

	Mode  Mode            // spec.mtls.mode
	Ports map[uint32]Mode // spec.portLevelMtls, keyed by the port traffic arrives on in the pod

	// Terminating says that metadata.deletionTimestamp is set. Istio applies the policy until it is gone, so
	// resolution ignores this field; it is here for callers who resolve the state after the deletion.
	Terminating bool
}

// Key is "namespace/name".
func (p *PeerAuthentication) Key() string { return p.Namespace + "/" + p.Name }

// hasSelector: a selector counts as present for ambient when the field is there, even when it is empty.
func (p *PeerAuthentication) hasSelector() bool { return p.SelectorSet || len(p.Selector) > 0 }

// selects reports whether the policy's labels are a subset of the workload's; no labels select everything.
func (p *PeerAuthentication) selects(workload map[string]string) bool {
	if len(p.Selector) > len(workload) {
		return false
	}
	for k, v := range p.Selector {
		if have, ok := workload[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// compareAge orders two policies by creation alone: negative when p is the older. Policies not created yet come
// last and are equal among each other.
func (p *PeerAuthentication) compareAge(q *PeerAuthentication) int {
	switch pending, other := p.Created.IsZero(), q.Created.IsZero(); {
	case pending && other:
		return 0
	case pending:
		return 1
	case other:
		return -1
	}
	return cmp.Compare(p.Created.Unix(), q.Created.Unix())
}

// compare is Istio's order of precedence: creation second, then name, then namespace (pilot/pkg/model/config.go,
// configCompareByCreationTime). Names never come before time. It is 0 for two policies that do not exist yet;
// there the caller keeps the order of the slice.
func (p *PeerAuthentication) compare(q *PeerAuthentication) int {
	if c := p.compareAge(q); c != 0 {
		return c
	}
	if p.Created.IsZero() {
		return 0
	}
	if c := strings.Compare(p.Name, q.Name); c != 0 {
		return c
	}
	return strings.Compare(p.Namespace, q.Namespace)
}

// elder returns the policy that wins: best unless p precedes it. A nil best is beaten by anything.
func elder(best, p *PeerAuthentication) *PeerAuthentication {
	if best == nil || p.compare(best) < 0 {
		return p
	}
	return best
}
