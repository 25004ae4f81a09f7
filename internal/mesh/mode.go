package mesh

import "strconv"

// Mode is a mutual TLS mode. The values are ordered from weakest to strongest, so that min is "weaker".
//
// The zero value ModeUnset is what a policy says when it has no mtls block, an empty one, or mode UNSET. It
// never is the mode of a workload: a workload that no policy decides is PERMISSIVE.
type Mode uint8

// The modes, from the weakest to the strongest.
const (
	ModeUnset      Mode = iota // inherit from the wider scope
	ModeDisable                // plaintext only; mutual TLS clients fail
	ModePermissive             // plaintext and mutual TLS
	ModeStrict                 // mutual TLS only
)

// String gives the name the PeerAuthentication API uses.
func (m Mode) String() string {
	switch m {
	case ModeUnset:
		return "UNSET"
	case ModeDisable:
		return "DISABLE"
	case ModePermissive:
		return "PERMISSIVE"
	case ModeStrict:
		return "STRICT"
	}
	return "Mode(" + strconv.Itoa(int(m)) + ")"
}

// ParseMode reads the name the PeerAuthentication API uses. The empty string is an absent field, hence
// ModeUnset. Names are case-sensitive: the CRD refuses "strict".
func ParseMode(s string) (Mode, bool) {
	switch s {
	case "", "UNSET":
		return ModeUnset, true
	case "DISABLE":
		return ModeDisable, true
	case "PERMISSIVE":
		return ModePermissive, true
	case "STRICT":
		return ModeStrict, true
	}
	return ModeUnset, false
}
