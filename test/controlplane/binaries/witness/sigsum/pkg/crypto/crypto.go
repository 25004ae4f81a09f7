// Package crypto has what witnessctl uses of the package of that name: SHA-256, and the size of
// an Ed25519 key.
package crypto

import (
	"crypto/ed25519"
	"crypto/sha256"
)

// PublicKeySize is that of Ed25519.
const PublicKeySize = ed25519.PublicKeySize

// PublicKey is of Ed25519.
type PublicKey [PublicKeySize]byte

// Hash is a SHA-256.
type Hash [sha256.Size]byte

// HashBytes hashes b.
func HashBytes(b []byte) Hash { return sha256.Sum256(b) }
