package rot_test

import (
	"crypto/sha256"
	"encoding/binary"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/rottest"
	"github.com/sledvault/sledvault/vault/reason"
)

func TestAttack(t *testing.T) {
	t.Parallel()
	t.Run("quote-replay", attackQuoteReplay)
	t.Run("relay", attackRelay)
	t.Run("empty-pcr-selection", attackEmptySelection)
	t.Run("crafted-event-log", attackCraftedLog)
	t.Run("clock-1970", attackClock)
}

// attackQuoteReplay: evidence serves one nonce of one connection, whole or in parts.
func attackQuoteReplay(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	old, now := request(1), request(2)
	recorded := s.evidence(t, old)
	_, err := rot.Appraise(recorded, now, s.expect, rot.Seen{})
	wantCode(t, err, rot.CodeBinding)

	// The recorded quote with today's place, and today's quote with the recorded counter of an earlier ledger.
	fresh := s.evidence(t, now)
	was, err := rot.DecodeEvidence(recorded)
	if err != nil {
		t.Fatal(err)
	}
	spliced := change(t, fresh, func(e *rot.Evidence) { e.Quote, e.Signature = was.Quote, was.Signature })
	_, err = rot.Appraise(spliced, now, s.expect, rot.Seen{})
	wantCode(t, err, rot.CodeBinding)

	s.tpm.Set(func(f *rottest.TPM) { f.Counter++ })
	s.facts.Set(rot.Facts{SetGeneration: 4, LedgerSequence: 4, LedgerGeneration: 10})
	s.prover.CounterMoved()
	spliced = change(t, s.evidence(t, now), func(e *rot.Evidence) { e.Counter, e.CounterSignature = was.Counter, was.CounterSignature })
	_, err = rot.Appraise(spliced, now, s.expect, rot.Seen{})
	wantCode(t, err, rot.CodeCounter)

	// Replayed over a reboot, to a verifier that repeats its nonce (it never does).
	v, err := rot.Appraise(recorded, old, s.expect, rot.Seen{})
	if err != nil {
		t.Fatal(err)
	}
	v.Seen.ResetCount++
	_, err = rot.Appraise(recorded, old, s.expect, v.Seen)
	wantCode(t, err, rot.CodeResetCount)
}

// attackRelay: the attacker's machine passes the challenge on to a clean one, or shows the clean one's evidence as its own.
func attackRelay(t *testing.T) {
	t.Parallel()
	clean, attacker := newSled(t, "A1"), newSled(t, "B2")
	toVictim := request(7) // what the victim asks on its connection with the attacker
	// The clean machine answers the victim's nonce, but on the attacker's connection: another exporter, another TLS key.
	toClean := toVictim
	toClean.Exporter, toClean.VerifierSPKI = [32]byte{0xbb}, toVictim.ProverSPKI
	toClean.ProverSPKI = [32]byte{0xcc}
	relayed := clean.evidence(t, toClean)
	_, err := rot.Appraise(relayed, toVictim, clean.expect, rot.Seen{})
	wantCode(t, err, rot.CodeBinding)
	// The same under the attacker's name.
	_, err = rot.Appraise(relayed, toVictim, attacker.expect, rot.Seen{})
	wantCode(t, err, rot.CodeBaseboard)
	renamed := change(t, relayed, func(e *rot.Evidence) { e.Baseboard = attacker.expect.Baseboard })
	_, err = rot.Appraise(renamed, toVictim, attacker.expect, rot.Seen{})
	wantCode(t, err, rot.CodeAK)
	// The victim's own evidence, reflected in the other role.
	reflected := toVictim
	reflected.Role = rot.RoleAcceptor
	_, err = rot.Appraise(clean.evidence(t, toVictim), reflected, clean.expect, rot.Seen{})
	wantCode(t, err, rot.CodeBinding)
	// A binding of another batch with a path to this quote's root cannot be found; the nearest forgery is a longer tree.
	forged := change(t, relayed, func(e *rot.Evidence) {
		e.Place = rot.Place{Index: 0, Count: 2, Path: [][32]byte{sha256.Sum256([]byte{0})}}
	})
	_, err = rot.Appraise(forged, toVictim, clean.expect, rot.Seen{})
	wantCode(t, err, rot.CodeBinding)
}

// selectionAt is where the count of PCR selections stands in a quote of the fake.
const selectionAt = 4 + 2 + 2 + 34 + 2 + 32 + 17 + 8

// attackEmptySelection: a quote that covers no register, another bank, or registers that nobody extended.
func attackEmptySelection(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	req := request(1)
	empty := sha256.Sum256(nil)
	for name, tail := range map[string][]byte{
		"no bank at all":      append([]byte{0, 0, 0, 0, 0, 32}, empty[:]...),
		"no register":         append([]byte{0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 0, 0, 32}, empty[:]...),
		"no bitmap":           append([]byte{0, 0, 0, 1, 0, 0x0b, 0, 0, 32}, empty[:]...),
		"the SHA-1 bank":      append([]byte{0, 0, 0, 1, 0, 0x04, 3, 0xff, 0x78, 0, 0, 32}, empty[:]...),
		"bank twice":          append([]byte{0, 0, 0, 2, 0, 0x0b, 3, 0xff, 0x78, 0, 0, 0x0b, 3, 0xff, 0x78, 0, 0, 32}, empty[:]...),
		"SHA-1 beside":        append([]byte{0, 0, 0, 2, 0, 0x0b, 3, 0xff, 0x78, 0, 0, 4, 3, 0xff, 0x78, 0, 0, 32}, empty[:]...),
		"4 thousand million":  append([]byte{0xff, 0xff, 0xff, 0xff, 0, 32}, empty[:]...),
		"resettable register": append([]byte{0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 0x81, 0, 32}, empty[:]...),
	} {
		for _, values := range []int{0, 12} {
			ev := change(t, s.evidence(t, req), func(e *rot.Evidence) {
				e.Quote = append(slices.Clone(e.Quote[:selectionAt]), tail...)
				e.Signature = s.tpm.Sign(e.Quote)
				e.PCRs = e.PCRs[:values]
			})
			_, err := rot.Appraise(ev, req, s.expect, rot.Seen{})
			wantCode(t, err, rot.CodePCRSelection)
			if t.Failed() {
				t.Fatalf("%s with %d values", name, values)
			}
		}
	}
	// A verifier that is configured to ask for nothing refuses to judge, and so does a prover.
	for _, pcrs := range [][]int{{}, {0}, {11, 12}, {0, 1, 2, 3, 4, 5, 6, 7, 16}, {0, 1, 2, 3, 4, 5, 6, 7, 23}, {7, 6, 5, 4, 3, 2, 1, 0}, {0, 0, 1, 2, 3, 4, 5, 6, 7}, {-1, 24}} {
		x := s.expect
		x.Selection = pcrs
		_, err := rot.Appraise(s.evidence(t, req), req, x, rot.Seen{})
		wantCode(t, err, rot.CodePCRSelection)
		_, err = rot.NewProver(rot.ProverConfig{Attestor: s.tpm, Baseboard: s.expect.Baseboard, Facts: s.facts.Get, PCRs: pcrs})
		wantCode(t, err, rot.CodePCRSelection)
	}
	// A bank that the firmware does not extend: the attacker could extend it at will.
	for name, value := range map[string]byte{"all zero": 0, "all ones": 0xff} {
		s.tpm.Set(func(f *rottest.TPM) {
			for i := range f.PCRs[6] {
				f.PCRs[6][i] = value
			}
		})
		root := sha256.Sum256([]byte(name))
		q, err := s.tpm.Quote(t.Context(), root, rot.DefaultPCRs())
		if err != nil {
			t.Fatal(err)
		}
		_, err = rot.VerifyQuote(q.Attest, q.Signature, s.tpm.AKPublic(), root, rot.DefaultPCRs(), q.PCRs)
		wantCode(t, err, rot.CodePCRUnextended)
		_, err = s.prover.Evidence(t.Context(), req)
		wantCode(t, err, rot.CodeProver) // this sled says so itself, before any peer does
	}
}

// attackCraftedLog: the log is the attacker's to write; only what the registers prove counts.
func attackCraftedLog(t *testing.T) {
	t.Parallel()
	sound, quoted := bootLog(t, firmware.Options{})
	for name, fault := range map[string]firmware.Fault{
		"missing separator": firmware.NoSeparator, "register without events": firmware.SilentPCR, "two separators": firmware.TwoSeparators,
		"firmware after the separator": firmware.LateFirmware, "error separator": firmware.ErrorSeparator, "hidden event": firmware.HiddenEvent,
		"reordered events": firmware.ReorderedEvents,
	} {
		log, regs := bootLog(t, firmware.Options{Fault: fault})
		if err := parse(t, log).Explains(regs, nil); reason.CodeOf(err) != rot.CodeEventLog {
			t.Errorf("%s: have %v", name, err)
		}
	}
	unextended, _ := bootLog(t, firmware.Options{Fault: firmware.UnextendedBank})
	if err := parse(t, unextended).Explains(map[int][32]byte{0: {}}, nil); err == nil {
		t.Error("unextended bank explained")
	}
	trailing, _ := bootLog(t, firmware.Options{Fault: firmware.TrailingGarbage})
	_, err := rot.ParseEventLog(trailing)
	wantCode(t, err, rot.CodeEventLog)

	// Data that its digest does not cover proves nothing, though the replay fits.
	lying, regs := bootLog(t, firmware.Options{Fault: firmware.LyingVariable})
	l := parse(t, lying)
	if err := l.Explains(regs, nil); err != nil {
		t.Fatal(err)
	}
	_, err = l.SecureBoot()
	wantCode(t, err, rot.CodeEventLog)

	// Another type with the right digest: the replay fits, a manifest does not fall for it.
	m := rot.LearnManifest("m", parse(t, sound), []int{4}, 1)
	relabelled, regs := bootLog(t, firmware.Options{Fault: firmware.WrongType})
	if err := parse(t, relabelled).Explains(regs, nil); err != nil {
		t.Fatal(err)
	}
	wantCode(t, m.Appraise(parse(t, relabelled)), rot.CodeManifest)

	// A log of a sound machine beside the registers of another.
	_, tampered := bootLog(t, firmware.Options{CommandLine: "init=/bin/sh"})
	wantCode(t, parse(t, sound).Explains(tampered, nil), rot.CodeEventLog)
	// Pinning by value replaces the log from PCR 8 up, never below.
	all := func(int) bool { return true }
	if err := parse(t, sound).Explains(tampered, all); err != nil {
		t.Errorf("pinned register: %v", err)
	}
	_, tampered = bootLog(t, firmware.Options{Image: "other"})
	wantCode(t, parse(t, sound).Explains(tampered, all), rot.CodeEventLog)

	attackAppendedRecord(t, sound, quoted)
}

// attackAppendedRecord: whole records that the header does not announce, or that would cost memory.
func attackAppendedRecord(t *testing.T, sound []byte, quoted map[int][32]byte) {
	t.Helper()
	record := func(pcr, typ, count, size uint32) []byte {
		b := binary.LittleEndian.AppendUint32(slices.Clone(sound), pcr)
		b = binary.LittleEndian.AppendUint32(b, typ)
		b = binary.LittleEndian.AppendUint32(b, count)
		b = append(b, 0x0b, 0)
		b = append(b, make([]byte, 32)...)
		return binary.LittleEndian.AppendUint32(b, size)
	}
	for name, log := range map[string][]byte{
		"unknown type": record(4, 0x7fffffff, 1, 0), "register 24": record(24, 4, 1, 0), "digests": record(4, 4, 0xffffffff, 0),
		"size": record(4, 4, 1, 0xffffffff), "one MiB and a byte": make([]byte, rot.MaxEventLog+1),
	} {
		_, err := rot.ParseEventLog(log)
		wantCode(t, err, rot.CodeEventLog)
		if t.Failed() {
			t.Fatal(name)
		}
	}
	wantCode(t, parse(t, record(4, uint32(rot.EvIPL), 1, 0)).Explains(quoted, nil), rot.CodeEventLog)
	many := slices.Clone(sound)
	for range 16384 {
		many = record2(many)
	}
	_, err := rot.ParseEventLog(many)
	wantCode(t, err, rot.CodeEventLog)
}

// record2 appends an empty event of PCR 9.
func record2(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, 9)
	b = binary.LittleEndian.AppendUint32(b, uint32(rot.EvIPL))
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = append(b, 0x0b, 0)
	return append(b, make([]byte, 36)...)
}

// attackClock: after a power cut the TPM's clock is marked unsafe and the host's may say 1970. Neither decides anything.
func attackClock(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	s.tpm.Set(func(f *rottest.TPM) { f.Safe, f.Clock = false, 0 })
	req := request(1)
	v, err := rot.Appraise(s.evidence(t, req), req, s.expect, rot.Seen{})
	if err != nil || v.ClockSafe {
		t.Fatalf("have %+v, %v", v, err)
	}
	for _, dir := range []string{".", "channel"} {
		noClock(t, dir)
	}
}

// noClock fails on every use of the wall clock, and of everything that waits by itself.
func noClock(t *testing.T, dir string) {
	t.Helper()
	allowed := []string{"Duration", "Second", "Unix", "Time"} // values and types; Unix builds constants
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, dir+"/"+f.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		checked++
		for _, i := range file.Imports {
			if path, _ := strconv.Unquote(i.Path.Value); path == "time" && i.Name != nil {
				t.Errorf("%s: time is imported under another name", f.Name())
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && !slices.Contains(allowed, sel.Sel.Name) {
				t.Errorf("%v: time.%s", fset.Position(sel.Pos()), sel.Sel.Name)
			}
			return true
		})
	}
	if checked == 0 {
		t.Fatalf("%s: no files", dir)
	}
}
