package gfss

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/secret"
)

// The slow and obvious twin: one element at a time, with branches, straight from protocol.md §2.

func slowMul(a, b byte) (p byte) {
	for ; b != 0; b >>= 1 {
		if b&1 == 1 {
			p ^= a
		}
		carry := a&0x80 != 0
		a <<= 1
		if carry {
			a ^= 0x1b
		}
	}
	return p
}

// slowInverse searches.
func slowInverse(a byte) byte {
	for b := range 256 {
		if slowMul(a, byte(b)) == 1 {
			return byte(b)
		}
	}
	return 0
}

// slowEvaluate adds up coefficient times power.
func slowEvaluate(coefficients []byte, x byte) (y byte) {
	power := byte(1)
	for _, c := range coefficients {
		y ^= slowMul(c, power)
		power = slowMul(power, x)
	}
	return y
}

func slowInterpolate(xs, ys []byte, x byte) (y byte) {
	for i := range xs {
		weight := byte(1)
		for j := range xs {
			if i != j {
				weight = slowMul(weight, slowMul(x^xs[j], slowInverse(xs[i]^xs[j])))
			}
		}
		y ^= slowMul(weight, ys[i])
	}
	return y
}

func TestFieldEqualsTwin(t *testing.T) {
	t.Parallel()
	for a := range 256 {
		if got, want := byte(invert(word(a))), slowInverse(byte(a)); got != want {
			t.Errorf("inverse of %#02x: have %#02x, want %#02x", a, got, want)
		}
		for b := range 256 {
			want := slowMul(byte(a), byte(b))
			if got := mul(spread(byte(a)), spread(byte(b))); got != spread(want) {
				t.Fatalf("%#02x times %#02x: have %#x, want %#02x in every byte", a, b, got, want)
			}
			if got := scale(spread(byte(a)), byte(b), width(byte(b))); got != spread(want) {
				t.Fatalf("%#02x scaled by %#02x: have %#x, want %#02x in every byte", a, b, got, want)
			}
		}
	}
}

// The bytes of a word do not touch each other.
func TestWordsEqualEightElements(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint64().Draw(t, "a"), rapid.Uint64().Draw(t, "b")
		product, inverse := mul(a, b), invert(a)
		for i := range 8 {
			at := func(w word) byte { return byte(w >> (8 * i)) }
			if at(product) != slowMul(at(a), at(b)) || at(inverse) != slowInverse(at(a)) {
				t.Fatalf("byte %d differs", i)
			}
		}
	})
}

func TestSplitEqualsTwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 40).Draw(t, "n")
		k := rapid.IntRange(2, n).Draw(t, "k")
		sec := rapid.SliceOfN(rapid.Byte(), 0, 70).Draw(t, "secret")
		seed := rapid.SliceOfN(rapid.Byte(), (k-1)*len(sec), (k-1)*len(sec)).Draw(t, "coefficients")
		shares, err := Split(secret.Heap{}, bytes.NewReader(seed), take(t, sec), n, k)
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range sec {
			coefficients := []byte{s}
			for degree := range k - 1 {
				coefficients = append(coefficients, seed[degree*len(sec)+i])
			}
			for _, share := range shares {
				if want := slowEvaluate(coefficients, share.X); bytesOf(t, share.Y)[i] != want {
					t.Fatalf("byte %d of share %d differs", i, share.X)
				}
			}
		}
	})
}

func TestCombineEqualsTwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		xs := rapid.SliceOfNDistinct(rapid.Byte(), 2, 40, rapid.ID).Draw(t, "xs")
		length := rapid.IntRange(0, 70).Draw(t, "length")
		x := rapid.Byte().Draw(t, "target")
		var shares []Share
		ys := make([][]byte, len(xs))
		for i, sx := range xs {
			ys[i] = rapid.SliceOfN(rapid.Byte(), length, length).Draw(t, "y")
			y, err := secret.Take[secret.ShareKind](secret.Heap{}, slices.Clone(ys[i]))
			if err != nil {
				t.Fatal(err)
			}
			shares = append(shares, Share{sx, y})
		}
		var got []byte
		if x == 0 {
			s, err := Combine(secret.Heap{}, shares)
			if err != nil {
				t.Fatal(err)
			}
			got = bytesOf(t, s)
		} else {
			s, err := ComputeShare(secret.Heap{}, shares, x)
			if err != nil || s.X != x {
				t.Fatal(s.X, err)
			}
			got = bytesOf(t, s.Y)
		}
		for b := range length {
			column := make([]byte, len(xs))
			for i := range ys {
				column[i] = ys[i][b]
			}
			if want := slowInterpolate(xs, column, x); got[b] != want {
				t.Fatalf("byte %d differs", b)
			}
		}
	})
}

// fataler is what a test and a rapid property have in common.
type fataler interface {
	Helper()
	Fatal(args ...any)
}

func take(t fataler, b []byte) secret.RackSecret {
	t.Helper()
	s, err := secret.Take[secret.RackSecretKind](secret.Heap{}, slices.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func bytesOf[K secret.Kind](t fataler, s secret.Bytes[K]) (out []byte) {
	t.Helper()
	if err := s.Use(func(b []byte) error { out = slices.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// Any k shares, the last k, and all of them give the secret; k-1 of them do not; shares computed at other numbers do.
func TestSharesGiveTheSecret(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.IntRange(2, 32), rapid.IntRange(2, MaxShares)).Draw(t, "n")
		k := rapid.IntRange(2, n).Draw(t, "k")
		sec := take(t, rapid.SliceOfN(rapid.Byte(), 8, 63).Draw(t, "secret"))
		var seed [32]byte
		copy(seed[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "seed"))
		shares, err := Split(secret.Heap{}, rand.NewChaCha8(seed), sec, n, k)
		if err != nil {
			t.Fatal(err)
		}
		shuffled := rapid.Permutation(shares).Draw(t, "order")
		for _, use := range [][]Share{shuffled[:k], shares[n-k:], shuffled} {
			if got, err := Combine(secret.Heap{}, use); err != nil || !got.Equal(sec) {
				t.Fatalf("%d shares: %v, secret equal %v", len(use), err, got.Equal(sec))
			}
		}
		got, err := Combine(secret.Heap{}, shuffled[:k-1])
		if k == 2 && !errors.Is(err, ErrTooFewShares) || k > 2 && (err != nil || got.Equal(sec)) {
			t.Fatalf("k-1 shares: %v, secret equal %v", err, got.Equal(sec))
		}
		if n > MaxShares-7 || k > 7 {
			return
		}
		var computed []Share
		for x := n + 1; x <= n+7; x++ {
			s, err := ComputeShare(secret.Heap{}, shuffled[:k], byte(x))
			if err != nil {
				t.Fatal(err)
			}
			computed = append(computed, s)
		}
		if got, err := Combine(secret.Heap{}, computed); err != nil || !got.Equal(sec) {
			t.Fatalf("computed shares: %v, secret equal %v", err, got.Equal(sec))
		}
	})
}

func TestSplitRefuses(t *testing.T) {
	t.Parallel()
	zeros := bytes.NewReader(make([]byte, 1<<20))
	for _, c := range []struct {
		length, n, k int
		want         string
	}{
		{32, 5, -1, ThresholdTooSmall},
		{32, 5, 1, ThresholdTooSmall},
		{32, 4, 5, TooFewTotalShares},
		{32, -1, 2, TooFewTotalShares},
		{32, 256, 2, TooManyTotalShares},
		{32, math.MaxInt, math.MaxInt, TooManyTotalShares},
		{MaxSecret + 1, 3, 2, SecretTooLong},
		{MaxSecret, 3, 2, ""},
	} {
		_, err := Split(secret.Heap{}, zeros, take(t, make([]byte, c.length)), c.n, c.k)
		if nameOf(err) != c.want {
			t.Errorf("%d bytes, n %d, k %d: have %v, want %q", c.length, c.n, c.k, err, c.want)
		}
	}
	if _, err := Split(secret.Heap{}, zeros, secret.RackSecret{}, 3, 2); !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("no secret: %v", err)
	}
	if _, err := Split(secret.Heap{}, bytes.NewReader(make([]byte, 63)), take(t, make([]byte, 32)), 5, 3); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short source: %v", err)
	}
	if _, err := Combine(secret.Heap{}, []Share{{X: 1}, {X: 2}}); !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("empty shares: %v", err)
	}
	for _, e := range []CombineError{ErrTooFewShares, ErrDuplicateXCoordinates, ErrInvalidShareLengths, ErrInvalidShareID, "other"} {
		if e.Error() == "" || e.Name() == "" {
			t.Errorf("%q has no text", string(e))
		}
	}
}

// counted fails after some allocations and counts what was not given back.
type counted struct {
	left int
	open atomic.Int64
}

var errNoPages = errors.New("no pages")

func (c *counted) Alloc(n int) ([]byte, func(), error) {
	if c.left--; c.left < 0 {
		return nil, nil, errNoPages
	}
	c.open.Add(1)
	return make([]byte, n), func() { c.open.Add(-1) }, nil
}

// Wherever memory runs out, nothing is left behind; and if it does not, only the shares are.
func TestNothingLeftBehind(t *testing.T) {
	t.Parallel()
	for left := range 8 {
		c := &counted{left: left}
		shares, err := Split(c, bytes.NewReader(make([]byte, 64)), take(t, make([]byte, 32)), 5, 3)
		switch {
		case left < 6 && (!errors.Is(err, errNoPages) || c.open.Load() != 0 || shares != nil):
			t.Errorf("%d allocations: %v, %d open, %d shares", left, err, c.open.Load(), len(shares))
		case left >= 6 && (err != nil || c.open.Load() != 5):
			t.Errorf("%d allocations: %v, %d open", left, err, c.open.Load())
		}
		DestroyAll(shares)
	}
}

func TestShareClone(t *testing.T) {
	t.Parallel()
	s := newShare(t, []byte{7, 1, 2, 3})
	want, err := s.Digest()
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Clone(secret.Heap{})
	if err != nil {
		t.Fatal(err)
	}
	s.Destroy()
	if got, err := c.Digest(); err != nil || got != want {
		t.Errorf("digest of the clone: %v", err)
	}
	if _, err := s.Digest(); !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("digest of a destroyed share: %v", err)
	}
	if _, err := s.Clone(secret.Heap{}); !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("clone of a destroyed share: %v", err)
	}
	long, err := secret.Take[secret.ShareKind](secret.Heap{}, make([]byte, MaxSecret+1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Share{1, long}).Digest(); !errors.Is(err, secret.ErrLength) {
		t.Errorf("digest of a long share: %v", err)
	}
}

// FuzzCombine takes shares from bytes: number, then length bytes, again and again.
func FuzzCombine(f *testing.F) {
	f.Add(byte(2), byte(0), []byte{1, 1, 2, 2, 3, 4})
	f.Add(byte(1), byte(9), []byte{1, 1, 1, 2})
	f.Add(byte(32), byte(200), bytes.Repeat([]byte{0, 1, 2, 3, 4}, 66))
	f.Fuzz(func(t *testing.T, length, x byte, raw []byte) {
		var shares []Share
		for len(raw) > 0 && len(shares) < 300 {
			one := raw[:min(len(raw), 1+int(length))]
			raw = raw[len(one):]
			shares = append(shares, newShare(t, one))
		}
		combined, err := Combine(secret.Heap{}, shares)
		if err == nil && combined.Len() != int(length) {
			t.Errorf("have %d bytes, want %d", combined.Len(), length)
		}
		if _, known := errors.AsType[CombineError](err); err != nil && !known {
			t.Errorf("error without a name: %v", err)
		}
		if s, err := ComputeShare(secret.Heap{}, shares, x); err == nil { // a computed share changes nothing
			if again, err := Combine(secret.Heap{}, withOnly(shares, s)); err == nil && !again.Equal(combined) {
				t.Error("a computed share is not on the polynomial")
			}
		}
	})
}

// withOnly adds s unless its number is taken.
func withOnly(shares []Share, s Share) []Share {
	for _, o := range shares {
		if o.X == s.X {
			return shares
		}
	}
	return append(slices.Clone(shares), s)
}
