package policies

import "github.com/meshvakt/meshvakt/policies/facts"

// istioMatches are the objects of Istio that can hollow out a guarded namespace.
func istioMatches() []Match {
	return nil
}

func judgeIstioObject(*facts.Review, *facts.Guard) ([]Finding, error) {
	return nil, nil
}
