// Package observe writes what one replica sees of the cluster into the evidence: how every guarded namespace stands,
// each change of it, exceptions, changes of what Meshvakt itself is made of, and once a minute that it was there and
// saw. Every replica does it, whoever leads: time that one of them has observed is observed.
//
// All records come from the one goroutine of Observer.Start, in the order in which things were seen:
//
//   - a shard begins with a snapshot of the whole table of rows, and the exceptions in force behind it, so that it can
//     be read without the one before;
//   - a row that has changed is told before the next beat, whose hash of the table has it in;
//   - what could not be told is a gap, and then a snapshot, since nobody knows any more what the table was.
//
// It never waits for the log longer than the log itself does, and keeps nothing for it that grows: what is told after a
// gap is how things stand, and not what has happened meanwhile.
package observe
