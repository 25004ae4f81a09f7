// Package admissionpolicy tests the expressions of the ValidatingAdmissionPolicy
// with the API server's own evaluator, without an API server: that they compile,
// never fail, and agree with the policy in Go on every case of the corpus.
package admissionpolicy
