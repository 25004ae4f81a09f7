// Package seal turns the spool of one replica into transparency logs, one for each shard, that
// whoever holds a checkpoint can check without trusting this program: C2SP tlog-tiles, written by
// Tessera, one leaf for each record, the index of the leaf being the record's sequence number.
//
// It must not run in the webhook's process: where the disk refuses a lock, Tessera ends the
// process, and where it does not answer, Tessera waits without end. Both are right for a process
// that has nothing else to do and is started again.
//
// # Order of steps, and what a crash leaves
//
// A batch: (1) lines are read from the spool, which has only durable ones, and each is checked as
// the next of its chain; (2) Tessera stores their entries and tiles, then the size of the tree,
// each synced; (3) the next batch. At no time is more than one batch with Tessera, and it flushes
// when it has the last entry of it and not before: of two batches the second could be stored where
// the first was not, for want of space, and all that follows would stand at the wrong index.
//
// A checkpoint: (1) the root of the tree is computed from the tiles on disk; (2) it is shown to
// extend the tree that was signed last; (3) it is signed, and cosigned by witnesses; (4) stored by
// sync, rename and sync of the directory; (5) file sealed; (6) segments of the spool that it
// covers are removed, if it is witnessed where there is a policy of witnesses.
//
// Nothing is remembered anywhere else. After whatever end, Open looks up the last entry of the
// last log in the spool, by its hash, which commits to all records before it, and goes on behind
// it. Where that entry is not to be found, log and spool have parted, nothing is touched and Run
// fails.
//
// A shard that is closed: (1) bundle, by sync and rename; (2) after the time of retention, a
// tombstone, synced; (3) bundle, log and key are removed. What is found half removed beside a
// tombstone is removed.
package seal
