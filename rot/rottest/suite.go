package rottest

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// Device is an attestor together with what the contract suite does to it.
type Device interface {
	rot.Attestor
	EKName() []byte
	AKName() []byte
	CounterName() []byte
	// Boot power-cycles the TPM and measures a simulated start.
	Boot(o firmware.Options) error
	// ExtendPCR extends one register.
	ExtendPCR(pcr int, digest [32]byte) error
	// Advance increments the counter and returns its value.
	Advance() (uint64, error)
	// Value is the counter's value.
	Value() (uint64, error)
}

// Run is the contract of [rot.Attestor], for the fake and for real TPMs alike. open returns a device that was not
// booted yet; it ends with the test.
func Run(t *testing.T, open func(testing.TB) Device) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *machine)
	}{
		{"names", testNames},
		{"appraised", testAppraised},
		{"extended", testExtended},
		{"counter moves", testCounter},
		{"reboot", testReboot},
		{"batch", testBatch},
		{"quote and close", testQuoteAndClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t, boot(t, open(t)))
		})
	}
}

// machine is a booted device with its prover and record.
type machine struct {
	Device
	facts  *Facts
	prover *rot.Prover
	expect rot.Expectation
	seen   rot.Seen
}

func boot(tb testing.TB, d Device) *machine {
	tb.Helper()
	must(tb, d.Boot(firmware.Options{}))
	m := &machine{Device: d, facts: &Facts{}}
	value, err := d.Value()
	must(tb, err)
	m.facts.Set(rot.Facts{SetGeneration: 1, LedgerSequence: value, LedgerGeneration: 1})
	id := ident.Baseboard{Part: "913-0000019", Serial: "CONTRACT"}
	m.prover, err = rot.NewProver(rot.ProverConfig{Attestor: d, Baseboard: id, Facts: m.facts.Get})
	must(tb, err)
	tb.Cleanup(m.prover.Close)
	log, err := d.EventLog(tb.Context())
	must(tb, err)
	parsed, err := rot.ParseEventLog(log)
	must(tb, err)
	m.expect = rot.Expectation{
		Baseboard: id, Kind: rot.KindTPM, EKName: d.EKName(), AKName: d.AKName(), CounterName: d.CounterName(),
		Manifest: rot.LearnManifest("contract", parsed, rot.DefaultPCRs(), 1),
	}
	return m
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func anyRequest(n byte) rot.Request {
	return rot.Request{Role: rot.RoleAcceptor, Nonce: [32]byte{n}, Exporter: [32]byte{1}, ProverSPKI: [32]byte{2}, VerifierSPKI: [32]byte{3}}
}

// appraise makes evidence and judges it, and remembers what was seen.
func (m *machine) appraise(tb testing.TB, n byte) (*rot.Verdict, error) {
	tb.Helper()
	ev, err := m.prover.Evidence(tb.Context(), anyRequest(n))
	must(tb, err)
	v, err := rot.Appraise(ev, anyRequest(n), m.expect, m.seen)
	if err == nil {
		m.seen = m.seen.Merge(v.Seen)
	}
	return v, err
}

func testNames(t *testing.T, m *machine) {
	name, err := rot.CheckAKPublic(m.AKPublic())
	must(t, err)
	if !bytes.Equal(name, m.AKName()) {
		t.Errorf("have attestation key %x, want %x", name, m.AKName())
	}
}

func testAppraised(t *testing.T, m *machine) {
	v, err := m.appraise(t, 1)
	must(t, err)
	if v.Rebooted || v.Facts != m.facts.Get() || len(v.PCRs) != len(rot.DefaultPCRs()) {
		t.Errorf("have %+v", v)
	}
	_, err = m.appraise(t, 2)
	must(t, err)
}

// testExtended: one more extend of a register that the log does not know.
func testExtended(t *testing.T, m *machine) {
	must(t, m.ExtendPCR(12, sha256.Sum256([]byte("late"))))
	if _, err := m.appraise(t, 1); reason.CodeOf(err) != rot.CodeEventLog {
		t.Errorf("have %v", err)
	}
}

func testCounter(t *testing.T, m *machine) {
	_, err := m.appraise(t, 1)
	must(t, err)
	f := m.facts.Get()
	f.LedgerSequence, err = m.Advance()
	must(t, err)
	f.LedgerGeneration++
	m.facts.Set(f)
	m.prover.CounterMoved()
	v, err := m.appraise(t, 2)
	must(t, err)
	if v.Facts.LedgerSequence != f.LedgerSequence {
		t.Errorf("have sequence %d, want %d", v.Facts.LedgerSequence, f.LedgerSequence)
	}
	// The ledger of before the increment: this TPM cannot vouch for it any more.
	f.LedgerSequence--
	m.facts.Set(f)
	if _, err := m.prover.Evidence(t.Context(), anyRequest(3)); reason.CodeOf(err) != rot.CodeNotReady {
		t.Errorf("older ledger: have %v", err)
	}
}

func testReboot(t *testing.T, m *machine) {
	first, err := m.appraise(t, 1)
	must(t, err)
	must(t, m.Boot(firmware.Options{}))
	m.prover.CounterMoved() // as a restarted daemon would have no certificate
	second, err := m.appraise(t, 2)
	must(t, err)
	if !second.Rebooted || second.Seen.ResetCount <= first.Seen.ResetCount {
		t.Errorf("have %+v after %+v", second.Seen, first.Seen)
	}
	must(t, m.Boot(firmware.Options{CommandLine: "init=/bin/sh"}))
	m.prover.CounterMoved()
	if _, err := m.appraise(t, 3); reason.CodeOf(err) != rot.CodeManifest {
		t.Errorf("another command line: have %v", err)
	}
}

func testBatch(t *testing.T, m *machine) {
	results := make(chan error, 8)
	for i := range cap(results) {
		go func() {
			req := anyRequest(byte(i))
			ev, err := m.prover.Evidence(t.Context(), req)
			if err == nil {
				_, err = rot.Appraise(ev, req, m.expect, rot.Seen{})
			}
			results <- err
		}()
	}
	for range cap(results) {
		must(t, <-results)
	}
}

func testQuoteAndClose(t *testing.T, m *machine) {
	extra := [32]byte{1}
	q, err := m.Quote(t.Context(), extra, rot.DefaultPCRs())
	must(t, err)
	if _, err := rot.VerifyQuote(q.Attest, q.Signature, m.AKPublic(), extra, rot.DefaultPCRs(), q.PCRs); err != nil {
		t.Error(err)
	}
	if _, err := rot.VerifyQuote(q.Attest, q.Signature, m.AKPublic(), extra, slices.Concat(rot.DefaultPCRs(), []int{15}), q.PCRs); reason.CodeOf(err) != rot.CodePCRSelection {
		t.Errorf("other selection: have %v", err)
	}
	m.prover.Close()
	if _, err := m.prover.Evidence(t.Context(), anyRequest(1)); reason.CodeOf(err) != rot.CodeProverClosed {
		t.Errorf("closed: have %v", err)
	}
}
