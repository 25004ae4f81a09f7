// Package journal writes the evidence of one replica: what the webhook has decided and what was
// observed becomes records, one shard after the other, in the spool on the replica's volume.
//
// It never keeps a review waiting longer than the spool's budget, and never fails as a whole:
// while no record can be written, for whatever cause, Decided says what is to be answered
// nevertheless, what went unrecorded is counted, and the first record afterwards is a gap with
// these counts.
//
//	                                      log in order     log not available
//	refused by a policy                   refused          refused, counted
//	let pass by an exception              let pass         refused: no exception without a record
//	change of what the mesh, a guard      as decided       refused, except to the break-glass groups
//	or an exception is made of                             and to Meshvakt itself: as decided, counted
//	everything else                       as decided       as decided, counted; refused in mode required
//
// The order of things: a shard is opened, and changed, by the one goroutine of Start, which has
// the lock to itself meanwhile; everybody else appends under the read lock. Which record follows
// which is settled by the spool alone, as it makes the lines.
package journal
