package keys

import (
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/secret"
)

// spareInfo begins the context of the derivation; the rack id (16 bytes) follows.
const spareInfo = "trust-quorum-v0-key-shares-"

// WithSpareKey derives the key under which the older scheme encrypts the spare shares of a sled (lrtq.md §2), lends it to
// f and wipes it. s is the scheme's secret. Errors: [secret.ErrLength], [secret.ErrEmpty], [ErrZeroKey], those of f.
func WithSpareKey(salt [Size]byte, s secret.RackSecret, rack ident.RackID, f func([]byte) error) error {
	return lendKey("spare shares", salt, s, append([]byte(spareInfo), rack[:]...), f)
}
