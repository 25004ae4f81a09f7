// Package canonical writes what Meshvakt reads of an object in one way only, so that its digest in a record is the
// same whoever has read it: the webhook from a request, or the caches from a watch. A change that was seen finds the
// request that made it by that digest.
//
// The form is JSON by RFC 8785. It has what is read and nothing else: what the API server writes of itself is not in
// it (UID, generation, resourceVersion, times, managed fields, status), nor what the caches do not keep.
package canonical
