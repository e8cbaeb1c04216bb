// Package rottest holds fakes of what package rot needs, and the contract suite that they share with real TPMs.
//
// The fake TPM is an ECDSA key, 24 registers, three counts and a counter in Go memory. It signs what a TPM would sign,
// bit for bit, and can be told to do it wrongly. Read next: suite.go, and docs/evidence.md for the formats.
package rottest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"sync"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
)

// TPM is a software TPM as far as evidence goes. It is safe for concurrent use. Fields may be set between calls under
// [TPM.Set].
type TPM struct {
	mu       sync.Mutex
	key      *ecdsa.PrivateKey
	public   []byte
	seed     string
	Firmware uint64
	Reset    uint32
	Restart  uint32
	Safe     bool
	Clock    uint64 // milliseconds; each attestation adds one
	Counter  uint64
	PCRs     [24][32]byte
	Log      []byte
	Err      error                      // returned by every command while set
	Gate     func(ctx context.Context)  // called at the start of each quote, outside the lock
	Mangle   func(attest []byte) []byte // changes what is signed
	Quotes   int
	Certs    int
}

// NewTPM makes a powered-off TPM whose keys follow from the seed. It starts with reset count 7 and counter 3.
func NewTPM(seed string) *TPM {
	d := sha256.Sum256([]byte("rottest key " + seed))
	d[0] &= 0x7f
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:])
	if err != nil {
		panic("rottest: key: " + err.Error())
	}
	return &TPM{key: key, public: akPublic(key), seed: seed, Firmware: 0x20240101, Reset: 7, Safe: true, Clock: 1000, Counter: 3}
}

// Boot power-cycles the TPM and lets the simulated firmware measure a start.
func (t *TPM) Boot(o firmware.Options) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Reset++
	t.Restart = 0
	t.PCRs = [24][32]byte{}
	t.PCRs[0][31] = o.Locality
	log, err := firmware.Boot(o, func(pcr int, digest [32]byte) error {
		t.extend(pcr, digest)
		return nil
	})
	t.Log = log
	return err
}

// Set changes the TPM under its lock.
func (t *TPM) Set(f func(*TPM)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(t)
}

// Extend extends one register, as software on the host may.
func (t *TPM) Extend(pcr int, digest [32]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.extend(pcr, digest)
}

func (t *TPM) extend(pcr int, digest [32]byte) {
	t.PCRs[pcr] = sha256.Sum256(append(t.PCRs[pcr][:], digest[:]...))
}

// AKName is the Name of the attestation key.
func (t *TPM) AKName() []byte {
	d := sha256.Sum256(t.public)
	return append([]byte{0, 0x0b}, d[:]...)
}

// EKName is an invented Name that follows from the seed.
func (t *TPM) EKName() []byte { return inventedName("ek " + t.seed) }

// CounterName is an invented Name that follows from the seed.
func (t *TPM) CounterName() []byte { return inventedName("counter " + t.seed) }

func inventedName(s string) []byte {
	d := sha256.Sum256([]byte(s))
	return append([]byte{0, 0x0b}, d[:]...)
}

// AKPublic implements [rot.Attestor].
func (t *TPM) AKPublic() []byte { return slices.Clone(t.public) }

// EventLog implements [rot.Attestor].
func (t *TPM) EventLog(context.Context) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.Log), t.Err
}

// Quote implements [rot.Attestor].
func (t *TPM) Quote(ctx context.Context, extra [32]byte, pcrs []int) (rot.Quoted, error) {
	t.mu.Lock()
	gate := t.Gate
	t.mu.Unlock()
	if gate != nil {
		gate(ctx)
	}
	if err := ctx.Err(); err != nil {
		return rot.Quoted{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Quotes++
	if t.Err != nil {
		return rot.Quoted{}, t.Err
	}
	var bitmap [3]byte
	var values [][32]byte
	h := sha256.New()
	for _, p := range pcrs {
		bitmap[p/8] |= 1 << (p % 8)
		values = append(values, t.PCRs[p])
		h.Write(t.PCRs[p][:])
	}
	body := []byte{0, 0, 0, 1, 0, 0x0b, 3, bitmap[0], bitmap[1], bitmap[2], 0, 32}
	attest, sig := t.sign(0x8018, extra[:], h.Sum(body))
	return rot.Quoted{Attest: attest, Signature: sig, PCRs: values}, nil
}

// CertifyCounter implements [rot.Attestor].
func (t *TPM) CertifyCounter(ctx context.Context, extra [32]byte) (attest, sig []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Certs++
	if t.Err != nil {
		return nil, nil, t.Err
	}
	body := append([]byte{0, 34}, t.CounterName()...)
	body = append(body, 0, 0, 0, 8)
	attest, sig = t.sign(0x8014, extra[:], binary.BigEndian.AppendUint64(body, t.Counter))
	return attest, sig, nil
}

// Certify signs the Name of an object, as TPM2_Certify does.
func (t *TPM) Certify(extra [32]byte, objectName []byte) (attest, sig []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	body := append([]byte{0, byte(len(objectName))}, objectName...)
	return t.sign(0x8017, extra[:], append(body, 0, 2, 0, 0x0b))
}

// sign builds a TPMS_ATTEST and a TPMT_SIGNATURE.
func (t *TPM) sign(typ uint16, extra, body []byte) (attest, sig []byte) {
	t.Clock++
	b := binary.BigEndian.AppendUint32(nil, 0xff544347)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = append(append(b, 0, 34), t.AKName()...)
	b = append(append(b, 0, byte(len(extra))), extra...)
	b = binary.BigEndian.AppendUint64(b, t.Clock)
	b = binary.BigEndian.AppendUint32(b, t.Reset)
	b = binary.BigEndian.AppendUint32(b, t.Restart)
	if t.Safe {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = binary.BigEndian.AppendUint64(b, t.Firmware)
	b = append(b, body...)
	if t.Mangle != nil {
		b = t.Mangle(b)
	}
	return b, t.Sign(b)
}

// Sign signs arbitrary bytes with the attestation key, which no real TPM does.
func (t *TPM) Sign(b []byte) []byte {
	digest := sha256.Sum256(b)
	r, s, err := ecdsa.Sign(rand.Reader, t.key, digest[:])
	if err != nil {
		panic("rottest: sign: " + err.Error())
	}
	out := []byte{0, 0x18, 0, 0x0b, 0, 32}
	out = append(out, r.FillBytes(make([]byte, 32))...)
	out = append(out, 0, 32)
	return append(out, s.FillBytes(make([]byte, 32))...)
}

// ErrDead is an error for [TPM.Err].
var ErrDead = errors.New("rottest: the TPM does not answer")

// akPublic is the TPMT_PUBLIC of an attestation key.
func akPublic(key *ecdsa.PrivateKey) []byte {
	point, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		panic("rottest: public key: " + err.Error())
	}
	b := []byte{0, 0x23, 0, 0x0b, 0, 5, 0, 0x72, 0, 0, 0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10, 0, 32}
	b = append(b, point[1:33]...)
	return append(append(b, 0, 32), point[33:]...)
}

// ExtendPCR is [TPM.Extend], for the contract suite.
func (t *TPM) ExtendPCR(pcr int, digest [32]byte) error {
	t.Extend(pcr, digest)
	return nil
}

// Advance increments the counter.
func (t *TPM) Advance() (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Counter++
	return t.Counter, nil
}

// Value is the counter's value.
func (t *TPM) Value() (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Counter, nil
}
