package vault

import (
	"crypto/ed25519"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/sealing"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/reason"
)

// TestClaimBehindRekey: the power was cut after a set with another membership key was written and before the TPM's claim
// followed. The set before vouches for it; without that, or signed by anybody else, it is not believed.
func TestClaimBehindRekey(t *testing.T) {
	t.Parallel()
	key := func(name string) ed25519.PrivateKey {
		return ed25519.NewKeyFromSeed([]byte(strings.Repeat(name, ed25519.SeedSize)))
	}
	public := func(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }
	member, recovery, fresh, thief := key("m"), key("r"), key("f"), key("t")
	sign := func(s *enroll.Set, k ed25519.PrivateKey) *enroll.Set {
		t.Helper()
		if err := s.Sign(k); err != nil {
			t.Fatal(err)
		}
		return s
	}
	old := sign(enroll.NewSet(ident.RackID{1}, public(member), public(recovery)), member)
	next := old.Next()
	next.MembershipKey = public(fresh)
	sign(next, recovery)
	forged := old.Next()
	forged.MembershipKey, forged.RecoveryKey = public(fresh), public(thief)
	sign(forged, thief)
	claim := &sealing.Claim{Version: 1, Rack: old.Rack, KeyDigest: sha256.Sum256(old.MembershipKey), SetGeneration: old.Generation, SetDigest: old.Digest()}

	for _, c := range []struct {
		name     string
		previous *enroll.Set
		set      *enroll.Set
		ok       bool
	}{
		{"vouched for", old, next, true},
		{"nothing kept", nil, next, false},
		{"another recovery key", old, forged, false},
		{"the forgery vouches for itself", forged, forged, false},
	} {
		d := &Daemon{reasons: reason.NewLog()}
		d.cfg.State.Copies = []string{t.TempDir(), t.TempDir()}
		for _, dir := range d.cfg.State.Copies {
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if c.previous != nil {
			if err := os.WriteFile(filepath.Join(d.cfg.State.Copies[1], ledger.PreviousFile), c.previous.Encode(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := d.chooseSet(claim, setFiles{sets: []setFile{{set: c.set}}})
		if ok := err == nil && f.set.Generation == next.Generation; ok != c.ok {
			t.Errorf("%s: have %v, want %v", c.name, err, c.ok)
		}
	}
}
