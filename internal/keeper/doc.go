// Package keeper keeps Meshvakt's own objects as they were installed: definitions of its
// API, rights, Service, admission policies. What else may be in them is known from the
// ConfigMap that the installer writes, by its digest in the arguments of the process: who
// changes that ConfigMap changes nothing that a running replica puts back.
//
// An installer is never fought. Its objects carry a mark, and the mark changes with every
// upgrade: as soon as the ConfigMap has another one than ours, another version is being
// installed, and this one stands down.
//
// A right can be given back only by who has it. So each role stands there twice, bound
// twice, and one goes on while the other is put back; nobody needs the verbs escalate and
// bind. When both are gone at once there is nobody left to repair them.
package keeper
