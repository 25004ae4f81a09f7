// Package merkle has what witnessctl uses of the package of that name.
package merkle

import "sigsum.org/sigsum-go/pkg/crypto"

// HashEmptyTree is the root of a tree without leaves, as RFC 6962 has it.
func HashEmptyTree() crypto.Hash { return crypto.HashBytes(nil) }
