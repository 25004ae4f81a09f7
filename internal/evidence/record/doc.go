// Package record is the format of the evidence: what one record says, the bytes it is kept as, and how each is
// chained to the one before. docs/evidence-format.md is the same for whoever writes a verifier of their own.
//
// What is hashed and signed are the bytes as they were written, so nothing is made canonical when evidence is
// verified. Instead there is one way to write each record, and Parse takes no other: for every line that it takes,
// Encode of the result gives that line again. Each type states its fields once, in the method fields, which writes
// and reads alike; so the two cannot drift apart, and a bound that holds for one holds for the other.
//
// What does not fit is an error, and never cut. Types whose content grows with a cluster say how many there are
// next to a bounded list, or are split over several records.
//
// The package does no I/O and looks at no clock. Randomness comes from the reader that is passed in. No body of an
// object, address or client's name has a field to go into; people and names of objects are there as keyed
// pseudonyms alone.
package record
