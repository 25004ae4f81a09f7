// Package scheduler proves internal/nodes against the scheduler's own code: random nodes go through
// Catalogue.NewNode and NewInventory, random pods through Inventory.Reach, and every node that is reached must
// be one that the plugins NodeAffinity and TaintToleration of kube-scheduler let the pod on, and the other way
// round. It holds tests only.
//
// What is called, not imitated: PreFilter and Filter of both plugins, of the version that go.mod pins, with the
// feature gates as they are by default but for TaintTolerationComparisonOperators. The plugins are asked in the order in which the scheduler's framework
// asks them: PreFilter may say that there is nothing to filter, that no node will do, or which nodes alone
// might; Filter is asked about the nodes that are left, one by one.
//
// What is not compared: the taints that NewNode leaves out on purpose, which TestOnlyPassingTaintsAreLeftOut
// looks at apart, and the plugins that decide by what changes by the minute, such as the room on a node.
//
// Each random test prints its seed. Replay with -seed; -cases sets the number.
//
//	go test . -run TestReachDifferential -v -seed 12345
//
// The module is apart from test/conformance, so that neither k8s.io/kubernetes nor Istio decides which versions
// the other is compiled with. Run `go mod tidy` here after the root go.mod has changed.
package scheduler
