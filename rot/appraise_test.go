package rot_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/rottest"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// change edits decoded evidence and encodes it again.
func change(tb testing.TB, ev []byte, f func(*rot.Evidence)) []byte {
	tb.Helper()
	e, err := rot.DecodeEvidence(ev)
	if err != nil {
		tb.Fatal(err)
	}
	f(e)
	out, err := e.Encode()
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// TestAppraiseRefuses: one row per check, in the order of the checks. What breaks a later check too proves the order.
func TestAppraiseRefuses(t *testing.T) {
	t.Parallel()
	other := rottest.NewTPM("other")
	type world struct {
		*sled
		req  rot.Request
		seen rot.Seen
		edit func(*rot.Evidence)
	}
	flip := func(b []byte, at int) []byte {
		b = slices.Clone(b)
		b[at] ^= 1
		return b
	}
	// mangle changes what the TPM signs from the next attestation on; the prover would refuse it itself.
	for _, row := range []struct {
		name string
		want reason.Code
		set  func(*world)
	}{
		{"other kind demanded", rot.CodeKind, func(w *world) { w.expect.Kind = rot.KindDICE }},
		{"other kind shown", rot.CodeKind, func(w *world) { w.edit = func(e *rot.Evidence) { e.Kind = rot.KindDICE } }},
		{"other baseboard", rot.CodeBaseboard, func(w *world) { w.expect.Baseboard = ident.Baseboard{Part: "p", Serial: "s"} }},
		{"other key enrolled", rot.CodeAK, func(w *world) { w.expect.AKName = other.AKName() }},
		{"no key enrolled", rot.CodeAK, func(w *world) { w.expect.AKName = nil }},
		{"other key shown", rot.CodeAK, func(w *world) { w.edit = func(e *rot.Evidence) { e.AKPublic = other.AKPublic() } }},
		{"key that may sign anything", rot.CodeAK, func(w *world) { w.edit = func(e *rot.Evidence) { e.AKPublic = flip(e.AKPublic, 5) } }},
		{"key that can decrypt", rot.CodeAK, func(w *world) { w.edit = func(e *rot.Evidence) { e.AKPublic = decrypting(e.AKPublic) } }},
		{"key off the curve", rot.CodeAK, func(w *world) { w.edit = func(e *rot.Evidence) { e.AKPublic = flip(e.AKPublic, len(e.AKPublic)-1) } }},
		{"bytes after the key", rot.CodeAK, func(w *world) { w.edit = func(e *rot.Evidence) { e.AKPublic = append(e.AKPublic, 0) } }},
		{"signature", rot.CodeSignature, func(w *world) { w.edit = func(e *rot.Evidence) { e.Signature = flip(e.Signature, 20) } }},
		{"signature by another key", rot.CodeSignature, func(w *world) { w.edit = func(e *rot.Evidence) { e.Signature = other.Sign(e.Quote) } }},
		{"signature of another hash", rot.CodeSignature, func(w *world) { w.edit = func(e *rot.Evidence) { e.Signature = flip(e.Signature, 3) } }},
		{"bytes after the signature", rot.CodeSignature, func(w *world) { w.edit = func(e *rot.Evidence) { e.Signature = append(e.Signature, 0) } }},
		{"magic", rot.CodeAttestType, func(w *world) { w.resign(func(q []byte) []byte { return flip(q, 0) }) }},
		{"type", rot.CodeAttestType, func(w *world) {
			w.edit = func(e *rot.Evidence) { e.Quote, e.Signature = e.Counter, e.CounterSignature }
		}},
		{"bytes after the quote", rot.CodeAttestType, func(w *world) { w.resign(func(q []byte) []byte { return append(q, 0) }) }},
		{"short quote", rot.CodeAttestType, func(w *world) { w.resign(func(q []byte) []byte { return q[:len(q)-1] }) }},
		{"count of leaves", rot.CodePath, func(w *world) { w.edit = func(e *rot.Evidence) { e.Place.Count = 2 } }},
		{"no leaves", rot.CodePath, func(w *world) { w.edit = func(e *rot.Evidence) { e.Place.Count = 0 } }},
		{"leaf out of range", rot.CodePath, func(w *world) { w.edit = func(e *rot.Evidence) { e.Place.Index = 1 } }},
		{"too many leaves", rot.CodePath, func(w *world) { w.edit = func(e *rot.Evidence) { e.Place.Count = 65 } }},
		{"path too long", rot.CodePath, func(w *world) { w.edit = func(e *rot.Evidence) { e.Place.Path = make([][32]byte, 1) } }},
		{"other nonce", rot.CodeBinding, func(w *world) { w.req.Nonce[0]++ }},
		{"other exporter", rot.CodeBinding, func(w *world) { w.req.Exporter[0]++ }},
		{"other role", rot.CodeBinding, func(w *world) { w.req.Role = rot.RoleAcceptor }},
		{"other TLS key of the prover", rot.CodeBinding, func(w *world) { w.req.ProverSPKI[0]++ }},
		{"other TLS key of the verifier", rot.CodeBinding, func(w *world) { w.req.VerifierSPKI[0]++ }},
		{"other set generation", rot.CodeBinding, func(w *world) { w.edit = func(e *rot.Evidence) { e.Facts.SetGeneration++ } }},
		{"other sequence", rot.CodeBinding, func(w *world) { w.edit = func(e *rot.Evidence) { e.Facts.LedgerSequence++ } }},
		{"other generation", rot.CodeBinding, func(w *world) { w.edit = func(e *rot.Evidence) { e.Facts.LedgerGeneration++ } }},
		{"fewer PCRs quoted", rot.CodePCRSelection, func(w *world) { w.expect.Selection = append(rot.DefaultPCRs(), 15) }},
		{"more PCRs quoted", rot.CodePCRSelection, func(w *world) { w.expect.Selection = []int{0, 1, 2, 3, 4, 5, 6, 7} }},
		{"PCR value", rot.CodePCRDigest, func(w *world) { w.edit = func(e *rot.Evidence) { e.PCRs[3][0]++ } }},
		{"PCR values missing", rot.CodePCRDigest, func(w *world) { w.edit = func(e *rot.Evidence) { e.PCRs = e.PCRs[1:] } }},
		{"reset count below enrolment", rot.CodeResetCount, func(w *world) { w.expect.ResetCount = 9 }},
		{"reset count falls", rot.CodeResetCount, func(w *world) { w.seen = rot.Seen{Known: true, ResetCount: 9} }},
		{"restarted without a reset", rot.CodeRestartCount, func(w *world) { w.seen = rot.Seen{Known: true, ResetCount: 8, RestartCount: 1} }},
		{"TPM firmware", rot.CodeFirmware, func(w *world) { w.expect.MinFirmware = w.tpm.Firmware + 1 }},
		{"other counter enrolled", rot.CodeCounter, func(w *world) { w.expect.CounterName = other.CounterName() }},
		{"no counter enrolled", rot.CodeCounter, func(w *world) { w.expect.CounterName = nil }},
		{"counter signature", rot.CodeCounter, func(w *world) {
			w.edit = func(e *rot.Evidence) { e.CounterSignature = flip(e.CounterSignature, 20) }
		}},
		{"quote as counter certificate", rot.CodeCounter, func(w *world) {
			w.edit = func(e *rot.Evidence) { e.Counter, e.CounterSignature = e.Quote, e.Signature }
		}},
		{"ledger sequence falls", rot.CodeRollback, func(w *world) { w.seen = rot.Seen{Known: true, ResetCount: 8, Sequence: 4} }},
		{"ledger generation falls", rot.CodeRollback, func(w *world) { w.seen = rot.Seen{Known: true, ResetCount: 8, Generation: 10} }},
		{"ledger sequence below enrolment", rot.CodeRollback, func(w *world) { w.expect.MinSequence = 4 }},
		{"event log", rot.CodeEventLog, func(w *world) { w.edit = func(e *rot.Evidence) { e.EventLog = nil } }},
		{"no policy", rot.CodeNoPolicy, func(w *world) { w.expect.PCRs = nil }},
		{"PCR by value", rot.CodePCRPolicy, func(w *world) { w.expect.PCRs[4] = [][32]byte{{1}, {2}} }},
		{"PCR pinned that is not quoted", rot.CodePCRPolicy, func(w *world) { w.expect.PCRs[9] = [][32]byte{{}} }},
		{"PCR pinned to nothing", rot.CodePCRPolicy, func(w *world) { w.expect.PCRs[4] = nil }},
		{"manifest", rot.CodeManifest, func(w *world) {
			w.expect.Manifest = &rot.Manifest{ID: "m", Rules: []rot.Rule{{Component: "c", PCR: 4, Type: rot.EvBootServicesApp, Allowed: []rot.Allowed{{}}}}}
		}},
		{"manifest for a PCR that is not quoted", rot.CodeManifest, func(w *world) {
			w.expect.Manifest = &rot.Manifest{ID: "m", Rules: []rot.Rule{{Component: "c", PCR: 9, Type: rot.EvIPL, Optional: true}}}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w := &world{sled: newSled(t, "A1"), req: request(1)}
			ev := w.evidence(t, w.req)
			row.set(w)
			if w.resigned != nil {
				w.edit = w.resigned
			}
			if w.edit != nil {
				ev = change(t, ev, w.edit)
			}
			_, err := rot.Appraise(ev, w.req, w.expect, w.seen)
			wantCode(t, err, row.want)
		})
	}
}

// decrypting sets the attribute "decrypt".
func decrypting(public []byte) []byte {
	b := slices.Clone(public)
	b[5] |= 2
	return b
}

// resign arranges that the quote is changed and signed again, as a broken TPM might.
func (s *sled) resign(f func([]byte) []byte) {
	s.resigned = func(e *rot.Evidence) {
		e.Quote = f(bytes.Clone(e.Quote))
		e.Signature = s.tpm.Sign(e.Quote)
	}
}

// TestCounterOfAnotherStart: a certificate that is older than the last reset, or younger than the quote, proves nothing.
func TestCounterOfAnotherStart(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	req := request(1)
	before, err := rot.DecodeEvidence(s.evidence(t, req))
	if err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string]func(*rottest.TPM){
		"reset":   func(f *rottest.TPM) { f.Reset++ },
		"restart": func(f *rottest.TPM) { f.Restart++ },
	} {
		s.tpm.Set(set)
		ev := change(t, s.evidence(t, req), func(e *rot.Evidence) { e.Counter, e.CounterSignature = before.Counter, before.CounterSignature })
		if _, err := rot.Appraise(ev, req, s.expect, rot.Seen{}); reason.CodeOf(err) != rot.CodeCounter {
			t.Errorf("%s: have %v", name, err)
		}
	}
	old := s.evidence(t, req)
	s.prover.CounterMoved()
	younger, err := rot.DecodeEvidence(s.evidence(t, req))
	if err != nil {
		t.Fatal(err)
	}
	ev := change(t, old, func(e *rot.Evidence) { e.Counter, e.CounterSignature = younger.Counter, younger.CounterSignature })
	_, err = rot.Appraise(ev, req, s.expect, rot.Seen{})
	wantCode(t, err, rot.CodeCounter)
}

// TestReEnrolled: a new counter in the record voids what was remembered of the old one.
func TestReEnrolled(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	req := request(1)
	past := rot.Seen{Known: true, Sequence: 99, Generation: 99, ResetCount: 99, Counter: [32]byte{1}}
	v, err := rot.Appraise(s.evidence(t, req), req, s.expect, past)
	if err != nil || v.Rebooted {
		t.Fatalf("have %+v, %v", v, err)
	}
	if m := past.Merge(v.Seen); m != v.Seen {
		t.Errorf("merge across counters: have %+v", m)
	}
}

func TestSeenMerge(t *testing.T) {
	t.Parallel()
	a := rot.Seen{Known: true, Sequence: 5, Generation: 6, ResetCount: 2, RestartCount: 1}
	b := rot.Seen{Known: true, Sequence: 4, Generation: 9, ResetCount: 3, RestartCount: 0}
	want := rot.Seen{Known: true, Sequence: 5, Generation: 9, ResetCount: 3}
	if a.Merge(b) != want || b.Merge(a) != want || a.Merge(rot.Seen{}) != a || (rot.Seen{}).Merge(a) != a {
		t.Errorf("have %+v and %+v, want %+v", a.Merge(b), b.Merge(a), want)
	}
}

// TestRebootIsReported: a higher reset count is a reboot, not a refusal.
func TestRebootIsReported(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	req := request(1)
	first, err := rot.Appraise(s.evidence(t, req), req, s.expect, rot.Seen{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.tpm.Boot(firmware.Options{}); err != nil {
		t.Fatal(err)
	}
	second, err := rot.Appraise(s.evidence(t, req), req, s.expect, first.Seen)
	if err != nil || !second.Rebooted || second.Seen.ResetCount != first.Seen.ResetCount+1 {
		t.Fatalf("have %+v, %v", second, err)
	}
}
