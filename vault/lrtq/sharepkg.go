package lrtq

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/secret"
)

// shareSize is the length of a share in bytes, its number included.
const shareSize = 1 + Size

// SharePackage is what a founding member holds: the common package and spare shares for sleds that come later,
// encrypted under the scheme's own secret, so that it takes a threshold of members to give one away (lrtq.md §2).
type SharePackage struct {
	Common    Package
	Members   []Board // the founding members, ascending and distinct
	Salt      [32]byte
	Nonce     [chacha20poly1305.NonceSize]byte
	Encrypted []byte // Spare()·33 bytes and a tag of 16
}

// Errors of share packages.
var (
	ErrNoSpare = errors.New("lrtq: spare share: none left")
	ErrDecrypt = errors.New("lrtq: spare share: the secret does not open the package")
)

// BadMembers and BadSpare are further names of a [PackageError].
const (
	BadMembers = "package_members"
	BadSpare   = "package_spare_shares"
)

// Validate reports whether the package can be one that the scheme made. Errors: *[PackageError], [secret.ErrEmpty].
func (p SharePackage) Validate() error {
	if err := p.Common.Validate(); err != nil {
		return err
	}
	if n := len(p.Members); n < 2 || n > TotalShares {
		return wrong(BadMembers, "members: have %d, want 2 to %d", n, TotalShares)
	}
	for i, m := range p.Members {
		if err := m.Validate(); err != nil {
			return wrong(BadMembers, "member %d: %v", i, err)
		}
		if i > 0 && p.Members[i-1].Compare(m) >= 0 {
			return wrong(BadMembers, "member %d is not greater than the one before", i)
		}
	}
	if n := len(p.Encrypted) - chacha20poly1305.Overhead; n < 0 || n%shareSize != 0 || n/shareSize >= TotalShares {
		return wrong(BadSpare, "spare shares: have %d bytes, want a multiple of %d and %d more", len(p.Encrypted), shareSize, chacha20poly1305.Overhead)
	}
	return nil
}

// Spare is how many spare shares the package holds.
func (p SharePackage) Spare() int {
	return max(0, len(p.Encrypted)-chacha20poly1305.Overhead) / shareSize
}

// Equal compares everything, the share in constant time.
func (p SharePackage) Equal(o SharePackage) bool {
	return p.Common.Equal(o.Common) && slices.Equal(p.Members, o.Members) && p.Salt == o.Salt && p.Nonce == o.Nonce &&
		bytes.Equal(p.Encrypted, o.Encrypted)
}

// Equal compares everything, the share in constant time.
func (p Package) Equal(o Package) bool {
	return p.RackID == o.RackID && p.Epoch == o.Epoch && p.Threshold == o.Threshold && p.Share.X == o.Share.X &&
		p.Share.Y.Equal(o.Share.Y) && slices.Equal(p.Digests, o.Digests)
}

// Clone copies the package; its share goes into new pages.
func (p SharePackage) Clone(a secret.Allocator) (SharePackage, error) {
	common, err := p.Common.Clone(a)
	if err != nil {
		return SharePackage{}, err
	}
	p.Common, p.Members, p.Encrypted = common, slices.Clone(p.Members), bytes.Clone(p.Encrypted)
	return p, nil
}

// Destroy wipes the share. It may be called again.
func (p SharePackage) Destroy() { p.Common.Destroy() }

// SpareShare decrypts spare share number index, counted from 0, with the scheme's secret.
// Errors: [ErrNoSpare], [ErrDecrypt], *[PackageError] if what was decrypted is no share of the scheme, those of the allocator.
func (p SharePackage) SpareShare(a secret.Allocator, s secret.RackSecret, index int) (Share, error) {
	if index < 0 || index >= p.Spare() {
		return Share{}, ErrNoSpare
	}
	plain, err := p.open(a, s)
	if err != nil {
		return Share{}, err
	}
	defer plain.Destroy()
	var out Share
	err = plain.Use(func(b []byte) error {
		one := b[index*shareSize:][:shareSize]
		y, err := secret.New[secret.ShareKind](a, Size, func(to []byte) error { copy(to, one[1:]); return nil })
		out = Share{X: one[0], Y: y}
		return err
	})
	if err != nil {
		return Share{}, err
	}
	d, err := out.Digest()
	if err == nil && !p.Common.Has(d) {
		err = wrong(ShareNotInDigest, "spare share %d: its digest is not in the package", index)
	}
	if err != nil {
		out.Destroy()
		return Share{}, err
	}
	return out, nil
}

func (p SharePackage) open(a secret.Allocator, s secret.RackSecret) (plain secret.Plaintext, err error) {
	err = keys.WithSpareKey(p.Salt, s, p.Common.RackID, func(key []byte) error {
		aead, err := chacha20poly1305.New(key)
		if err != nil {
			return err
		}
		plain, err = secret.New[secret.PlaintextKind](a, p.Spare()*shareSize, func(b []byte) error {
			if _, err := aead.Open(b[:0], p.Nonce[:], p.Encrypted, nil); err != nil {
				return ErrDecrypt
			}
			return nil
		})
		return err
	})
	return plain, err
}

// ThresholdOf is the threshold of a rack founded with n members.
func ThresholdOf(n int) ident.Threshold { return ident.Threshold(n/2 + 1) }

// Owners says which member gets which package of [Create]: the founder the first, the others in order.
func Owners(founder Board, members []Board) []Board {
	out := slices.DeleteFunc(slices.Clone(members), func(b Board) bool { return b == founder })
	slices.SortFunc(out, Board.Compare)
	return slices.Insert(out, 0, founder)
}

// Create makes the packages of a new rack, in the order of [Owners]. Sledvault founds no rack with this scheme: the
// function is for tests and simulators of racks that exist.
//
// It reads from rand 64 bytes for the secret, those of [Split], 32 for the salt, 11 for the nonce of every package. The
// caller destroys the packages. Errors: *[PackageError], those of [Split].
func Create(a secret.Allocator, rand io.Reader, rack ident.RackID, members []Board) ([]SharePackage, error) {
	if n := len(members); n < 2 || n > TotalShares {
		return nil, wrong(BadMembers, "members: have %d, want 2 to %d", n, TotalShares)
	}
	s, err := NewSecret(a, rand)
	if err != nil {
		return nil, err
	}
	defer s.Destroy()
	shares, err := Split(a, rand, s, TotalShares, int(ThresholdOf(len(members))))
	if err != nil {
		return nil, err
	}
	defer gfss.DestroyAll(shares)
	random := make([]byte, 32+11*len(members))
	if _, err := io.ReadFull(rand, random); err != nil {
		return nil, fmt.Errorf("lrtq: create packages: %w", err)
	}
	return createDerandomized(a, rack, members, s, shares, [32]byte(random), random[32:])
}

// createDerandomized packs shares. nonces holds 11 bytes for every package; the twelfth is its number.
func createDerandomized(a secret.Allocator, rack ident.RackID, members []Board, s secret.RackSecret, shares []Share, salt [32]byte, nonces []byte) (out []SharePackage, err error) {
	defer func() {
		if err != nil {
			for _, p := range out {
				p.Destroy()
			}
			out = nil
		}
	}()
	sorted := slices.SortedFunc(slices.Values(members), Board.Compare)
	common := Package{RackID: rack, Threshold: ThresholdOf(len(members))}
	for _, sh := range shares {
		d, err := sh.Digest()
		if err != nil {
			return nil, err
		}
		common.Digests = append(common.Digests, d)
	}
	slices.SortFunc(common.Digests, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	each := len(shares) / len(members)
	for i := range members {
		p := SharePackage{Common: common, Members: sorted, Salt: salt}
		copy(p.Nonce[:11], nonces[11*i:])
		p.Nonce[11] = byte(i)
		own := shares[i*each : (i+1)*each]
		p.Common.Share = own[0]
		if p, err = p.Clone(a); err != nil {
			return out, err
		}
		out = append(out, p)
		if out[i].Encrypted, err = seal(a, p, s, own[1:]); err != nil {
			return out, err
		}
		if err := out[i].Validate(); err != nil {
			return out, err
		}
	}
	return out, nil
}

// seal encrypts spare shares where they are written, so that what remains holds no plaintext.
func seal(a secret.Allocator, p SharePackage, s secret.RackSecret, spare []Share) (out []byte, err error) {
	n := len(spare) * shareSize
	plain, err := secret.New[secret.PlaintextKind](a, n, func(b []byte) error {
		for i, sh := range spare {
			b[i*shareSize] = sh.X
			if err := sh.Y.Use(func(y []byte) error { copy(b[i*shareSize+1:], y); return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer plain.Destroy()
	err = keys.WithSpareKey(p.Salt, s, p.Common.RackID, func(key []byte) error {
		aead, err := chacha20poly1305.New(key)
		if err != nil {
			return err
		}
		return plain.Use(func(b []byte) error {
			out = aead.Seal(nil, p.Nonce[:], b, nil)
			return nil
		})
	})
	return out, err
}
