// Package preflight tells, before Meshvakt is installed and after, whether a cluster is
// ready for it, and what a guard would refuse of what runs there.
//
// It judges what others have read (see package survey) and does no I/O. What could not
// be read makes a check Unknown, which is never taken for a pass.
package preflight
