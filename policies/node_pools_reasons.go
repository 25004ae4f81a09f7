package policies

import "github.com/meshvakt/meshvakt/internal/nodes"

// The reasons of node-pools. Those from MV407 on are remarks.

func reasonNodeBurstable() Reason {
	return Reason{"NodeBurstable", "MV401", "A pod is put on a node whose CPU is shared or paid for by credits"}
}

func reasonNodeClassUnknown() Reason {
	return Reason{"NodeClassUnknown", "MV402", "A pod is put on a node of which nothing tells whether its CPU is shared"}
}

func reasonNodeOutsideRegion() Reason {
	return Reason{"NodeOutsideRegion", "MV403", "A pod is put on a node outside of the allowed regions or zones, or in none that is known"}
}

func reasonNodeNotFound() Reason {
	return Reason{"NodeNotFound", "MV404", "A pod is put on a node that does not exist, so that nothing tells what it will be"}
}

func reasonOnlyRefusedNodes() Reason {
	return Reason{"OnlyRefusedNodes", "MV405", "A pod can only land on nodes on which it may not run, or asks for such"}
}

func reasonDaemonSetOnRefusedNodes() Reason {
	return Reason{"DaemonSetOnRefusedNodes", "MV406", "A DaemonSet puts pods on nodes on which they may not run"}
}

func reasonNotSteered() Reason {
	return Reason{"NotSteered", "MV407", "The scheduler may choose a node on which the pod may not run, and the pod then waits"}
}

func reasonNodeChanges() Reason {
	return Reason{"NodeChanges", "MV408", "A node becomes one on which pods that run there may not run"}
}

func reasonVolumeOutsideRegion() Reason {
	return Reason{"VolumeOutsideRegion", "MV409", "A volume of a guarded namespace is outside of the allowed regions or zones"}
}

func reasonPlacementStillAmiss() Reason {
	return Reason{"PlacementStillAmiss", "MV410", "Where the pods of the object can land was amiss before the change and still is"}
}

func nodeReasons() []Reason {
	return []Reason{
		reasonNodeBurstable(),
		reasonNodeClassUnknown(),
		reasonNodeOutsideRegion(),
		reasonNodeNotFound(),
		reasonOnlyRefusedNodes(),
		reasonDaemonSetOnRefusedNodes(),
		reasonNotSteered(),
		reasonNodeChanges(),
		reasonVolumeOutsideRegion(),
		reasonPlacementStillAmiss(),
	}
}

// reasonOf is the reason for refusing a node.
func reasonOf(c nodes.Cause) Reason {
	switch c {
	case nodes.CauseBurstable:
		return reasonNodeBurstable()
	case nodes.CauseUnknown:
		return reasonNodeClassUnknown()
	case nodes.CausePlace:
	}
	return reasonNodeOutsideRegion()
}
