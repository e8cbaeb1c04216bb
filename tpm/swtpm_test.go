package tpm_test

import (
	"testing"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
)

// TestContractSwtpm runs the contract suite on swtpm without a resource manager, and looks past the package under test
// for what it left loaded.
func TestContractSwtpm(t *testing.T) {
	t.Parallel()
	tpmtest.Run(t, func(tb testing.TB) *tpm.TPM {
		dut := tpmtest.New(tb)
		tb.Cleanup(func() {
			if l := dut.Loaded(); len(l) != 0 {
				tb.Errorf("left loaded: %x", l)
			}
		})
		return dut.Open()
	})
}
