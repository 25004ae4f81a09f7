// Package corpus tries mutants of the policies on the corpus of cases. It is compiled
// by the test of package mutation, with instrumented policies; by itself it holds no
// mutants, and only sees that the corpus passes.
package corpus
