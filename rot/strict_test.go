package rot_test

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/rottest"
	"github.com/sledvault/sledvault/vault/reason"
)

// TestOneEncoding: evidence has one encoding; every other way to write the same, or nearly the same, is refused.
func TestOneEncoding(t *testing.T) {
	t.Parallel()
	good := frozenEvidence(t)
	var m map[int]cbor.RawMessage
	if err := cbor.Unmarshal(good, &m); err != nil {
		t.Fatal(err)
	}
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	with := func(key int, raw []byte) []byte {
		c := map[int]cbor.RawMessage{}
		maps.Copy(c, m)
		if c[key] = raw; raw == nil {
			delete(c, key)
		}
		b, err := enc.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	value := func(v any) []byte {
		b, err := enc.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !bytes.Equal(with(0, m[0]), good) {
		t.Fatal("the test does not reproduce the evidence")
	}
	swapped := slices.Concat([]byte{good[0]}, []byte{1}, m[1], []byte{0}, m[0], good[1+1+len(m[0])+1+len(m[1]):])
	rows := map[string][]byte{
		"nothing":                  {},
		"empty map":                {0xa0},
		"trailing byte":            append(slices.Clone(good), 0),
		"cut":                      good[:len(good)-1],
		"keys in another order":    swapped,
		"indefinite map":           slices.Concat([]byte{0xbf}, good[1:], []byte{0xff}),
		"long form of the map":     slices.Concat([]byte{0xb8, 12}, good[1:]),
		"key twice":                slices.Concat([]byte{0xad}, good[1:], []byte{11}, m[11]),
		"tag around it":            slices.Concat([]byte{0xd9, 0xd9, 0xf7}, good),
		"unknown key":              with(12, value(1)),
		"null for bytes":           with(8, []byte{0xf6}),
		"text for bytes":           with(8, value("log")),
		"number for text":          with(1, value(7)),
		"bytes for text":           with(1, value([]byte("913"))),
		"facts of two":             with(3, value([]int{1, 2})),
		"facts of four":            with(3, value([]int{1, 2, 3, 4})),
		"negative fact":            with(3, value([]int{1, -2, 3})),
		"long form of a fact":      with(3, []byte{0x83, 0x18, 4, 3, 9}),
		"PCR value of 31 bytes":    with(7, value([][]byte{make([]byte, 31)})),
		"PCR value of 33 bytes":    with(7, value([][]byte{make([]byte, 33)})),
		"PCR value as numbers":     with(7, value([][]int{make([]int, 32)})),
		"25 PCR values":            with(7, value(slices.Repeat([][]byte{make([]byte, 32)}, 25))),
		"leaf count of 256":        with(9, value([]any{0, 256, [][]byte{}})),
		"path of seven":            with(9, value([]any{0, 1, slices.Repeat([][]byte{make([]byte, 32)}, 7)})),
		"quote of 2049 bytes":      with(5, value(make([]byte, 2049))),
		"log of one MiB and a bit": with(8, value(make([]byte, rot.MaxEventLog+1))),
		"kind of 17 characters":    with(0, value("tpmtpmtpmtpmtpmtp")),
		"part with a colon":        with(1, value("a:b")),
		"empty serial":             with(2, value("")),
		"serial with an escape":    with(2, value("\x1b[2J")),
		"two MiB and a byte":       make([]byte, rot.MaxEvidence+1),
	}
	for key := range m {
		rows["without key "+string(rune('a'+key))] = with(key, nil)
	}
	for name, b := range rows {
		if _, err := rot.DecodeEvidence(b); reason.CodeOf(err) != rot.CodeMalformed || reason.HintOf(err) == "" {
			t.Errorf("%s: have %v", name, err)
		}
	}
}

// TestEnrolmentChecks: the three kinds of attestation that the controller checks with an extraData of its own.
func TestEnrolmentChecks(t *testing.T) {
	t.Parallel()
	tpm, other := rottest.NewTPM("A1"), rottest.NewTPM("B2")
	if err := tpm.Boot(firmware.Options{}); err != nil {
		t.Fatal(err)
	}
	extra, ak := [32]byte{7}, tpm.AKPublic()
	attest, sig := tpm.Certify(extra, other.AKName())
	for name, row := range map[string]struct {
		extra [32]byte
		ak    []byte
		name  []byte
		want  reason.Code
	}{
		"good":          {extra, ak, other.AKName(), ""},
		"other request": {[32]byte{8}, ak, other.AKName(), rot.CodeBinding},
		"other object":  {extra, ak, tpm.AKName(), rot.CodeAK},
		"no object":     {extra, ak, nil, rot.CodeAK},
		"other key":     {extra, other.AKPublic(), other.AKName(), rot.CodeSignature},
		"no key":        {extra, nil, other.AKName(), rot.CodeAK},
	} {
		if err := rot.VerifyCertify(attest, sig, row.ak, row.extra, row.name); reason.CodeOf(err) != row.want {
			t.Errorf("certify, %s: have %v", name, err)
		}
	}
	q, err := tpm.Quote(t.Context(), extra, rot.DefaultPCRs())
	if err != nil {
		t.Fatal(err)
	}
	v, err := rot.VerifyQuote(q.Attest, q.Signature, ak, extra, rot.DefaultPCRs(), q.PCRs)
	if err != nil || v.PCRs[7] != q.PCRs[7] || v.Clock.ResetCount != 8 || v.Firmware != tpm.Firmware {
		t.Errorf("quote: have %+v, %v", v, err)
	}
	_, err = rot.VerifyQuote(q.Attest, q.Signature, ak, [32]byte{}, rot.DefaultPCRs(), q.PCRs)
	wantCode(t, err, rot.CodeBinding)
	attest, sig, err = tpm.CertifyCounter(t.Context(), extra)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rot.VerifyCounter(attest, sig, ak, extra, tpm.CounterName())
	if err != nil || r.Value != tpm.Counter {
		t.Errorf("counter: have %+v, %v", r, err)
	}
	_, err = rot.VerifyCounter(attest, sig, ak, [32]byte{}, tpm.CounterName())
	wantCode(t, err, rot.CodeCounter)
	_, err = rot.VerifyCounter(q.Attest, q.Signature, ak, extra, tpm.CounterName())
	wantCode(t, err, rot.CodeCounter)
	_, err = rot.CheckAKPublic(ak[:len(ak)-1])
	wantCode(t, err, rot.CodeAK)
}

// TestPartOfCounter: a certificate over a part of the counter, or from the middle of it, is no certificate.
func TestPartOfCounter(t *testing.T) {
	t.Parallel()
	tpm := rottest.NewTPM("A1")
	for name, edit := range map[string]func([]byte) []byte{
		"offset":     func(b []byte) []byte { b[len(b)-11] = 1; return b },
		"four bytes": func(b []byte) []byte { b[len(b)-9] = 4; return b[:len(b)-4] },
		"nine bytes": func(b []byte) []byte { b[len(b)-9] = 9; return append(b, 0) },
	} {
		tpm.Set(func(f *rottest.TPM) { f.Mangle = edit })
		attest, sig, err := tpm.CertifyCounter(t.Context(), [32]byte{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rot.VerifyCounter(attest, sig, tpm.AKPublic(), [32]byte{}, tpm.CounterName()); reason.CodeOf(err) != rot.CodeCounter {
			t.Errorf("%s: have %v", name, err)
		}
	}
}

// TestRegistersMoveWhileQuoting: something extends a register between reading and quoting. Once is met by trying again,
// for ever is an error that says so.
func TestRegistersMoveWhileQuoting(t *testing.T) {
	t.Parallel()
	s := newSled(t, "A1")
	torn := 1
	s.tpm.Set(func(f *rottest.TPM) {
		f.Mangle = func(b []byte) []byte {
			if binary.BigEndian.Uint16(b[4:]) == 0x8018 && torn > 0 {
				torn--
				b[len(b)-1] ^= 1 // the digest of other values
			}
			return b
		}
	})
	req := request(1)
	if _, err := rot.Appraise(s.evidence(t, req), req, s.expect, rot.Seen{}); err != nil {
		t.Fatal(err)
	}
	s.tpm.Set(func(*rottest.TPM) { torn = 2 })
	_, err := s.prover.Evidence(t.Context(), req)
	wantCode(t, err, rot.CodeNotReady)
	s.evidence(t, req)
}

// TestSecureBootRefuses: variables that lie about themselves.
func TestSecureBootRefuses(t *testing.T) {
	t.Parallel()
	log, _ := bootLog(t, firmware.Options{})
	for name, edit := range map[string]func(*rot.EventLog, int){
		"twice":   func(l *rot.EventLog, at int) { l.Events = slices.Insert(l.Events, at, l.Events[at]) },
		"missing": func(l *rot.EventLog, at int) { l.Events = slices.Delete(l.Events, at, at+1) },
		"foreign": func(l *rot.EventLog, at int) { l.Events[at].Data = append([]byte{1}, l.Events[at].Data[1:]...) },
		"cut":     func(l *rot.EventLog, at int) { l.Events[at].Data = l.Events[at].Data[:31] },
		"lengths": func(l *rot.EventLog, at int) { l.Events[at].Data = append(slices.Clone(l.Events[at].Data), 0) },
		"name too long": func(l *rot.EventLog, at int) {
			d := slices.Clone(l.Events[at].Data)
			d[23] = 0xff
			l.Events[at].Data = d
		},
		"not covered": func(l *rot.EventLog, at int) { l.Events[at].DigestVerified = false },
		"after the line": func(l *rot.EventLog, at int) {
			l.Events = append(slices.Delete(slices.Clone(l.Events), at, at+1), l.Events[at])
		},
	} {
		l := parse(t, log)
		at := slices.IndexFunc(l.Events, func(e rot.Event) bool { return e.PCR == 7 })
		edit(l, at)
		if _, err := l.SecureBoot(); reason.CodeOf(err) != rot.CodeEventLog {
			t.Errorf("%s: have %v", name, err)
		}
	}
}
