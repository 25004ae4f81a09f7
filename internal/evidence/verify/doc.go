// Package verify tells from logs of evidence what they prove, for somebody who does not trust
// whoever wrote them. It uses none of the writers' code but the format of records.
//
// Order of trust: a checkpoint is believed for its signatures; a record for the root of the
// checkpoint, over all entries of the log; the order of records for the chain of hashes; the
// table of states for the digest in each beat. What follows from records is worked out in
// memory, by functions that read no file and no clock.
package verify
