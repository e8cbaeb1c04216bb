package lrtq

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/secret"
)

// order is the order of the group, the modulus of all arithmetic here.
var order, _ = new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)

func little(b []byte) *big.Int {
	b = slices.Clone(b)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

func littleBytes(v *big.Int) []byte {
	b := v.FillBytes(make([]byte, Size))
	slices.Reverse(b)
	return b
}

// slowEvaluate adds up coefficient times power: the obvious twin of the evaluation.
func slowEvaluate(coefficients []*big.Int, x byte) *big.Int {
	sum, power, at := new(big.Int), big.NewInt(1), big.NewInt(int64(x))
	for _, c := range coefficients {
		sum.Add(sum, new(big.Int).Mul(c, power))
		power.Mul(power, at)
	}
	return sum.Mod(sum, order)
}

// slowCombine is Lagrange as written, with an inversion for every share.
func slowCombine(shares map[byte]*big.Int) *big.Int {
	sum := new(big.Int)
	for i, y := range shares {
		term := new(big.Int).Set(y)
		for j := range shares {
			if i != j {
				d := new(big.Int).Mod(big.NewInt(int64(j)-int64(i)), order)
				term.Mul(term, big.NewInt(int64(j)))
				term.Mul(term, d.ModInverse(d, order))
			}
		}
		sum.Add(sum, term)
	}
	return sum.Mod(sum, order)
}

func TestSharesEqualTwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(2, 20).Draw(t, "k")
		n := rapid.IntRange(k, TotalShares).Draw(t, "n")
		random := make([]byte, k*wide)
		_, _ = io.ReadFull(rand.NewChaCha8([32]byte{rapid.Uint8().Draw(t, "seed")}), random)
		var coefficients []*big.Int
		for c := range slices.Chunk(random, wide) {
			v := little(c)
			coefficients = append(coefficients, v.Mod(v, order))
		}
		s, err := NewSecret(secret.Heap{}, bytes.NewReader(random[:wide]))
		if err != nil {
			t.Fatal(err)
		}
		shares, err := Split(secret.Heap{}, bytes.NewReader(random[wide:]), s, n, k)
		if err != nil {
			t.Fatal(err)
		}
		for _, sh := range shares {
			want := littleBytes(slowEvaluate(coefficients, sh.X))
			_ = sh.Y.Use(func(got []byte) error {
				if !bytes.Equal(got, want) {
					t.Fatalf("share %d of %d, threshold %d: have %x, want %x", sh.X, n, k, got, want)
				}
				return nil
			})
		}
		chosen := rapid.Permutation(shares).Draw(t, "order")[:rapid.IntRange(2, min(n, k+3)).Draw(t, "count")]
		values := map[byte]*big.Int{}
		for _, sh := range chosen {
			_ = sh.Y.Use(func(b []byte) error { values[sh.X] = little(b); return nil })
		}
		got, err := Combine(secret.Heap{}, chosen)
		if err != nil {
			t.Fatal(err)
		}
		_ = got.Use(func(b []byte) error {
			if want := littleBytes(slowCombine(values)); !bytes.Equal(b, want) {
				t.Fatalf("%d of %d, threshold %d: have %x, want %x", len(chosen), n, k, b, want)
			}
			return nil
		})
		if enough := len(chosen) >= k; got.Equal(s) != enough {
			t.Fatalf("%d shares, threshold %d: equal to the secret: %v", len(chosen), k, !enough)
		}
	})
}

func withBytes(t testing.TB, x byte, v *big.Int) Share {
	t.Helper()
	return share(t, append([]byte{x}, littleBytes(v)...))
}

func TestCombineRefuses(t *testing.T) {
	t.Parallel()
	good := []Share{withBytes(t, 1, big.NewInt(7)), withBytes(t, 255, new(big.Int).Sub(order, big.NewInt(1)))}
	if s, err := Combine(secret.Heap{}, good); err != nil {
		t.Fatalf("the largest scalar: %v", err)
	} else {
		s.Destroy()
	}
	destroyed := withBytes(t, 3, big.NewInt(1))
	destroyed.Destroy()
	for name, c := range map[string]struct {
		shares []Share
		want   error
	}{
		"nothing":          {nil, ErrTooFewShares},
		"one":              {good[:1], ErrTooFewShares},
		"number 0":         {[]Share{good[0], withBytes(t, 0, big.NewInt(1))}, ErrInvalidShareID},
		"zero":             {[]Share{good[0], withBytes(t, 2, new(big.Int))}, ErrZeroShare},
		"the order":        {[]Share{good[0], withBytes(t, 2, order)}, ErrNotCanonical},
		"all ones":         {[]Share{good[0], share(t, append([]byte{2}, bytes.Repeat([]byte{0xff}, 32)...))}, ErrNotCanonical},
		"same number":      {[]Share{good[0], withBytes(t, 2, big.NewInt(1)), withBytes(t, 1, big.NewInt(9))}, ErrDuplicateXCoordinates},
		"31 bytes":         {[]Share{good[0], share(t, make([]byte, 32))}, ErrInvalidShareID},
		"31 bytes, number": {[]Share{good[0], share(t, append([]byte{2}, make([]byte, 31)...))}, ErrInvalidShareLengths},
		"33 bytes":         {[]Share{good[0], share(t, append([]byte{2}, make([]byte, 33)...))}, ErrInvalidShareLengths},
		"empty":            {[]Share{good[0], {X: 2}}, secret.ErrEmpty},
		"destroyed":        {[]Share{good[0], destroyed}, secret.ErrEmpty},
	} {
		s, err := Combine(secret.Heap{}, c.shares)
		if !errors.Is(err, c.want) || !s.IsEmpty() {
			t.Errorf("%s: have %v, want %v and no secret", name, err, c.want)
		}
		if e, ok := errors.AsType[CombineError](err); ok && (e.Name() == "" || len(e.Error()) < 10) {
			t.Errorf("%s: an error without words: %q", name, e)
		}
	}
}

func TestSplitRefuses(t *testing.T) {
	t.Parallel()
	s := takeSecret(t, littleBytes(big.NewInt(5)))
	for _, c := range []struct {
		n, k int
		want string
	}{{5, 1, gfss.ThresholdTooSmall}, {5, 0, gfss.ThresholdTooSmall}, {4, 5, gfss.TooFewTotalShares}, {256, 2, gfss.TooManyTotalShares}} {
		if _, err := Split(secret.Heap{}, zeros{}, s, c.n, c.k); !isSplitError(err, c.want) {
			t.Errorf("n %d, k %d: have %v, want %s", c.n, c.k, err, c.want)
		}
	}
	for name, b := range map[string][]byte{"the order": littleBytes(order), "short": make([]byte, 31), "long": make([]byte, 33)} {
		if _, err := Split(secret.Heap{}, zeros{}, takeSecret(t, b), 5, 2); !errors.Is(err, ErrSecret) {
			t.Errorf("%s: have %v, want %v", name, err, ErrSecret)
		}
	}
	if _, err := Split(secret.Heap{}, bytes.NewReader(make([]byte, wide-1)), s, 5, 2); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short randomness: have %v", err)
	}
	if _, err := Split(secret.Heap{}, zeros{}, secret.RackSecret{}, 5, 2); !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("no secret: have %v", err)
	}
	if _, err := NewSecret(secret.Heap{}, bytes.NewReader(make([]byte, wide-1))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short randomness: have %v", err)
	}
	// A leading coefficient of zero is as likely as any other and stays.
	shares, err := Split(secret.Heap{}, zeros{}, s, 3, 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, sh := range shares {
		if !bytes.Equal(raw(t, sh.Y), raw(t, s)) {
			t.Errorf("share %d: have %x, want the secret: all other coefficients are zero", sh.X, raw(t, sh.Y))
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// failing allocates until it has given out left pieces; it remembers all of them.
type failing struct {
	left   int
	pieces [][]byte
	live   int
}

var errFull = errors.New("full")

func (f *failing) Alloc(n int) ([]byte, func(), error) {
	if f.left == 0 {
		return nil, nil, errFull
	}
	f.left--
	f.live++
	b := make([]byte, n)
	f.pieces = append(f.pieces, b)
	return b, func() { clear(b); f.live-- }, nil
}

// TestFullMemoryLeavesNothing runs out of memory at every piece in turn: an error, and nothing stays behind.
func TestFullMemoryLeavesNothing(t *testing.T) {
	t.Parallel()
	run := func(f *failing) error {
		s, err := NewSecret(f, rand.NewChaCha8([32]byte{1}))
		if err != nil {
			return err
		}
		defer s.Destroy()
		shares, err := Split(f, rand.NewChaCha8([32]byte{2}), s, 5, 3)
		if err != nil {
			return err
		}
		defer gfss.DestroyAll(shares)
		again, err := Combine(f, shares)
		if err != nil {
			return err
		}
		defer again.Destroy()
		if !again.Equal(s) {
			return fmt.Errorf("another secret")
		}
		return nil
	}
	for n := 0; ; n++ {
		f := &failing{left: n}
		err := run(f)
		if f.live != 0 {
			t.Fatalf("%d pieces: %d remain", n, f.live)
		}
		for i, b := range f.pieces {
			if !bytes.Equal(b, make([]byte, len(b))) {
				t.Fatalf("%d pieces: number %d was not wiped", n, i)
			}
		}
		if err == nil {
			if n != 9 { // random, secret, coefficients, 5 shares, combined
				t.Errorf("pieces: have %d, want 9", n)
			}
			return
		}
		if !errors.Is(err, errFull) {
			t.Fatalf("%d pieces: %v", n, err)
		}
	}
}
