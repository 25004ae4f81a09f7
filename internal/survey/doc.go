// Package survey reads of a cluster what package preflight judges, with whatever rights
// the user has. It only reads: the one thing it creates are SelfSubjectAccessReviews,
// which are questions about the user's own rights and are stored nowhere.
//
// The kinds of which there may be any number are read page by page, and an object is
// gone once it has been judged.
package survey
