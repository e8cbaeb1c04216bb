package tpm_test

import (
	"testing"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
)

// TestContractSwtpm runs the contract suite on swtpm, and looks past the package under test for what it left loaded:
// once as a raw TPM, which is swept after failures, and once as if a resource manager lay between, where nothing but
// the session's own book-keeping flushes.
func TestContractSwtpm(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]bool{"raw": true, "managed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpmtest.Run(t, func(tb testing.TB) *tpm.TPM {
				tb.Helper()
				dut := tpmtest.New(tb)
				tb.Cleanup(func() {
					if l := dut.Loaded(); len(l) != 0 {
						tb.Errorf("left loaded: %x", l)
					}
				})
				opened, err := tpm.New(dut, raw)
				if err != nil {
					tb.Fatal(err)
				}
				return opened
			})
		})
	}
}
