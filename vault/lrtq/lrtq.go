// Package lrtq is the low-rent trust quorum: the older scheme that a rack may still hold when sledvault comes to it.
//
// It shares one scalar modulo the order of Curve25519's group among all sleds, 255 shares in all, without any
// authentication (lrtq.md §1). Sledvault reads what that scheme left behind, can serve its peers, and upgrades
// from it; it never founds a rack with it. The secret of the scheme counts as the rack secret of epoch 1.
//
// It refuses shares that are not canonical, which the reference would read backwards. It does no I/O. Arithmetic on
// secrets runs in constant time; the share numbers, which are public, steer it. Next: vault/quorum.
package lrtq

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/secret"
)

// TotalShares is how many shares the scheme makes, whatever the number of sleds.
const TotalShares = 255

// MinThreshold is the smallest threshold: one share alone would be the secret.
const MinThreshold = 2

// Size is the length of a secret and of a share without its number: a scalar, little-endian.
const Size = 32

// Share is one share: its number and a scalar of 32 bytes, little-endian and canonical. Its digest is SHA3-256 over
// the 33 bytes, as for every other share.
type Share = gfss.Share

// Package is what a sled keeps of the scheme: its share, and what it needs to rebuild the secret with others. It is
// what remains of the scheme's ledger in the trust quorum's state.
type Package struct {
	RackID    ident.RackID
	Epoch     uint32 // always 0 in the scheme's own files; its secret is the trust quorum's epoch 1
	Threshold ident.Threshold
	Share     Share
	Digests   [][Size]byte // of all shares ever made, ascending and distinct; 255
}

// The stable names of a [PackageError].
const (
	BadEpoch         = "package_epoch_not_zero"
	BadThreshold     = "package_threshold"
	BadShare         = "package_share"
	BadDigests       = "package_digests"
	ShareNotInDigest = "package_share_not_among_digests"
)

// PackageError says why a package cannot be right.
type PackageError struct {
	Name string // stable
	Text string
}

func (e *PackageError) Error() string { return "lrtq: package: " + e.Text }

func wrong(name, format string, args ...any) error {
	return &PackageError{name, fmt.Sprintf(format, args...)}
}

// Validate reports whether the package can be one that the scheme made: its own share is well formed and among the
// digests. Errors: *[PackageError], [secret.ErrEmpty].
func (p Package) Validate() error {
	if p.Epoch != 0 {
		return wrong(BadEpoch, "epoch: have %d, want 0", p.Epoch)
	}
	if p.Threshold < MinThreshold {
		return wrong(BadThreshold, "threshold: have %d, want at least %d", p.Threshold, MinThreshold)
	}
	if n := len(p.Digests); n < int(p.Threshold) || n > TotalShares {
		return wrong(BadDigests, "digests: have %d, want %d to %d", n, p.Threshold, TotalShares)
	}
	for i := 1; i < len(p.Digests); i++ {
		if bytes.Compare(p.Digests[i-1][:], p.Digests[i][:]) >= 0 {
			return wrong(BadDigests, "digests: number %d is not greater than the one before", i)
		}
	}
	if err := checkShare(p.Share); err != nil {
		return wrong(BadShare, "own share: %v", err)
	}
	d, err := p.Share.Digest()
	if err != nil {
		return err
	}
	if !p.Has(d) {
		return wrong(ShareNotInDigest, "own share %d: its digest is not in the package", p.Share.X)
	}
	return nil
}

// Has reports whether a share with this digest belongs to the scheme's secret.
func (p Package) Has(digest [32]byte) bool {
	_, ok := slices.BinarySearchFunc(p.Digests, digest, func(a, b [Size]byte) int { return bytes.Compare(a[:], b[:]) })
	return ok
}

// Clone copies the package; its share goes into new pages.
func (p Package) Clone(a secret.Allocator) (Package, error) {
	s, err := p.Share.Clone(a)
	if err != nil {
		return Package{}, err
	}
	p.Share, p.Digests = s, slices.Clone(p.Digests)
	return p, nil
}

// Destroy wipes the share. It may be called again.
func (p Package) Destroy() { p.Share.Destroy() }
