package rot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
)

// Expectation is what the verifier's enrolment set says about the sled that the evidence names.
type Expectation struct {
	Baseboard   ident.Baseboard
	Kind        string // the kind of evidence this baseboard must show; KindTPM
	EKName      []byte // names the TPM; carried into the verdict
	AKName      []byte // 2-byte algorithm and digest
	CounterName []byte // with the Written bit
	Selection   []int  // PCRs of the quote, ascending; nil means [DefaultPCRs]
	// PCRs pins registers by value: each must hold one of its values. A register that is not a key is free.
	PCRs map[int][][32]byte
	// Manifest judges the event log. One of PCRs and Manifest must be there.
	Manifest    *Manifest
	MinFirmware uint64 // of the TPM
	ResetCount  uint32 // at enrolment
	MinSequence uint64 // the counter's value at enrolment
}

// Seen is what a verifier remembers of one TPM, between connections and over restarts.
type Seen struct {
	Known                    bool // false: nothing is remembered
	Sequence, Generation     uint64
	ResetCount, RestartCount uint32
	// Counter is the SHA-256 of the counter's Name, so that a TPM that was enrolled anew with another counter starts
	// anew here too. All zero applies to any counter.
	Counter [32]byte
}

// Merge keeps the higher of two memories of one TPM. Verdicts arrive in any order.
func (s Seen) Merge(o Seen) Seen {
	if !s.Known || !o.Known {
		if o.Known {
			return o
		}
		return s
	}
	none := [32]byte{}
	if s.Counter != none && o.Counter != none && s.Counter != o.Counter {
		return o
	}
	if s.Counter == none {
		s.Counter = o.Counter
	}
	s.Sequence, s.Generation = max(s.Sequence, o.Sequence), max(s.Generation, o.Generation)
	if o.ResetCount > s.ResetCount {
		s.ResetCount, s.RestartCount = o.ResetCount, o.RestartCount
	}
	return s
}

// Verdict is what accepted evidence proves.
type Verdict struct {
	Baseboard ident.Baseboard
	EKName    []byte
	Facts     Facts
	Seen      Seen // to remember for the next time
	Rebooted  bool // the TPM was reset since the last time
	ClockSafe bool // reported, never required: it is false after every power cut
	Firmware  uint64
	PCRs      map[int][32]byte
}

// Appraise judges evidence for one request, by what the enrolment set expects and what was seen before. The checks run in
// the order of evidence.md §6; the first that fails gives the reason. On success the caller remembers Verdict.Seen.
func Appraise(ev []byte, req Request, exp Expectation, seen Seen) (*Verdict, error) {
	e, err := DecodeEvidence(ev)
	if err != nil {
		return nil, err
	}
	return e.Appraise(req, exp, seen)
}

// Appraise is [Appraise] for evidence that was decoded to learn whom it names.
func (e *Evidence) Appraise(req Request, exp Expectation, seen Seen) (*Verdict, error) {
	if err := checkIdentity(e, exp); err != nil {
		return nil, err
	}
	quote, err := verifyBatch(e, req, exp.selection())
	if err != nil {
		return nil, err
	}
	counterID := sha256.Sum256(exp.CounterName)
	if seen.Counter != [32]byte{} && seen.Counter != counterID {
		seen = Seen{} // enrolled anew since: the past belongs to another counter
	}
	if err := checkResets(quote.Clock, exp, seen); err != nil {
		return nil, err
	}
	if quote.Firmware < exp.MinFirmware {
		return nil, refuse(CodeFirmware, "TPM firmware refused: have %#x, want at least %#x", quote.Firmware, exp.MinFirmware)
	}
	if err := checkCounter(e, quote.Clock, exp, seen); err != nil {
		return nil, err
	}
	if err := checkPolicy(e.EventLog, quote.PCRs, exp); err != nil {
		return nil, err
	}
	return verdict(e, quote, exp, seen, counterID), nil
}

func (x Expectation) selection() []int {
	if x.Selection == nil {
		return DefaultPCRs()
	}
	return x.Selection
}

// checkIdentity: the right kind, the right baseboard, the enrolled attestation key.
func checkIdentity(e *Evidence, exp Expectation) error {
	if e.Kind != exp.Kind || e.Kind != KindTPM {
		return refuse(CodeKind, "evidence refused: have kind %.16q, want %.16q", e.Kind, exp.Kind)
	}
	if e.Baseboard != exp.Baseboard {
		return refuse(CodeBaseboard, "evidence refused: have baseboard %v, want %v", e.Baseboard, exp.Baseboard)
	}
	name, err := CheckAKPublic(e.AKPublic)
	if err != nil {
		return err
	}
	if len(exp.AKName) == 0 || !bytes.Equal(name, exp.AKName) {
		return refuse(CodeAK, "evidence refused: have attestation key %s, want %s", shortHex(name), shortHex(exp.AKName))
	}
	return nil
}

func shortHex(b []byte) string { return hex.EncodeToString(b[:min(len(b), 10)]) }

// verifyBatch checks the quote against the root recomputed from our own binding.
func verifyBatch(e *Evidence, req Request, pcrs []int) (*VerifiedQuote, error) {
	a, err := verifyAttest(e.Quote, e.Signature, e.AKPublic, stAttestQuote)
	if err != nil {
		return nil, err
	}
	root, ok := rootFromPath(binding(req, e.AKPublic, e.Facts), int(e.Place.Index), int(e.Place.Count), e.Place.Path)
	if !ok {
		return nil, refuse(CodePath, "evidence refused: path of %d does not fit leaf %d of %d", len(e.Place.Path), e.Place.Index, e.Place.Count)
	}
	if !bytes.Equal(a.Extra, root[:]) {
		return nil, refuse(CodeBinding, "evidence refused: the quote answers another connection, nonce or state")
	}
	return checkPCRs(a, pcrs, e.PCRs)
}

// checkResets: a reset count never falls, and within one of them the TPM was never resumed. Clock.Safe is not looked at.
func checkResets(c Clock, exp Expectation, seen Seen) error {
	floor := exp.ResetCount
	if seen.Known {
		floor = max(floor, seen.ResetCount)
	}
	if c.ResetCount < floor {
		return refuse(CodeResetCount, "reset count refused: have %d, want at least %d", c.ResetCount, floor)
	}
	if seen.Known && c.ResetCount == seen.ResetCount && c.RestartCount != seen.RestartCount {
		return refuse(CodeRestartCount, "restart count refused: have %d, want %d", c.RestartCount, seen.RestartCount)
	}
	return nil
}

// checkCounter: the ledger that the sled claims to hold is the one that its counter allows, and no older than before.
func checkCounter(e *Evidence, quote Clock, exp Expectation, seen Seen) error {
	r, err := VerifyCounter(e.Counter, e.CounterSignature, e.AKPublic, CounterExtra(exp.AKName), exp.CounterName)
	if err != nil {
		return err
	}
	if r.Clock.ResetCount != quote.ResetCount || r.Clock.RestartCount != quote.RestartCount || r.Clock.Milliseconds > quote.Milliseconds {
		return refuse(CodeCounter, "counter certificate refused: it is not of this start (have reset %d, restart %d, clock %d ms, want %d, %d, at most %d ms)",
			r.Clock.ResetCount, r.Clock.RestartCount, r.Clock.Milliseconds, quote.ResetCount, quote.RestartCount, quote.Milliseconds)
	}
	if r.Value != e.Facts.LedgerSequence {
		return refuse(CodeCounter, "ledger refused: have sequence %d, want the counter's value %d", e.Facts.LedgerSequence, r.Value)
	}
	floor, generation := exp.MinSequence, uint64(0)
	if seen.Known {
		floor, generation = max(floor, seen.Sequence), seen.Generation
	}
	if e.Facts.LedgerSequence < floor || e.Facts.LedgerGeneration < generation {
		return refuse(CodeRollback, "ledger refused: have sequence %d generation %d, want at least %d and %d",
			e.Facts.LedgerSequence, e.Facts.LedgerGeneration, floor, generation)
	}
	return nil
}

// checkPolicy: the log explains the registers, then pins and manifest judge what runs.
func checkPolicy(eventLog []byte, quoted map[int][32]byte, exp Expectation) error {
	log, err := ParseEventLog(eventLog)
	if err != nil {
		return err
	}
	pinned := func(pcr int) bool {
		return len(exp.PCRs[pcr]) > 0 && (exp.Manifest == nil || !exp.Manifest.governs(pcr))
	}
	if err := log.Explains(quoted, pinned); err != nil {
		return err
	}
	if len(exp.PCRs) == 0 && exp.Manifest == nil {
		return refuse(CodeNoPolicy, "policy missing: neither PCR values nor a manifest for %v", exp.Baseboard)
	}
	for _, pcr := range slices.Sorted(maps.Keys(exp.PCRs)) {
		have, ok := quoted[pcr]
		if !ok || !slices.Contains(exp.PCRs[pcr], have) {
			return refuse(CodePCRPolicy, "PCR %d refused: have %x, which is none of %d allowed values", pcr, have, len(exp.PCRs[pcr]))
		}
	}
	if exp.Manifest == nil {
		return nil
	}
	for _, r := range exp.Manifest.Rules {
		if _, ok := quoted[r.PCR]; !ok {
			return refuse(CodeManifest, "manifest %.64q refused: it governs PCR %d, which is not quoted", exp.Manifest.ID, r.PCR)
		}
	}
	return exp.Manifest.Appraise(log)
}

func verdict(e *Evidence, q *VerifiedQuote, exp Expectation, seen Seen, counterID [32]byte) *Verdict {
	return &Verdict{
		Baseboard: e.Baseboard, EKName: slices.Clone(exp.EKName), Facts: e.Facts, Firmware: q.Firmware, PCRs: q.PCRs,
		Seen: Seen{
			Known: true, Sequence: e.Facts.LedgerSequence, Generation: e.Facts.LedgerGeneration,
			ResetCount: q.Clock.ResetCount, RestartCount: q.Clock.RestartCount, Counter: counterID,
		},
		Rebooted:  seen.Known && q.Clock.ResetCount > seen.ResetCount,
		ClockSafe: q.Clock.Safe,
	}
}
