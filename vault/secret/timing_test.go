//go:build leak

package secret_test

import (
	"testing"

	"github.com/sledvault/sledvault/internal/leaktest"
	"github.com/sledvault/sledvault/vault/secret"
)

// TestLeakTiming shows that comparing secrets takes as long for equal ones as for ones that differ in the first byte.
// Run it alone on a quiet machine: go test -tags leak -run Leak ./vault/secret
func TestLeakTiming(t *testing.T) {
	have, err := secret.Take[secret.RackSecretKind](secret.Heap{}, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	other, err := have.Clone(secret.Heap{})
	if err != nil {
		t.Fatal(err)
	}
	zero := make([]byte, 32)
	equal := 0
	leaktest.Check(t,
		leaktest.Case{Name: "compare", Fixed: zero, Run: func(b []byte) {
			_ = other.Use(func(o []byte) error { copy(o, b); return nil })
			for range 4 {
				_ = have.Equal(other)
			}
		}},
		leaktest.Case{Name: "control: early end", Leaks: true, Fixed: zero, Run: func(b []byte) {
			for range 4 {
				i := 0
				for i < len(b) && b[i] == zero[i] {
					i++
				}
				equal += i
			}
		}},
	)
	_ = equal
}
