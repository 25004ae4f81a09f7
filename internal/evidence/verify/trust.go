package verify

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
)

// Trust is whose signatures are believed.
type Trust struct {
	keys   map[string][]string // verifier keys by the origin that they are for
	quorum string              // the lines of a policy about witnesses; empty where none is asked for
	// own: keys that a log names itself count for claims too.
	own bool
}

// NewTrust takes a C2SP tlog-policy, or nothing, and verifier keys of logs.
func NewTrust(policy []byte, keys []string, own bool) (*Trust, error) {
	t := &Trust{keys: map[string][]string{}, own: own}
	var rest []string
	for line := range strings.Lines(string(policy)) {
		plain, _, _ := strings.Cut(line, "#")
		if fields := strings.Fields(plain); len(fields) >= 2 && fields[0] == "log" {
			keys = append(keys, fields[1])
			continue
		}
		rest = append(rest, line)
	}
	for _, k := range keys {
		if err := t.add(k); err != nil {
			return nil, err
		}
	}
	if policy == nil {
		return t, nil
	}
	t.quorum = strings.Join(rest, "")
	// The lines about witnesses are read once without a log, so that faults are told at once.
	if _, err := torchwood.ParsePolicy([]byte(t.quorum)); err != nil {
		return nil, fmt.Errorf("read the policy of trust: %w", err)
	}
	return t, nil
}

func (t *Trust) add(key string) error {
	v, err := note.NewVerifier(key)
	if err != nil {
		return fmt.Errorf("key of a log is %q; must be a verifier key as in NAME+HASH+KEY: %w", key, err)
	}
	t.keys[v.Name()] = append(t.keys[v.Name()], key)
	return nil
}

// given tells whether anybody's keys were named at all.
func (t *Trust) given() bool { return len(t.keys) > 0 }

// checkpoint believes a signed checkpoint of origin for one of the keys.
func (t *Trust) checkpoint(signed []byte, origin string, keys []string) (torchwood.Checkpoint, string, []Cosignature, error) {
	var all []error
	for _, key := range keys {
		policy, err := t.policyFor(key)
		if err != nil {
			all = append(all, err)
			continue
		}
		c, n, err := torchwood.VerifyCheckpoint(signed, policy)
		if err == nil && c.Origin != origin {
			err = fmt.Errorf("the checkpoint is of %q", c.Origin)
		}
		if err != nil {
			all = append(all, err)
			continue
		}
		return c, key, cosignatures(n, key), nil
	}
	if len(all) == 0 {
		all = append(all, errors.New("no key of it is known"))
	}
	return torchwood.Checkpoint{}, "", nil, errors.Join(all...)
}

// policyFor is the policy for one log. One policy for several would ask for all their keys at once.
func (t *Trust) policyFor(key string) (torchwood.Policy, error) {
	lines := "log " + key + "\n" + t.quorum
	if t.quorum == "" {
		lines += "quorum none\n"
	}
	return torchwood.ParsePolicy([]byte(lines))
}

func cosignatures(n *note.Note, key string) []Cosignature {
	list := []Cosignature{}
	for _, s := range n.Sigs {
		if strings.HasPrefix(key, s.Name+"+") {
			continue
		}
		if at, err := torchwood.CosignatureTimestamp(s); err == nil {
			list = append(list, Cosignature{s.Name, time.Unix(at, 0).UTC()})
		}
	}
	return list
}
