// Package mutation checks that the corpus of cases holds every rule of the policies:
// it takes one condition, operand, entry of a list or call out of them after the
// other, and demands that some case then comes to another decision or another text.
//
// The policies are instrumented once, all mutants in one binary (go test -overlay):
// at each mutation point the code asks package point whether its mutant is the one
// that is tried. Mutants that no case can tell from the policies stand in
// equivalents.txt with the reason why.
package mutation
