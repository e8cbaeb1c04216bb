//go:build hw

package tpm_test

import (
	"os"
	"testing"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
)

// TestContractDevice runs the contract suite on the TPM that SLEDVAULT_TPM names, for example /dev/tpmrm0. It defines and
// removes two NV indices, and counters of that TPM start higher afterwards.
func TestContractDevice(t *testing.T) {
	device := os.Getenv("SLEDVAULT_TPM")
	if device == "" {
		t.Skip("SLEDVAULT_TPM names no device")
	}
	tpmtest.Run(t, func(tb testing.TB) *tpm.TPM {
		tb.Helper()
		dut, err := tpm.Open(tb.Context(), tpm.Config{Device: device})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = dut.Close() })
		return dut
	})
}
