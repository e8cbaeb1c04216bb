package rot_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/rottest"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// sled is a booted sled with its prover, and what its record says about it.
type sled struct {
	tpm    *rottest.TPM
	prover *rot.Prover
	facts  *rottest.Facts
	expect rot.Expectation

	resigned func(*rot.Evidence) // see resign
}

func newSled(tb testing.TB, seed string) *sled {
	tb.Helper()
	s := &sled{tpm: rottest.NewTPM(seed), facts: &rottest.Facts{}}
	if err := s.tpm.Boot(firmware.Options{}); err != nil {
		tb.Fatal(err)
	}
	s.facts.Set(rot.Facts{SetGeneration: 4, LedgerSequence: s.tpm.Counter, LedgerGeneration: 9})
	id := ident.Baseboard{Part: "913-0000019", Serial: seed}
	p, err := rot.NewProver(rot.ProverConfig{Attestor: s.tpm, Baseboard: id, Facts: s.facts.Get})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	s.prover = p
	s.expect = rot.Expectation{
		Baseboard: id, Kind: rot.KindTPM, EKName: s.tpm.EKName(), AKName: s.tpm.AKName(),
		CounterName: s.tpm.CounterName(), PCRs: s.tpm.Pins(4, 7, 11), ResetCount: 7,
	}
	return s
}

func request(n byte) rot.Request {
	return rot.Request{Role: rot.RoleDialer, Nonce: [32]byte{n}, Exporter: [32]byte{2}, ProverSPKI: [32]byte{3}, VerifierSPKI: [32]byte{4}}
}

func (s *sled) evidence(tb testing.TB, req rot.Request) []byte {
	tb.Helper()
	ev, err := s.prover.Evidence(tb.Context(), req)
	if err != nil {
		tb.Fatal(err)
	}
	return ev
}

func wantCode(tb testing.TB, err error, want reason.Code) {
	tb.Helper()
	if have := reason.CodeOf(err); have != want || err == nil {
		tb.Fatalf("have %q (%v), want %q", have, err, want)
	}
	if reason.HintOf(err) == "" {
		tb.Errorf("%q has no hint", want)
	}
}

func TestEvidenceRoundTrip(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	req := request(1)
	v, err := rot.Appraise(s.evidence(t, req), req, s.expect, rot.Seen{})
	if err != nil {
		t.Fatal(err)
	}
	want := rot.Seen{Known: true, Sequence: 3, Generation: 9, ResetCount: 8, Counter: sha256.Sum256(s.tpm.CounterName())}
	if v.Seen != want || v.Rebooted || !v.ClockSafe || v.Facts != s.facts.Get() || v.Baseboard != s.expect.Baseboard {
		t.Errorf("have %+v", v)
	}
}

// TestOneQuoteServesAll: requests that come while the TPM is busy share the next quote.
func TestOneQuoteServesAll(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	busy, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.tpm.Set(func(f *rottest.TPM) {
		f.Gate = func(context.Context) { once.Do(func() { close(busy); <-release }) }
	})
	var wg sync.WaitGroup
	wg.Go(func() { s.evidence(t, request(0)) })
	<-busy
	const peers = 31
	for i := range peers {
		wg.Go(func() {
			req := request(byte(i + 1))
			if _, err := rot.Appraise(s.evidence(t, req), req, s.expect, rot.Seen{}); err != nil {
				t.Error(err)
			}
		})
	}
	s.prover.AwaitWaiting(peers)
	close(release)
	wg.Wait()
	if s.tpm.Quotes != 2 || s.tpm.Certs != 1 {
		t.Errorf("have %d quotes and %d counter certificates, want 2 and 1", s.tpm.Quotes, s.tpm.Certs)
	}
}

func TestCounterCertificate(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	s.evidence(t, request(1))
	s.evidence(t, request(2))
	if s.tpm.Certs != 1 {
		t.Errorf("have %d certificates, want 1 per start", s.tpm.Certs)
	}
	s.tpm.Set(func(f *rottest.TPM) { f.Counter++ })
	s.prover.CounterMoved()
	if _, err := s.prover.Evidence(t.Context(), request(3)); reason.CodeOf(err) != rot.CodeNotReady || reason.RemedyOf(err) != reason.Retry {
		t.Fatalf("facts behind the counter: have %v", err)
	}
	s.facts.Set(rot.Facts{LedgerSequence: 4, LedgerGeneration: 10})
	req := request(4)
	v, err := rot.Appraise(s.evidence(t, req), req, s.expect, rot.Seen{Known: true, Sequence: 3, Generation: 9, ResetCount: 8})
	if err != nil || v.Seen.Sequence != 4 {
		t.Fatalf("have %+v, %v", v, err)
	}
	// A reset under the running daemon makes the certificate stale: the prover notices and makes another.
	s.tpm.Set(func(f *rottest.TPM) { f.Reset++ })
	v, err = rot.Appraise(s.evidence(t, req), req, s.expect, v.Seen)
	if err != nil || !v.Rebooted {
		t.Fatalf("have %+v, %v", v, err)
	}
}

func TestProverFails(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	s.tpm.Set(func(f *rottest.TPM) { f.Err = rottest.ErrDead })
	_, err := s.prover.Evidence(t.Context(), request(1))
	wantCode(t, err, rot.CodeProver)
	if !errors.Is(err, rottest.ErrDead) {
		t.Errorf("cause is lost: %v", err)
	}
	s.tpm.Set(func(f *rottest.TPM) { f.Err = nil })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.prover.Evidence(ctx, request(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("have %v", err)
	}
	s.evidence(t, request(2)) // a caller that gave up does not harm the others
	s.prover.Close()
	if _, err := s.prover.Evidence(t.Context(), request(1)); reason.CodeOf(err) != rot.CodeProverClosed {
		t.Errorf("have %v", err)
	}
}

// TestProverCommandHangs: a TPM that does not answer costs its deadline, not for ever.
func TestProverCommandHangs(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	s.tpm.Set(func(f *rottest.TPM) { f.Gate = func(ctx context.Context) { <-ctx.Done() } })
	p, err := rot.NewProver(rot.ProverConfig{Attestor: s.tpm, Baseboard: s.expect.Baseboard, Facts: s.facts.Get, CommandTimeout: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, err = p.Evidence(t.Context(), request(1))
	wantCode(t, err, rot.CodeProver)
}
