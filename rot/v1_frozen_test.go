package rot_test

// Exact bytes of version 1. A failure here means: revert, or add a version.

import (
	"bytes"
	"encoding/hex"
	"os"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/rottest"
	"github.com/sledvault/sledvault/vault/ident"
)

// frozenExpectation is what the record of the sled that made testdata/evidence_v1.hex says.
func frozenExpectation() rot.Expectation {
	tpm := rottest.NewTPM("frozen")
	if err := tpm.Boot(firmware.Options{}); err != nil {
		panic(err)
	}
	return rot.Expectation{
		Baseboard: ident.Baseboard{Part: "913-0000019", Serial: "FROZEN"}, Kind: rot.KindTPM, EKName: tpm.EKName(), AKName: tpm.AKName(),
		CounterName: tpm.CounterName(), PCRs: tpm.Pins(0, 4, 7, 11), ResetCount: 8,
	}
}

func frozenEvidence(tb testing.TB) []byte {
	tb.Helper()
	text, err := os.ReadFile("testdata/evidence_v1.hex")
	if err != nil {
		tb.Fatal(err)
	}
	b, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestFrozenEvidence(t *testing.T) {
	t.Parallel()
	v, err := rot.Appraise(frozenEvidence(t), request(1), frozenExpectation(), rot.Seen{})
	if err != nil {
		t.Fatal(err)
	}
	if v.Facts != (rot.Facts{SetGeneration: 4, LedgerSequence: 3, LedgerGeneration: 9}) {
		t.Errorf("have %+v", v.Facts)
	}
}
