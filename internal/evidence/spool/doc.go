// Package spool keeps a log of lines on one local disk: in order, without a hole, durable
// before Append returns. It knows nothing of what the lines say. Whoever appends makes the
// bytes of a line from its number and the SHA-256 of the line before it, within the order in
// which lines are stored, and so may chain them.
//
// # Files
//
//	00000000000000000003-00000000000000000812.spool   the third segment; its first line is 812
//	mark        how far the log is durable, for readers; written after each group, synced at a clean stop
//	spare       the zeros that become the next segment
//	reserve     space that is given up when the disk is full
//	segment.tmp a segment in the making, where there is no spare
//
// A segment is a header of 512 bytes (version, ordinal, first line, SHA-256 of the line before
// it), then lines, each behind a CRC-32C over its number, the SHA-256 of the line before it,
// and itself; then zeros or the end of the file. Lines hold neither zero bytes nor line feeds.
// A segment ends where the next one begins: what it holds of lines from there on is void and
// was never acknowledged. All files have mode 0600; none is reached through a symbolic link.
//
// # Order of steps, and what a crash leaves
//
// A group: (1) write the lines at the end of the active segment, (2) fdatasync, (3) write the
// mark, (4) tell the callers. Before 2 is over, any part of the group may be there: a line is
// whole and in its place by its checksum, or is dropped with all that follows. After 2 it stays.
// Between 2 and 4 lines are in the log whose callers were not told so.
//
// A segment: (1) write header and first lines into a file without a name that counts, (2)
// fdatasync, (3) rename, (4) fsync of the directory, (5) trim and close the one before, (6)
// remove older ones without a line that counts. Before 4 is over the segment is there whole or
// not at all.
//
// Open never writes to a file of an earlier life. It reads the newest segment, and writes what
// the mark does not cover again into a new one: after a failed sync, a page may look stored in
// the page cache and not be. If the mark covers more than is there, or a header is not
// whole, that is no crash but damage, and Open fails.
//
// A failed write or sync: the file is given up, never synced again; a new segment begins after
// the last durable line and takes the lines whose callers still wait, made anew. When that
// fails too, appends are refused at once, and it is tried again from time to time. ENOSPC: the
// reserve is removed first; AppendVital alone goes on, until the reserve fits again.
//
// # What an error of Append means
//
// A *RefusedError: the line is not in the log and will not be. An *UnsettledError: the disk has
// it; Outcome tells once it is known. No error: it is in the log, and what was acknowledged
// survives the end of the process and of the machine.
//
// # What must hold of the disk
//
// On ext4 and XFS: fdatasync stores data, and the size of a file with it; rename is atomic, and
// durable after fsync of the directory; the disk does not lie about its cache; sectors of 512
// bytes are written whole or not at all. Lines need no order of sectors within a
// group. Network file systems are not for it: flock and failed syncs mean something else there.
//
// One appender per directory: flock on the directory itself, which also keeps two out within
// one process; and no segment is ever made under a name that is taken.
package spool
