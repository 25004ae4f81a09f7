// Package snapshot takes from a cluster what policies read of it, so that it can be
// judged elsewhere and later, and keeps it in a file.
//
// A snapshot is the objects of a state for package check, and no more of them than
// policies read: no Secrets, no environment, commands or arguments of applications, no
// names of users. What is in a snapshot may leave the cluster; see trim.go for what
// that is, kind by kind. Nothing is ever written to the cluster.
package snapshot

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/check"
)

// Snapshot is what was read of a cluster. It is not of one moment: kinds are read one
// after the other.
type Snapshot struct {
	// Taken is when reading began.
	Taken time.Time
	// Kubernetes is the version that the API server states.
	Kubernetes string
	// Absent are the kinds that the cluster does not have, such as Istio's before Istio
	// is installed.
	Absent []string
	// Missing are the rights without which part of the state could not be read.
	Missing []Right
	// Documents are the objects, in an order that is the same every time.
	Documents []check.Document
}

// Right is what a user must be allowed.
type Right struct {
	Verb     string `json:"verb"`
	Group    string `json:"group"`
	Resource string `json:"resource"`
	// Namespace is the one in which it is needed; empty: in all of them.
	Namespace string `json:"namespace,omitempty"`
}

// String is the right as `kubectl auth can-i` takes it.
func (r Right) String() string {
	text := r.Verb + " " + r.Resource
	if r.Group != "" {
		text += "." + r.Group
	}
	if r.Namespace != "" {
		return text + " -n " + r.Namespace
	}
	return text + " -A"
}

// ErrPartial marks a snapshot that lacks what its reader had no right to.
var ErrPartial = errors.New("the state of the cluster is not complete")

// Complete errs when rights were missing, and names all of them.
func (s *Snapshot) Complete() error {
	if len(s.Missing) == 0 {
		return nil
	}
	return fmt.Errorf("%w: whoever read it has no right to: %s", ErrPartial, s.MissingText())
}

// MissingText lists the missing rights.
func (s *Snapshot) MissingText() string {
	list := make([]string, 0, len(s.Missing))
	for _, r := range s.Missing {
		list = append(list, r.String())
	}
	return strings.Join(list, ", ")
}

// State is what package check builds a state from.
func (s *Snapshot) State() check.Cluster {
	c := check.Cluster{Documents: s.Documents}
	for _, r := range s.Missing {
		c.Unread = append(c.Unread, r.Resource)
	}
	return c
}
