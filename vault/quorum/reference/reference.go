// Package reference is the trust that the reference has in its peers: every grant and every certificate holds.
//
// A node with this authority behaves as logs of the reference show it (protocol.md §11). It serves replays and must never
// meet a network: whoever imports this package can be made to believe anything. A test holds that the daemons do not.
package reference

import "github.com/sledvault/sledvault/vault/quorum"

// Authority believes everything.
type Authority struct{}

var _ quorum.Credulous = Authority{}

// VerifyGrant implements [quorum.Authority].
func (Authority) VerifyGrant(*quorum.Grant) error { return nil }

// VerifyCertificate implements [quorum.Authority].
func (Authority) VerifyCertificate(*quorum.Configuration, *quorum.Certificate) error { return nil }

// BelievesPeers implements [quorum.Credulous].
func (Authority) BelievesPeers() {}
