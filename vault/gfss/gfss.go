// Package gfss shares a secret among n holders so that any k of them can rebuild it and k-1 learn nothing.
//
// It is Shamir's scheme over GF(2^8), one polynomial per secret byte (protocol.md §2), byte for byte compatible with
// the reference. It refuses too few shares, doubled share numbers, shares of unequal length and the share number 0 as a
// target. It cannot notice that shares do not belong together: callers compare digests first.
//
// All arithmetic on secret bytes runs in constant time and without tables (field.go). Next: vault/keys.
package gfss

import (
	"crypto/sha3"
	"fmt"
	"io"

	"github.com/sledvault/sledvault/vault/secret"
)

// MaxSecret is the longest secret in bytes that can be shared. It bounds what a split allocates.
const MaxSecret = 1024

// MaxShares is the largest number of shares: every share number is one byte and 0 is the secret itself.
const MaxShares = 255

// Share is one share of a secret: the value of every byte's polynomial at X.
type Share struct {
	X byte
	Y secret.Share // one byte per secret byte
}

// CombineError says why shares cannot be combined. Its value is the stable name that alarms carry.
type CombineError string

// The reasons of [Combine] and [ComputeShare], in protocol.md §2.
const (
	ErrTooFewShares          CombineError = "too_few_shares"
	ErrDuplicateXCoordinates CombineError = "duplicate_x_coordinates"
	ErrInvalidShareLengths   CombineError = "invalid_share_lengths"
	ErrInvalidShareID        CombineError = "invalid_share_id"
)

// Name is the stable name.
func (e CombineError) Name() string { return string(e) }

func (e CombineError) Error() string {
	switch e {
	case ErrTooFewShares:
		return "gfss: combine: fewer than 2 shares"
	case ErrDuplicateXCoordinates:
		return "gfss: combine: two shares have the same number"
	case ErrInvalidShareLengths:
		return "gfss: combine: shares of unequal length"
	case ErrInvalidShareID:
		return "gfss: compute share: number 0 is the secret"
	}
	return fmt.Sprintf("gfss: combine: unknown reason %.40q", string(e))
}

// The stable names of a [SplitError].
const (
	ThresholdTooSmall  = "threshold_too_small"      // k < 2
	TooFewTotalShares  = "too_few_total_shares"     // n < k
	TooManyTotalShares = "too_many_total_shares"    // n > 255
	SecretTooLong      = "secret_too_long_to_share" // more than MaxSecret bytes
)

// SplitError says why a secret cannot be split.
type SplitError struct {
	Name string // stable
	N, K int    // what was asked for
}

func (e *SplitError) Error() string {
	return fmt.Sprintf("gfss: split: %s: have n %d and k %d, want 2 <= k <= n <= %d", e.Name, e.N, e.K, MaxShares)
}

func checkSplit(length, n, k int) error {
	switch {
	case k < 2:
		return &SplitError{ThresholdTooSmall, n, k}
	case n < k:
		return &SplitError{TooFewTotalShares, n, k}
	case n > MaxShares:
		return &SplitError{TooManyTotalShares, n, k}
	case length > MaxSecret:
		return &SplitError{SecretTooLong, n, k}
	}
	return nil
}

// Split makes n shares, numbered 1 to n in order, of which any k rebuild s.
//
// It reads (k-1)·len(s) bytes from rand in one go: for each degree 1 to k-1 in turn, the coefficients of all secret
// bytes in order. They are used as they come, zeros included: refusing a leading zero would say something about the
// secret. The caller destroys the shares; s stays as it is. Errors: *[SplitError], those of rand and of the allocator.
func Split(a secret.Allocator, rand io.Reader, s secret.RackSecret, n, k int) (shares []Share, err error) {
	length := s.Len()
	if err := checkSplit(length, n, k); err != nil {
		return nil, err
	}
	coefficients, err := secret.Random[secret.PlaintextKind](a, rand, (k-1)*length)
	if err != nil {
		return nil, fmt.Errorf("gfss: split: read coefficients: %w", err)
	}
	defer coefficients.Destroy()
	err = s.Use(func(sec []byte) error {
		return coefficients.Use(func(co []byte) error {
			shares, err = evaluateAll(a, sec, co, n, k)
			return err
		})
	})
	return shares, err
}

func evaluateAll(a secret.Allocator, sec, co []byte, n, k int) ([]Share, error) {
	shares := make([]Share, 0, n)
	for x := 1; x <= n; x++ {
		y, err := secret.New[secret.ShareKind](a, len(sec), func(out []byte) error {
			evaluate(out, sec, co, byte(x), k)
			return nil
		})
		if err != nil {
			DestroyAll(shares)
			return nil, err
		}
		shares = append(shares, Share{byte(x), y})
	}
	return shares, nil
}

// Combine rebuilds the secret from all the shares given, in any order. Fewer shares than the threshold give a wrong
// secret without an error, as long as there are 2. Errors: [CombineError], [secret.ErrEmpty], those of the allocator.
func Combine(a secret.Allocator, shares []Share) (secret.RackSecret, error) {
	if err := check(shares); err != nil {
		return secret.RackSecret{}, err
	}
	return interpolate[secret.RackSecretKind](a, shares, 0)
}

// ComputeShare computes the share with number x from the shares given, without the secret ever being rebuilt.
// Errors as for [Combine], and [ErrInvalidShareID] for x = 0 before the shares are looked at.
func ComputeShare(a secret.Allocator, shares []Share, x byte) (Share, error) {
	if x == 0 {
		return Share{}, ErrInvalidShareID
	}
	if err := check(shares); err != nil {
		return Share{}, err
	}
	y, err := interpolate[secret.ShareKind](a, shares, x)
	if err != nil {
		return Share{}, err
	}
	return Share{x, y}, nil
}

// check applies the rules share by share, so that of several faults the same one is reported everywhere.
func check(shares []Share) error {
	if len(shares) < 2 {
		return ErrTooFewShares
	}
	for i, s := range shares {
		if s.Y.IsEmpty() {
			return fmt.Errorf("gfss: combine: share %d: %w", s.X, secret.ErrEmpty)
		}
		if s.Y.Len() != shares[0].Y.Len() {
			return ErrInvalidShareLengths
		}
		for _, later := range shares[i+1:] {
			if s.X == later.X {
				return ErrDuplicateXCoordinates
			}
		}
	}
	return nil
}

// Digest is SHA3-256 over the share number and the share's bytes (protocol.md §2). It is public.
func (s Share) Digest() (d [32]byte, err error) {
	err = s.Y.Use(func(y []byte) error {
		var buf [1 + MaxSecret]byte
		if len(y) > MaxSecret {
			return fmt.Errorf("gfss: digest: %w: have %d bytes, want at most %d", secret.ErrLength, len(y), MaxSecret)
		}
		buf[0] = s.X
		n := 1 + copy(buf[1:], y)
		d = sha3.Sum256(buf[:n])
		clear(buf[:n])
		return nil
	})
	return d, err
}

// Clone copies the share into new pages.
func (s Share) Clone(a secret.Allocator) (Share, error) {
	y, err := s.Y.Clone(a)
	if err != nil {
		return Share{}, err
	}
	return Share{s.X, y}, nil
}

// Destroy wipes the share. It may be called again.
func (s Share) Destroy() { s.Y.Destroy() }

// DestroyAll wipes shares.
func DestroyAll(shares []Share) {
	for _, s := range shares {
		s.Destroy()
	}
}
