package controller_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel/channeltest"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/rot/rottest"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/reason"
)

// enroller is the enrolment side of a fake sled: an endorsement key and a counter that exist in Go memory only, and what a
// daemon does with them.
type enroller struct {
	sled        *fakeSled
	fingerprint string
	ek          *ecdh.PrivateKey
	ekPublic    []byte
	srk         *rottest.TPM
	prover      *rot.Prover

	mu        sync.Mutex
	conn      *api.Conn
	answer    [32]byte
	record    enroll.Record
	activated bool
	loseSet   bool // dies before it adopts its first set
	loseReply bool // dies after it has adopted it
	liesMAC   bool
	otherID   *ident.Baseboard
}

// unclaimedRack makes a rack of n sleds that nobody has enrolled.
func unclaimedRack(t *testing.T, n int) *testRack {
	t.Helper()
	r := &testRack{t: t, dir: filepath.Join(t.TempDir(), "rack")}
	fp, recovery, err := controller.NewRack(r.dir, "test")
	must(t, err)
	clear(recovery)
	for i := range n {
		s := &fakeSled{
			Sled: channeltest.NewSled(t, fmt.Sprintf("SIM%04d", i+1)), rack: r, changed: make(chan struct{}), version: 1, state: api.StateUnclaimed,
			configs: map[ident.Epoch]*quorum.Configuration{}, commits: map[ident.Epoch]*quorum.Certificate{}, calls: map[string]int{},
		}
		s.enrol = newEnroller(t, s, fp)
		s.start("127.0.0.1:0")
		r.sleds = append(r.sleds, s)
	}
	r.writeUnclaimed(nil)
	return r
}

// writeUnclaimed writes the rack file, with other EK names where the map says so.
func (r *testRack) writeUnclaimed(other map[int]string) {
	var b strings.Builder
	b.WriteString("name = \"test\"\n")
	for i, s := range r.sleds {
		name, err := enroll.PublicName(s.enrol.ekPublic)
		must(r.t, err)
		ek := hex.EncodeToString(name)
		if o := other[i]; o != "" {
			ek = o
		}
		fmt.Fprintf(&b, "[[sled]]\nname = \"s%d\"\npart = %q\nserial = %q\nunderlay = %q\nek_name = %q\n", i+1, s.ID.Part, s.ID.Serial, s.addr, ek)
	}
	must(r.t, os.WriteFile(filepath.Join(r.dir, "rack.toml"), []byte(b.String()), 0o600))
}

func newEnroller(t *testing.T, s *fakeSled, fp string) *enroller {
	t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	must(t, err)
	point := key.PublicKey().Bytes() // 4, x, y
	pub := tpm2.ECCEKTemplate
	pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})
	e := &enroller{sled: s, fingerprint: fp, ek: key, ekPublic: tpm2.Marshal(pub), srk: rottest.NewTPM("srk of " + s.ID.Serial)}
	e.prover, err = rot.NewProver(rot.ProverConfig{Attestor: attestor{s.TPM}, Baseboard: s.ID, Facts: s.Facts.Get})
	must(t, err)
	t.Cleanup(e.prover.Close)
	return e
}

// counterPublic is the TPMS_NV_PUBLIC of the counter.
func counterPublic() []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x01805c01)
	b = binary.BigEndian.AppendUint16(b, 0x000b)
	b = binary.BigEndian.AppendUint32(b, 0x00060014)
	return append(b, 0, 0, 0, 8)
}

// attestor is the fake TPM with a counter whose Name follows from its public area.
type attestor struct{ *rottest.TPM }

// CertifyCounter implements [rot.Attestor].
func (a attestor) CertifyCounter(_ context.Context, extra [32]byte) (attest, sig []byte, err error) {
	name, err := enroll.NVName(counterPublic())
	if err != nil {
		return nil, nil, err
	}
	var b []byte
	a.Set(func(t *rottest.TPM) {
		t.Clock++
		b = binary.BigEndian.AppendUint32(nil, 0xff544347)
		b = binary.BigEndian.AppendUint16(b, 0x8014)
		b = append(append(b, 0, 34), t.AKName()...)
		b = append(append(b, 0, 32), extra[:]...)
		b = binary.BigEndian.AppendUint64(b, t.Clock)
		b = binary.BigEndian.AppendUint32(b, t.Reset)
		b = binary.BigEndian.AppendUint32(b, t.Restart)
		b = append(b, 1)
		b = binary.BigEndian.AppendUint64(b, t.Firmware)
		b = append(append(b, 0, 34), name...)
		b = append(b, 0, 0, 0, 8)
		b = binary.BigEndian.AppendUint64(b, t.Counter)
	})
	return b, a.Sign(b), nil
}

// begin makes a new counter, as each attempt does, and shows the TPM.
func (e *enroller) begin(c *api.Conn, r enroll.BeginRequest) (out enroll.BeginResponse, err error) {
	nonce, err := r.Check()
	if err != nil {
		return out, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.sled
	s.TPM.Set(func(t *rottest.TPM) { t.Counter += 10 })
	f := s.Facts.Get()
	f.LedgerSequence += 10
	s.Facts.Set(f)
	e.prover.CounterMoved()
	extra := enroll.EnrollExtra(nonce, c.Exporter)
	out = enroll.BeginResponse{
		Baseboard: s.ID, EKPublic: e.ekPublic, AKPublic: s.TPM.AKPublic(), SRKPublic: e.srk.AKPublic(), CounterPublic: counterPublic(),
		Properties: enroll.Properties{Manufacturer: "FAKE", Firmware: s.TPM.Firmware}, ResetCount: s.TPM.Reset,
	}
	if e.otherID != nil {
		out.Baseboard = *e.otherID
	}
	out.CertifySRK.Attest, out.CertifySRK.Signature = s.TPM.Certify(extra, e.srk.AKName())
	if out.CertifyCounter.Attest, out.CertifyCounter.Signature, err = (attestor{s.TPM}).CertifyCounter(context.Background(), extra); err != nil {
		return out, err
	}
	q, err := s.TPM.Quote(context.Background(), extra, rot.DefaultPCRs())
	if err != nil {
		return out, err
	}
	out.Quote.Attest, out.Quote.Signature = q.Attest, q.Signature
	for i, p := range rot.DefaultPCRs() {
		out.PCRs = append(out.PCRs, enroll.PCRValue{PCR: p, Value: bytes.Clone(q.PCRs[i][:])})
	}
	if out.EventLog, err = s.TPM.EventLog(context.Background()); err != nil {
		return out, err
	}
	e.conn, e.answer, e.activated = c, out.Digest(), false
	e.record, err = out.Record(s.TPM.Counter)
	return out, err
}

// activate opens the credential as a TPM with this endorsement key does (TPM Part 1, credential protection).
func (e *enroller) activate(c *api.Conn, r enroll.ActivateRequest) (out enroll.ActivateResponse, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c != e.conn {
		return out, reason.New("enroll-order", "hint", "fake: another connection")
	}
	secret, err := e.open(r)
	if err != nil {
		return out, err
	}
	e.activated = true
	mac := enroll.ActivateMAC(secret, e.answer, c.Exporter)
	if e.liesMAC {
		mac[0] ^= 1
	}
	return enroll.ActivateResponse{MAC: mac[:]}, nil
}

func (e *enroller) open(r enroll.ActivateRequest) ([]byte, error) {
	point, err := tpm2.Unmarshal[tpm2.TPMSECCPoint](r.EncryptedSecret)
	if err != nil {
		return nil, err
	}
	eph, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, point.X.Buffer...), point.Y.Buffer...))
	if err != nil {
		return nil, err
	}
	z, err := e.ek.ECDH(eph)
	if err != nil {
		return nil, err
	}
	name := e.sled.TPM.AKName()
	seed := tpm2.KDFe(crypto.SHA256, z, "IDENTITY", point.X.Buffer, e.ek.PublicKey().Bytes()[1:33], 256)
	if len(r.IDObject) < 34 {
		return nil, errors.New("fake: short credential")
	}
	m := hmac.New(sha256.New, tpm2.KDFa(crypto.SHA256, seed, "INTEGRITY", nil, nil, 256))
	m.Write(r.IDObject[34:])
	m.Write(name)
	if !hmac.Equal(m.Sum(nil), r.IDObject[2:34]) {
		return nil, reason.New("fake-credential", "hint", "fake: the credential is for another key")
	}
	block, err := aes.NewCipher(tpm2.KDFa(crypto.SHA256, seed, "STORAGE", name, nil, 128))
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(r.IDObject)-34)
	cipher.NewCFBDecrypter(block, make([]byte, 16)).XORKeyStream(plain, r.IDObject[34:]) //nolint:staticcheck // the TPM's mode
	d, err := tpm2.Unmarshal[tpm2.TPM2BDigest](plain)
	if err != nil {
		return nil, err
	}
	return d.Buffer, nil
}

// first adopts the first set: on the activated connection, with a record of this TPM.
func (e *enroller) first(c *api.Conn, envelope []byte) (uint64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c != e.conn || !e.activated {
		return 0, reason.New("enroll-order", "hint", "fake: not activated")
	}
	if e.loseSet {
		return 0, reason.Later("fake-crash", "hint", "fake: crashed before it adopted the set")
	}
	set, err := enroll.DecodeSet(envelope)
	if err != nil {
		return 0, err
	}
	if err := set.VerifyFirst(e.fingerprint); err != nil {
		return 0, err
	}
	rec, ok := set.Find(e.sled.ID)
	if !ok || !bytes.Equal(rec.EKName, e.record.EKName) || rec.Counter != e.record.Counter {
		return 0, reason.New("enroll-other", "hint", "fake: no record of this sled")
	}
	e.sled.SetSet(set)
	e.sled.mu.Lock()
	e.sled.state = api.StateClaimed
	e.sled.mu.Unlock()
	if e.loseReply {
		return 0, reason.Later("fake-crash", "hint", "fake: crashed after it adopted the set")
	}
	return set.Generation, nil
}

func (r *testRack) enroll() ([]controller.Enrolled, error) {
	r.t.Helper()
	return r.open().Enroll(r.t.Context())
}

// wantStates compares the outcome per sled.
func wantStates(t *testing.T, out []controller.Enrolled, want ...string) {
	t.Helper()
	for i, o := range out {
		if o.State != want[i] || (o.Error == nil) != (want[i] != controller.Waiting) {
			t.Errorf("%s: have %s %+v, want %s", o.Sled, o.State, o.Error, want[i])
		}
	}
}

func TestEnroll(t *testing.T) {
	t.Parallel()
	r := unclaimedRack(t, 3)
	out, err := r.enroll()
	must(t, err)
	wantStates(t, out, controller.NewlyEnrolled, controller.NewlyEnrolled, controller.NewlyEnrolled)
	out, err = r.enroll()
	must(t, err)
	wantStates(t, out, controller.Unchanged, controller.Unchanged, controller.Unchanged)
	for _, s := range r.sleds {
		if s.Set().Generation != 2 || len(s.Set().Records) != 3 || s.called("attest") == 0 {
			t.Errorf("%s: have generation %d, %d records, %v", s.ID, s.Set().Generation, len(s.Set().Records), s.calls)
		}
	}
	r.wantDone(1)
}

// TestEnrollCrash: the set is saved, and a sled dies before it adopts it, or after. The next run heals both, although the
// other sleds have seen the first record already.
func TestEnrollCrash(t *testing.T) {
	t.Parallel()
	r := unclaimedRack(t, 3)
	r.sleds[1].enrol.loseSet, r.sleds[2].enrol.loseReply = true, true
	out, err := r.enroll()
	if reason.RemedyOf(err) != reason.Retry {
		t.Errorf("have %v, want try again", err)
	}
	wantStates(t, out, controller.NewlyEnrolled, controller.Waiting, controller.Waiting)
	out, err = r.enroll() // once more in vain: the record replaces one that only some have seen
	if err == nil {
		t.Error("want an error")
	}
	wantStates(t, out, controller.Unchanged, controller.Waiting, controller.Unchanged)
	r.sleds[1].enrol.loseSet = false
	out, err = r.enroll()
	must(t, err)
	wantStates(t, out, controller.Unchanged, controller.NewlyEnrolled, controller.Unchanged)
	out, err = r.enroll()
	must(t, err)
	wantStates(t, out, controller.Unchanged, controller.Unchanged, controller.Unchanged)
	r.wantDone(1)
}

// TestEnrollUnreachable: sleds that are away are left for the next run.
func TestEnrollUnreachable(t *testing.T) {
	t.Parallel()
	r := unclaimedRack(t, 3)
	r.sleds[0].stop()
	out, err := r.enroll()
	if reason.RemedyOf(err) != reason.Retry {
		t.Errorf("have %v", err)
	}
	wantStates(t, out, controller.Waiting, controller.NewlyEnrolled, controller.NewlyEnrolled)
	r.sleds[0].start(r.sleds[0].addr)
	out, err = r.enroll()
	must(t, err)
	wantStates(t, out, controller.NewlyEnrolled, controller.Unchanged, controller.Unchanged)
}

// TestEnrollRefused: who is not whom the rack file names does not enter the set; the others do.
func TestEnrollRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*testRack)
		code  reason.Code
	}{
		"foreign-ek":      {func(r *testRack) { r.writeUnclaimed(map[int]string{0: "000b" + strings.Repeat("0", 64)}) }, controller.CodeForeignEK},
		"other baseboard": {func(r *testRack) { r.sleds[0].enrol.otherID = &ident.Baseboard{Part: "x", Serial: "y"} }, controller.CodeImposter},
		"proves nothing":  {func(r *testRack) { r.sleds[0].enrol.liesMAC = true }, ""},
		"EK of another": {func(r *testRack) { // shows the public half of an endorsement key that it does not have
			r.sleds[0].enrol.ekPublic = r.sleds[1].enrol.ekPublic
			name, err := enroll.PublicName(r.sleds[1].enrol.ekPublic)
			must(r.t, err)
			r.writeUnclaimed(map[int]string{0: hex.EncodeToString(name), 1: "000b" + strings.Repeat("7", 64)})
		}, ""},
		"tampered log": {func(r *testRack) { r.sleds[0].TPM.Extend(4, [32]byte{1}) }, rot.CodeEventLog},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := unclaimedRack(t, 3)
			c.spoil(r)
			out, err := r.enroll()
			if err == nil || reason.RemedyOf(err) == reason.Retry {
				t.Errorf("have %v, want a refusal", err)
			}
			if out[0].Error == nil || c.code != "" && out[0].Error.Code != c.code || out[0].Error.Hint == "" {
				t.Errorf("have %+v, want %s", out[0].Error, c.code)
			}
			if r.sleds[0].Set() != nil || r.sleds[2].Set() == nil {
				t.Error("the wrong sled was enrolled")
			} else if _, ok := r.sleds[2].Set().Find(r.sleds[0].ID); ok {
				t.Error("the sled that was refused has a record")
			}
		})
	}
}
