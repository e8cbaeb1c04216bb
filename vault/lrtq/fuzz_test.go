package lrtq

import (
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/vault/secret"
)

// FuzzCombine cuts its input into shares of 33 bytes; the last one may be shorter. No panic; what is accepted agrees
// with the twin and with another order of the shares.
func FuzzCombine(f *testing.F) {
	for _, v := range load(f).CombineEdgeCases {
		var in []byte
		for _, s := range v.Shares {
			in = append(in, s...)
		}
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 33*40 {
			return
		}
		var shares []Share
		values := map[byte]*big.Int{}
		for c := range slices.Chunk(in, 33) {
			shares = append(shares, share(t, c))
			values[c[0]] = little(c[1:])
		}
		s, err := Combine(secret.Heap{}, shares)
		if err != nil {
			if _, ok := errors.AsType[CombineError](err); !ok && !errors.Is(err, secret.ErrEmpty) {
				t.Fatalf("an error without a type: %v", err)
			}
			return
		}
		if want := littleBytes(slowCombine(values)); !slices.Equal(raw(t, s), want) {
			t.Fatalf("have %x, want %x", raw(t, s), want)
		}
		slices.Reverse(shares)
		if again, err := Combine(secret.Heap{}, shares); err != nil || !again.Equal(s) {
			t.Fatalf("another secret in reverse order: %v", err)
		}
	})
}
