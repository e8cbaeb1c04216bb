//go:build leak

package lrtq

import (
	"testing"

	"github.com/sledvault/sledvault/internal/leaktest"
	"github.com/sledvault/sledvault/vault/secret"
)

// TestLeak holds the time of combining against what the shares are: very small scalars and random ones.
// Run it alone on a quiet machine: go test -tags leak -run Leak ./vault/lrtq
func TestLeak(t *testing.T) {
	shares := make([]Share, 3)
	for i := range shares {
		y, err := secret.Take[secret.ShareKind](secret.Heap{}, make([]byte, Size))
		if err != nil {
			t.Fatal(err)
		}
		shares[i] = Share{X: byte(i + 1), Y: y}
	}
	one := make([]byte, Size)
	one[0] = 1
	canonical := func(b []byte) { b[0], b[Size-1] = b[0]|1, b[Size-1]&0x0f }
	bitsSet := 0
	leaktest.Check(t,
		leaktest.Case{Name: "combine", Fixed: one, Shape: canonical, Run: func(b []byte) {
			for _, s := range shares {
				_ = s.Y.Use(func(y []byte) error { copy(y, b); return nil })
			}
			s, err := Combine(secret.Heap{}, shares)
			if err != nil {
				t.Fatal(err)
			}
			s.Destroy()
		}},
		leaktest.Case{Name: "control: bit by bit", Leaks: true, Fixed: one, Shape: canonical, Run: func(b []byte) {
			for _, v := range b {
				for ; v != 0; v >>= 1 {
					if v&1 == 1 {
						bitsSet += int(v)
					}
				}
			}
		}},
	)
	_ = bitsSet
}
