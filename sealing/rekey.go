package sealing

import (
	"context"
	"maps"

	"github.com/sledvault/sledvault/vault/secret"
)

// Rekey seals a new key beside the same seed, under the same policy and counter, and opens it once as a test. Nothing is
// stored: the ledger's next save under the new blob makes it count. The old blob can still be opened on this sled, since
// approvals name the policy key and not the blob; what it opens are ledgers that the counter has outlived. The receiver
// stays as it is; the caller destroys it.
func (u *Unsealed) Rekey(ctx context.Context) (fresh *Unsealed, err error) {
	boot, staged := u.State()
	fresh = &Unsealed{p: u.p, pins: u.pins, rack: u.rack, boot: boot, staged: maps.Clone(staged)}
	defer func() {
		if err != nil {
			fresh.Destroy()
			fresh = nil
		}
	}()
	if fresh.key, err = secret.Random[secret.SealKeyKind](u.p.Alloc, u.p.Rand, keyLen); err != nil {
		return fresh, err
	}
	if fresh.seed, err = u.seed.Clone(u.p.Alloc); err != nil {
		return fresh, err
	}
	if fresh.auth, err = u.auth.Clone(u.p.Alloc); err != nil {
		return fresh, err
	}
	if err = fresh.seal(ctx, u.v.counter); err != nil {
		return fresh, err
	}
	return fresh, fresh.test(ctx)
}

// test opens a new blob once, as the next start will.
func (u *Unsealed) test(ctx context.Context) error {
	value, err := u.Counter(ctx)
	if err != nil {
		return err
	}
	approvals, err := u.now(ctx, value)
	if err != nil {
		return err
	}
	return u.TestUnseal(ctx, u.v.raw, approvals)
}
