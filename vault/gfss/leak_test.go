//go:build leak

package gfss

import (
	"encoding/binary"
	"testing"

	"github.com/sledvault/sledvault/internal/leaktest"
	"github.com/sledvault/sledvault/vault/secret"
)

// TestLeak is the statistical half of the attack test gf-cache-timing: go test -tags leak -run Leak ./vault/gfss
func TestLeak(t *testing.T) {
	out, zero := make([]byte, 32), make([]byte, 32)
	coefficients := make([]byte, 16*32)
	shares := make([]Share, 4)
	for i := range shares {
		y, err := secret.Take[secret.ShareKind](secret.Heap{}, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		shares[i] = Share{byte(i + 1), y}
	}
	combine := func(f func() (secret.RackSecret, error)) func([]byte) {
		return func(b []byte) {
			for _, s := range shares {
				_ = s.Y.Use(func(y []byte) error { copy(y, b); return nil })
			}
			if s, err := f(); err == nil {
				s.Destroy()
			}
		}
	}
	var sink word
	leaktest.Check(t,
		leaktest.Case{Name: "multiply", Fixed: zero, Run: func(b []byte) {
			for i := 0; i < len(b); i += 8 {
				sink ^= mul(binary.LittleEndian.Uint64(b[i:]), 0x9d9d9d9d9d9d9d9d)
			}
		}},
		leaktest.Case{Name: "multiply by it", Fixed: zero, Run: func(b []byte) {
			for i := 0; i < len(b); i += 8 {
				sink ^= mul(0x9d9d9d9d9d9d9d9d, binary.LittleEndian.Uint64(b[i:]))
			}
		}},
		leaktest.Case{Name: "invert", Fixed: zero, Run: func(b []byte) { sink ^= invert(binary.LittleEndian.Uint64(b)) }},
		leaktest.Case{Name: "evaluate", Fixed: zero, Run: func(b []byte) { evaluate(out, b, coefficients, 31, 17) }},
		leaktest.Case{Name: "evaluate coefficients", Fixed: zero, Run: func(b []byte) { evaluate(out, b, b, 31, 2) }},
		leaktest.Case{Name: "accumulate", Fixed: zero, Run: func(b []byte) { accumulate(out, b, 0x9d) }},
		leaktest.Case{Name: "combine", Fixed: zero, Run: combine(func() (secret.RackSecret, error) { return Combine(secret.Heap{}, shares) })},
		leaktest.Case{Name: "control: branches", Leaks: true, Fixed: zero, Run: func(b []byte) {
			for _, v := range b {
				sink ^= word(slowMul(0x9d, v))
			}
		}},
		leaktest.Case{Name: "control: early end", Leaks: true, Fixed: zero, Run: func(b []byte) {
			for _, v := range b {
				if v != 0 {
					sink ^= word(slowMul(v, 0x9d))
				}
			}
		}},
	)
	_ = sink
}
