package mesh

import "slices"

// Ambient has no mode. istiod turns PeerAuthentications into deny policies on connections without a peer
// identity, in two places that do not always agree:
//
//   - A workload is given up to two references (pilot/pkg/serviceregistry/ambient/authorization.go,
//     convertedSelectorPeerAuthentications): to a static policy that refuses all plaintext, and to the policy
//     converted from its winning PeerAuthentication with ports. The latter usually replaces the former.
//   - The converted policy (convertPeerAuthentication) is made from that PeerAuthentication and from the
//     namespace's and mesh's ones, which are looked up anew and by another rule: only policies whose selector
//     is absent, not those whose selector is empty. When istiod finds nothing to convert, the reference
//     dangles, ztunnel skips it, and plaintext is accepted although every policy seems to say STRICT.
//
// The functions below do both steps as istiod does, so that the disagreements come out here as well.

// ambientScopes are the policies that can win in each place, oldest second only. More than one is a tie, which
// istiod does not break by name: it takes the first of an unordered list with strictly-older comparison.
type ambientScopes struct {
	mesh, namespace, workload         []*PeerAuthentication // as the workload's references see them
	convertedMesh, convertedNamespace []*PeerAuthentication // as the conversion sees them
}

// ambientScopes sorts out the policies that hold for the workload.
//
// The root namespace's policies hold outside of it only without a selector; `selector: {}` hides them. Inside
// it, an empty selector is as good as none, and labels there hold for nothing, as with sidecars.
func (c ControlPlane) ambientScopes(w Workload, policies []*PeerAuthentication) ambientScopes {
	var s ambientScopes
	for _, p := range policies {
		switch {
		case p == nil || p.Namespace != w.Namespace && p.Namespace != c.RootNamespace:
		case p.Namespace == c.RootNamespace:
			if !p.hasSelector() {
				s.convertedMesh = oldest(s.convertedMesh, p)
			}
			if !p.hasSelector() || w.Namespace == c.RootNamespace && len(p.Selector) == 0 {
				s.mesh = oldest(s.mesh, p)
			}
		case len(p.Selector) > 0:
			if p.selects(w.Labels) {
				s.workload = oldest(s.workload, p)
			}
		default:
			if !p.hasSelector() {
				s.convertedNamespace = oldest(s.convertedNamespace, p)
			}
			s.namespace = oldest(s.namespace, p)
		}
	}
	// Of a scope without ports only the mode matters, so one policy for each mode stands for its ties.
	s.mesh, s.namespace = onePerMode(s.mesh), onePerMode(s.namespace)
	s.convertedMesh, s.convertedNamespace = onePerMode(s.convertedMesh), onePerMode(s.convertedNamespace)
	slices.SortStableFunc(s.workload, (*PeerAuthentication).compare)
	return s
}

// oldest adds p to the policies that tie for the oldest. Policies that do not exist yet do not tie: the first wins.
func oldest(tied []*PeerAuthentication, p *PeerAuthentication) []*PeerAuthentication {
	if len(tied) == 0 {
		return append(tied, p)
	}
	switch age := p.compareAge(tied[0]); {
	case age < 0:
		return append(tied[:0], p)
	case age == 0 && !p.Created.IsZero():
		return append(tied, p)
	}
	return tied
}

// onePerMode keeps the first policy by name of each mode, and returns at least a nil policy to range over.
func onePerMode(tied []*PeerAuthentication) []*PeerAuthentication {
	if len(tied) == 0 {
		return []*PeerAuthentication{nil}
	}
	slices.SortStableFunc(tied, (*PeerAuthentication).compare)
	var seen [ModeStrict + 1]bool
	return slices.DeleteFunc(tied, func(p *PeerAuthentication) bool {
		m := modeOf(p)
		had := seen[m]
		seen[m] = true
		return had
	})
}

// modeOf is the mode a policy asks for; no policy, and a value no parser makes, ask for nothing.
func modeOf(p *PeerAuthentication) Mode {
	if p == nil || p.Mode > ModeStrict {
		return ModeUnset
	}
	return p.Mode
}

// ambientOutcomes returns everything that can come out for the workload: one result, or with ties several that
// differ in the result or in the winners. The order depends on the policies only, not on that of the slice.
func (c ControlPlane) ambientOutcomes(w Workload, policies []*PeerAuthentication) []Effective {
	s := c.ambientScopes(w, policies)
	if len(s.workload) == 0 {
		s.workload = []*PeerAuthentication{nil}
	}
	var out []Effective
	for _, mesh := range s.mesh {
		for _, namespace := range s.namespace {
			for _, workload := range s.workload {
				e := Effective{Mesh: mesh, NamespaceWide: namespace, Workload: workload}
				e.inherit()
				static, own := e.ambientReferences()
				if !own {
					e.applyAmbient(static, ambientDeny{})
					out = append(out, e)
					continue
				}
				var conversions []ambientDeny
				for _, cm := range s.convertedMesh {
					for _, cn := range s.convertedNamespace {
						deny := convertAmbient(workload, modeOf(cn), cn != nil, modeOf(cm))
						if !slices.ContainsFunc(conversions, deny.equal) {
							conversions = append(conversions, deny)
						}
					}
				}
				for _, deny := range conversions {
					one := e
					one.applyAmbient(static, deny)
					out = append(out, one)
				}
			}
		}
	}
	return out
}

// ambientReferences says which deny policies the workload refers to: the static one that refuses all plaintext,
// and the one converted from its workload policy.
//
// Under an UNSET workload policy in a STRICT namespace or mesh, only a PERMISSIVE port makes istiod look at the
// ports; a lone DISABLE port stays under the static policy.
func (e *Effective) ambientReferences() (static, own bool) {
	static = e.Mode == ModeStrict
	if e.Workload == nil {
		return static, false
	}
	var strict, permissive, disable bool
	for _, m := range e.Workload.Ports {
		strict = strict || m == ModeStrict
		permissive = permissive || m == ModePermissive
		disable = disable || m == ModeDisable
	}
	if !static {
		return false, strict
	}
	own = permissive || disable && e.Workload.Mode == ModeStrict
	return !own, own
}

// ambientDeny is a converted policy: which ports refuse plaintext.
type ambientDeny struct {
	all    bool     // every port that is not in exempt
	exempt []uint32 // ascending
	strict []uint32 // ascending; refuse whatever all says
}

func (d ambientDeny) equal(o ambientDeny) bool {
	return d.all == o.all && slices.Equal(d.exempt, o.exempt) && slices.Equal(d.strict, o.strict)
}

// refuses tells whether the port refuses plaintext; port 0 stands for the ports nobody names.
func (d ambientDeny) refuses(port uint32) bool {
	if port == 0 {
		return d.all
	}
	return d.all && !slices.Contains(d.exempt, port) || slices.Contains(d.strict, port)
}

// convertAmbient makes the deny policy of a workload policy with ports.
//
//   - A STRICT port is left to the wider policy when that one is STRICT: the workload policy itself; the
//     namespace policy, if the workload policy is UNSET; or the mesh policy, if there is no namespace policy or
//     it is UNSET. That last case does not ask whether the workload policy is UNSET, so under a STRICT mesh a
//     PERMISSIVE workload policy loses its STRICT ports.
//   - A PERMISSIVE or DISABLE port is an exception to a STRICT workload policy, or, if that is UNSET, to a
//     STRICT namespace policy, or to a STRICT mesh policy if there is no namespace policy at all. An UNSET
//     namespace policy under a STRICT mesh is not seen through.
func convertAmbient(p *PeerAuthentication, namespace Mode, hasNamespace bool, mesh Mode) ambientDeny {
	parentRefuses := p.Mode == ModeStrict ||
		p.Mode == ModeUnset && namespace == ModeStrict ||
		namespace == ModeUnset && mesh == ModeStrict
	exceptions := p.Mode == ModeStrict ||
		p.Mode == ModeUnset && (namespace == ModeStrict || !hasNamespace && mesh == ModeStrict)

	var d ambientDeny
	for port, m := range p.Ports {
		switch {
		case m == ModeStrict && !parentRefuses:
			d.strict = append(d.strict, port)
		case (m == ModePermissive || m == ModeDisable) && exceptions:
			d.exempt = append(d.exempt, port)
		}
	}
	slices.Sort(d.strict)
	slices.Sort(d.exempt)
	d.all = len(d.exempt) > 0 // without an exception nothing is left to convert, and there is no policy
	return d
}

// applyAmbient turns refusals back into modes, and notes who is to thank or to blame for them.
func (e *Effective) applyAmbient(static bool, deny ambientDeny) {
	result := func(port uint32) Mode {
		if static || deny.refuses(port) {
			return ModeStrict
		}
		return ModePermissive
	}
	inherited := e.Mode == ModeStrict
	e.Mode = result(0)
	if inherited != (e.Mode == ModeStrict) {
		e.base = e.Workload // its ports took the static policy away, or brought a refusal of everything
	}
	if e.Workload == nil || len(e.Workload.Ports) == 0 {
		return
	}
	e.Ports = make(map[uint32]Mode, len(e.Workload.Ports))
	for port, asked := range e.Workload.Ports {
		if port == 0 || port > maxPort {
			continue
		}
		got := result(port)
		e.Ports[port] = got
		if asked != ModeUnset && (asked == ModeStrict) == (got == ModeStrict) {
			e.decide(port, e.Workload)
		}
	}
}

// weakestOf joins what can come out of ties: for each port the weakest mode and who decided that one; the
// winners are those of the first outcome whose Mode is the weakest.
func weakestOf(outcomes []Effective) Effective {
	first := 0
	for i := range outcomes {
		if outcomes[i].Mode < outcomes[first].Mode {
			first = i
		}
	}
	if len(outcomes) == 1 {
		return outcomes[0]
	}
	weakest := outcomes[first]
	weakest.Ports, weakest.decided = nil, nil
	for _, named := range outcomes {
		for port := range named.Ports {
			if _, done := weakest.Ports[port]; done {
				continue
			}
			if weakest.Ports == nil {
				weakest.Ports = make(map[uint32]Mode)
			}
			at := first
			for i := range outcomes {
				if outcomes[i].Port(port) < outcomes[at].Port(port) {
					at = i
				}
			}
			weakest.Ports[port] = outcomes[at].Port(port)
			weakest.decide(port, outcomes[at].Decider(port))
		}
	}
	return weakest
}
