package check

import (
	"iter"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// RunsIn says where Meshvakt runs, or will: that namespace is never guarded.
func (s *State) RunsIn(namespace string) {
	s.cluster.Unguardable = append(facts.SystemNamespaces(), namespace)
}

// Facts are the facts of the state. They are shared: whoever reads them changes nothing.
func (s *State) Facts() *facts.Cluster { return &s.cluster }

// Standing gives, for every object of the state that policies judge when it is created,
// the review of its creation in the state that holds all others. The errors are those of
// objects that cannot be judged.
func (s *State) Standing() iter.Seq2[*facts.Review, error] {
	return func(yield func(*facts.Review, error) bool) {
		for _, k := range s.order {
			d := s.docs[k]
			if !s.reads(d) || !s.judgedOn(k.kind, admissionv1.Create) {
				continue
			}
			r, err := s.standing(d, k)
			if err == nil {
				r.Submitted = !injected(r.Object)
			}
			if !yield(r, err) {
				return
			}
		}
	}
}
