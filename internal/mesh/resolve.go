package mesh

import "slices"

// Dataplane is how a workload takes part in the mesh.
type Dataplane uint8

// The data planes.
const (
	Sidecar Dataplane = iota // a proxy in the pod
	Ambient                  // the node's ztunnel
)

// Workload is what resolution reads of a pod. Labels are the labels its proxy reports: the live labels of the
// pod plus, under them, those that ISTIO_METAJSON_LABELS adds.
type Workload struct {
	Namespace string
	Labels    map[string]string
	Dataplane Dataplane
}

// Scope is what a policy holds for.
type Scope uint8

// The scopes, from the widest to the narrowest.
const (
	ScopeNone      Scope = iota // nothing: a policy of the root namespace with a selector
	ScopeMesh                   // root namespace, no selector labels
	ScopeNamespace              // another namespace, no selector labels
	ScopeWorkload               // another namespace, selector labels
)

// ScopeOf tells what a policy holds for. A selector without labels is no selector.
//
// A policy in the root namespace with a selector holds for nothing, not even for workloads of the root
// namespace. The field comment in Istio's API says that it matches workloads in all namespaces; the code, and
// the message comment in the same file, say that it is ignored.
func (c ControlPlane) ScopeOf(p *PeerAuthentication) Scope {
	switch root, selector := p.Namespace == c.RootNamespace, len(p.Selector) > 0; {
	case root && selector:
		return ScopeNone
	case root:
		return ScopeMesh
	case selector:
		return ScopeWorkload
	}
	return ScopeNamespace
}

// Effective is the resolved mode of one workload, or of a class of workloads.
type Effective struct {
	Mode  Mode            // every port that Ports does not name; never ModeUnset
	Ports map[uint32]Mode // ports the winning workload policy names; never ModeUnset; read-only

	// The winning policy of each scope, nil if there is none. A policy that wins its scope and says UNSET
	// decides nothing, but still keeps younger ones of the same scope out.
	Mesh, NamespaceWide, Workload *PeerAuthentication

	base    *PeerAuthentication            // decided Mode; nil: Istio's default
	decided map[uint32]*PeerAuthentication // decided the port, for the ports of Ports that base did not decide
}

// Port gives the mode of one port of the pod (the target port, not the port of a Service).
func (e Effective) Port(port uint32) Mode {
	if m, ok := e.Ports[port]; ok {
		return m
	}
	return e.Mode
}

// Weakest gives the weakest mode any port has. When it is that of all ports without an override, ports is nil;
// else ports are the ones that fall to it, ascending.
func (e Effective) Weakest() (mode Mode, ports []uint32) {
	mode = e.Mode
	for _, m := range e.Ports {
		mode = min(mode, m)
	}
	if mode == e.Mode {
		return mode, nil
	}
	for port, m := range e.Ports {
		if m == mode {
			ports = append(ports, port)
		}
	}
	slices.Sort(ports)
	return mode, ports
}

// Strict reports whether no port of the workload accepts plaintext.
func (e Effective) Strict() bool {
	for _, m := range e.Ports {
		if m != ModeStrict {
			return false
		}
	}
	return e.Mode == ModeStrict
}

// Decider returns the policy that decided the mode of this port, or with port 0 that of the ports without an
// override. It is nil when no policy did and Istio's default PERMISSIVE stands.
func (e Effective) Decider(port uint32) *PeerAuthentication {
	if p, ok := e.decided[port]; ok {
		return p
	}
	return e.base
}

// maxPort is the highest port traffic can arrive on. Keys outside 1..65535, which the CRD refuses, decide nothing.
const maxPort = 65535

// Resolve gives what Istio applies to the workload. The policies may come in any order and from any namespace;
// only those of the workload's and of the root namespace count. The caller has left out those that the control
// plane does not Read.
//
// In sidecar mode:
//  1. Policies are ordered by creation second, then name, then namespace. In each scope that holds for the
//     workload (mesh, namespace, workload) the first one wins; the others contribute nothing, not even ports.
//  2. The mode is PERMISSIVE, unless the mesh policy says otherwise, unless the namespace policy does, unless
//     the workload policy does. UNSET says nothing.
//  3. A port that the winning workload policy names has the mode given there, or the one of step 2 if UNSET.
//     Ports of policies without a selector are ignored.
//
// In ambient mode a port is STRICT or PERMISSIVE, nothing else: plaintext is refused or not. Policies of the
// same second are not ordered there; Resolve then gives for each port the weakest mode that can come out.
func (c ControlPlane) Resolve(w Workload, policies []*PeerAuthentication) Effective {
	if w.Dataplane == Ambient {
		return weakestOf(c.ambientOutcomes(w, policies))
	}
	var e Effective
	for _, p := range policies {
		if p == nil || p.Namespace != w.Namespace && p.Namespace != c.RootNamespace {
			continue
		}
		switch c.ScopeOf(p) {
		case ScopeMesh:
			e.Mesh = elder(e.Mesh, p)
		case ScopeNamespace:
			e.NamespaceWide = elder(e.NamespaceWide, p)
		case ScopeWorkload:
			if p.selects(w.Labels) {
				e.Workload = elder(e.Workload, p)
			}
		}
	}
	e.inherit()
	e.applyPorts()
	return e
}

// inherit is step 2: the narrowest scope whose policy is not UNSET decides.
func (e *Effective) inherit() {
	e.Mode = ModePermissive
	for _, p := range [...]*PeerAuthentication{e.Mesh, e.NamespaceWide, e.Workload} {
		if p != nil && p.Mode != ModeUnset {
			e.Mode, e.base = p.Mode, p
		}
	}
}

// applyPorts is step 3.
func (e *Effective) applyPorts() {
	if e.Workload == nil || len(e.Workload.Ports) == 0 {
		return
	}
	e.Ports = make(map[uint32]Mode, len(e.Workload.Ports))
	for port, m := range e.Workload.Ports {
		switch {
		case port == 0 || port > maxPort:
		case m == ModeUnset:
			e.Ports[port] = e.Mode
		default:
			e.Ports[port] = m
			e.decide(port, e.Workload)
		}
	}
}

// decide records who decided a port, when it is not who decided the rest.
func (e *Effective) decide(port uint32, by *PeerAuthentication) {
	if by == e.base {
		return
	}
	if e.decided == nil {
		e.decided = make(map[uint32]*PeerAuthentication)
	}
	e.decided[port] = by
}
