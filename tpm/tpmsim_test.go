//go:build tpmsim && cgo

package tpm_test

import (
	"testing"

	"github.com/google/go-tpm/tpm2/transport/simulator"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
)

// TestContractSimulator runs the contract suite on the Microsoft reference code in this process: a second opinion. There
// can be only one at a time, and a second open blocks without a word.
func TestContractSimulator(t *testing.T) {
	tpmtest.Run(t, func(tb testing.TB) *tpm.TPM {
		tb.Helper()
		sim, err := simulator.OpenSimulator()
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = sim.Close() })
		dut, err := tpm.New(sim, true)
		if err != nil {
			tb.Fatal(err)
		}
		return dut
	})
}
