package lrtq

import (
	"errors"
	"fmt"
	"io"

	"filippo.io/edwards25519"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/secret"
)

// wide is how many random bytes make one scalar, so that reducing them leaves no bias.
const wide = 64

// CombineError says why shares cannot be combined. Its value is the stable name that alarms carry; those that
// vault/gfss has too are the same.
type CombineError string

// The reasons of [Combine].
const (
	ErrTooFewShares          CombineError = "too_few_shares"
	ErrInvalidShareLengths   CombineError = "invalid_share_lengths"
	ErrInvalidShareID        CombineError = "invalid_share_id"
	ErrDuplicateXCoordinates CombineError = "duplicate_x_coordinates"
	ErrNotCanonical          CombineError = "share_not_canonical"
	ErrZeroShare             CombineError = "share_is_zero"
)

// Name is the stable name.
func (e CombineError) Name() string { return string(e) }

func (e CombineError) Error() string {
	switch e {
	case ErrTooFewShares:
		return "lrtq: combine: fewer than 2 shares"
	case ErrInvalidShareLengths:
		return "lrtq: combine: a share is not 33 bytes long"
	case ErrInvalidShareID:
		return "lrtq: combine: share number 0 is the secret"
	case ErrDuplicateXCoordinates:
		return "lrtq: combine: two shares have the same number"
	case ErrNotCanonical:
		return "lrtq: combine: a share is not a scalar in canonical form"
	case ErrZeroShare:
		return "lrtq: combine: a share is zero"
	}
	return fmt.Sprintf("lrtq: combine: unknown reason %.40q", string(e))
}

// ErrSecret says that 32 bytes are no secret of the scheme: not a scalar in canonical form.
var ErrSecret = errors.New("lrtq: split: the secret is not a scalar in canonical form")

// NewSecret makes a uniformly random secret from 64 bytes of rand.
func NewSecret(a secret.Allocator, rand io.Reader) (secret.RackSecret, error) {
	random, err := secret.Random[secret.PlaintextKind](a, rand, wide)
	if err != nil {
		return secret.RackSecret{}, fmt.Errorf("lrtq: new secret: %w", err)
	}
	defer random.Destroy()
	return secret.New[secret.RackSecretKind](a, Size, func(out []byte) error {
		return random.Use(func(b []byte) error {
			s := uniform(b)
			defer wipe(s)
			put(out, s)
			return nil
		})
	})
}

// Split makes n shares, numbered 1 to n in order, of which any k rebuild s; the scheme always makes 255.
//
// It reads (k-1)·64 bytes from rand in one go: each 64 give the next coefficient, of degree 1 first. The caller
// destroys the shares; s stays as it is. Errors: *[gfss.SplitError], [ErrSecret], those of rand and of the allocator.
func Split(a secret.Allocator, rand io.Reader, s secret.RackSecret, n, k int) ([]Share, error) {
	switch {
	case k < MinThreshold:
		return nil, &gfss.SplitError{Name: gfss.ThresholdTooSmall, N: n, K: k}
	case n < k:
		return nil, &gfss.SplitError{Name: gfss.TooFewTotalShares, N: n, K: k}
	case n > TotalShares:
		return nil, &gfss.SplitError{Name: gfss.TooManyTotalShares, N: n, K: k}
	}
	polynomial := make([]edwards25519.Scalar, k)
	defer wipeAll(polynomial)
	if err := s.Use(func(b []byte) error {
		if _, err := polynomial[0].SetCanonicalBytes(b); err != nil {
			return ErrSecret
		}
		return nil
	}); err != nil {
		return nil, err
	}
	random, err := secret.Random[secret.PlaintextKind](a, rand, (k-1)*wide)
	if err != nil {
		return nil, fmt.Errorf("lrtq: split: read coefficients: %w", err)
	}
	defer random.Destroy()
	if err := random.Use(func(b []byte) error {
		for i := range polynomial[1:] {
			c := uniform(b[i*wide:][:wide])
			polynomial[1+i].Set(c)
			wipe(c)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return evaluateAll(a, polynomial, n)
}

func evaluateAll(a secret.Allocator, polynomial []edwards25519.Scalar, n int) ([]Share, error) {
	shares := make([]Share, 0, n)
	value := edwards25519.NewScalar()
	defer wipe(value)
	for x := 1; x <= n; x++ {
		at := number(byte(x))
		value.Set(&polynomial[len(polynomial)-1])
		for i := len(polynomial) - 2; i >= 0; i-- { // Horner
			value.Multiply(value, at)
			value.Add(value, &polynomial[i])
		}
		y, err := secret.New[secret.ShareKind](a, Size, func(out []byte) error { put(out, value); return nil })
		if err != nil {
			gfss.DestroyAll(shares)
			return nil, err
		}
		shares = append(shares, Share{X: byte(x), Y: y})
	}
	return shares, nil
}

// Combine rebuilds the secret from all the shares given, in any order. Fewer shares than the threshold give a wrong
// secret without an error, as long as there are 2: callers compare digests first.
// Errors: [CombineError], [secret.ErrEmpty], those of the allocator.
func Combine(a secret.Allocator, shares []Share) (secret.RackSecret, error) {
	if len(shares) < 2 {
		return secret.RackSecret{}, ErrTooFewShares
	}
	var seen [256]bool
	for _, s := range shares {
		if err := checkShare(s); err != nil {
			return secret.RackSecret{}, err
		}
		if seen[s.X] {
			return secret.RackSecret{}, ErrDuplicateXCoordinates
		}
		seen[s.X] = true
	}
	sum, term := edwards25519.NewScalar(), edwards25519.NewScalar()
	defer wipe(sum)
	defer wipe(term)
	for i, w := range weights(shares) {
		if err := shares[i].Y.Use(func(y []byte) error {
			if _, err := term.SetCanonicalBytes(y); err != nil {
				return ErrNotCanonical
			}
			term.Multiply(term, &w)
			sum.Add(sum, term)
			return nil
		}); err != nil {
			return secret.RackSecret{}, err
		}
	}
	return secret.New[secret.RackSecretKind](a, Size, func(out []byte) error { put(out, sum); return nil })
}

// checkShare applies the rules for one share; the scalar is looked at in constant time.
func checkShare(s Share) error {
	if s.X == 0 {
		return ErrInvalidShareID
	}
	return s.Y.Use(func(y []byte) error {
		if len(y) != Size {
			return ErrInvalidShareLengths
		}
		v, err := edwards25519.NewScalar().SetCanonicalBytes(y)
		if err != nil {
			return ErrNotCanonical
		}
		defer wipe(v)
		if v.Equal(edwards25519.NewScalar()) == 1 {
			return ErrZeroShare
		}
		return nil
	})
}

// weights are Lagrange's for the point 0: for each share, the product of x_j/(x_j - x_i) over all others. Only share
// numbers go in. One inversion serves all: the denominators are multiplied up, inverted, and taken off again.
func weights(shares []Share) []edwards25519.Scalar {
	n := len(shares)
	xs, out := make([]edwards25519.Scalar, n), make([]edwards25519.Scalar, n)
	denominators, before := make([]edwards25519.Scalar, n), make([]edwards25519.Scalar, n)
	for i, s := range shares {
		xs[i] = *number(s.X)
	}
	one := number(1)
	product, difference := *one, *one
	for i := range xs {
		out[i], denominators[i], before[i] = *one, *one, product
		for j := range xs {
			if i != j {
				out[i].Multiply(&out[i], &xs[j])
				denominators[i].Multiply(&denominators[i], difference.Subtract(&xs[j], &xs[i]))
			}
		}
		product.Multiply(&product, &denominators[i])
	}
	inverse := edwards25519.NewScalar().Invert(&product)
	for i := n - 1; i >= 0; i-- {
		out[i].Multiply(&out[i], &before[i])
		out[i].Multiply(&out[i], inverse)
		inverse.Multiply(inverse, &denominators[i])
	}
	return out
}
