package sealing

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"sync"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Enrolment is an enrolment in progress (sealing.md §6). Key and seed exist in memory only until Finish; if it breaks
// off, a counter remains that the next Begin deletes.
type Enrolment struct {
	p       Params
	pins    Pins // as found at Begin; everything later must be the same TPM
	boot    map[int][32]byte
	counter tpm.Counter

	mu   sync.Mutex
	key  secret.SealKey
	seed secret.Seed
	done bool
}

// Statement is something the attestation key signed: TPMS_ATTEST and TPMT_SIGNATURE.
type Statement struct{ Attest, Signature []byte }

// Description is what a sled shows of its TPM to be enrolled. The three statements carry the caller's extra data.
type Description struct {
	EKPublic      []byte // TPMT_PUBLIC
	EKCertificate []byte // DER; nil if the TPM has none
	AKPublic      []byte // TPMT_PUBLIC
	SRKPublic     []byte // TPMT_PUBLIC
	CounterPublic []byte // TPMS_NV_PUBLIC, with the Written bit

	EKName, AKName, SRKName, CounterName []byte

	CertifySRK     Statement
	CertifyCounter Statement
	Quote          Statement
	PCRs           map[int][32]byte // what the quote is over
	Properties     tpm.Properties
	ResetCount     uint32 // from the quote
	RestartCount   uint32
}

// Begin makes key, seed and counter of a sled that is unclaimed or has lost its seal. It deletes the counter of an earlier
// enrolment: whatever was sealed with it can never be opened again, so the caller must have made sure that the sled holds
// no usable seal. The claim index stays until Finish.
func Begin(ctx context.Context, p Params) (*Enrolment, error) {
	p, err := p.checked()
	if err != nil {
		return nil, err
	}
	e := &Enrolment{p: p}
	if e.key, err = secret.Random[secret.SealKeyKind](p.Alloc, p.Rand, keyLen); err != nil {
		return nil, err
	}
	if e.seed, err = secret.Random[secret.SeedKind](p.Alloc, p.Rand, seedLen); err == nil {
		err = p.TPM.Do(ctx, e.begin)
	}
	if err != nil {
		e.Destroy()
		return nil, err
	}
	return e, nil
}

func (e *Enrolment) begin(s *tpm.Session) error {
	srk, err := s.SRK(nil)
	if err != nil {
		return err
	}
	now, err := s.ReadPCRs(srk, e.p.PCRs)
	if err != nil {
		return err
	}
	if e.boot = maps.Clone(e.p.Measured); e.boot == nil {
		e.boot = now
	}
	if err := errors.Join(measured(e.boot), measured(now)); err != nil {
		return err
	}
	if err := remove(s, e.p.CounterIndex); err != nil {
		return err
	}
	key, err := publicKey(e.seed, labelCounter)
	if err != nil {
		return err
	}
	if e.counter, err = s.DefineCounter(srk, e.p.CounterIndex, key); err != nil {
		return err
	}
	e.pins = Pins{SRKName: bytes.Clone(srk.Name.Buffer), CounterName: bytes.Clone(e.counter.Name)}
	return nil
}

// Destroy wipes what Begin made, if Finish has not handed it on.
func (e *Enrolment) Destroy() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done = true
	e.key.Destroy()
	e.seed.Destroy()
}

// Describe collects what the controller checks. Extra binds it to nonce and connection (enrolment.md).
func (e *Enrolment) Describe(ctx context.Context, extra [32]byte) (d Description, err error) {
	d.Properties = e.p.TPM.Properties()
	err = e.p.TPM.Do(ctx, func(s *tpm.Session) error {
		srk, err := s.SRK(e.pins.SRKName)
		if err != nil {
			return err
		}
		if err := d.endorsement(s); err != nil {
			return err
		}
		ak, err := s.AK(nil)
		if err != nil {
			return err
		}
		d.AKPublic, d.AKName = ak.Marshal(), bytes.Clone(ak.Name.Buffer)
		d.SRKPublic, d.SRKName = srk.Marshal(), bytes.Clone(srk.Name.Buffer)
		if d.CounterPublic, err = counterPublic(e.counter); err != nil {
			return err
		}
		d.CounterName = bytes.Clone(e.counter.Name)
		return d.attest(s, srk, ak, e, extra)
	})
	return d, err
}

// endorsement describes the endorsement key and frees its slot.
func (d *Description) endorsement(s *tpm.Session) error {
	ek, err := s.EK(nil)
	if err != nil {
		return err
	}
	d.EKPublic, d.EKName = ek.Marshal(), bytes.Clone(ek.Name.Buffer)
	if d.EKCertificate, err = s.EKCertificate(); err != nil {
		return err
	}
	const transient = 0x80000000
	if uint32(ek.Handle)&0xff000000 != transient {
		return nil
	}
	return s.Flush(ek.Handle)
}

func (d *Description) attest(s *tpm.Session, srk, ak tpm.Key, e *Enrolment, extra [32]byte) (err error) {
	if d.CertifySRK.Attest, d.CertifySRK.Signature, err = s.Certify(ak, srk, extra); err != nil {
		return err
	}
	if d.CertifyCounter.Attest, d.CertifyCounter.Signature, err = s.CertifyCounter(ak, e.counter, extra); err != nil {
		return err
	}
	if d.PCRs, err = s.ReadPCRs(srk, e.p.QuotePCRs); err != nil {
		return err
	}
	if d.Quote.Attest, d.Quote.Signature, err = s.Quote(ak, extra, e.p.QuotePCRs); err != nil {
		return err
	}
	quote, err := tpm2.Unmarshal[tpm2.TPMSAttest](d.Quote.Attest)
	if err != nil {
		return reason.Wrap(err, tpm.CodeAnswer, hintUnseal, "sealing: quote")
	}
	d.ResetCount, d.RestartCount = quote.ClockInfo.ResetCount, quote.ClockInfo.RestartCount
	return nil
}

// counterPublic is the counter's public area, from which its Name follows.
func counterPublic(c tpm.Counter) ([]byte, error) {
	policy, err := tpm.CounterPolicy(c.Key)
	if err != nil {
		return nil, err
	}
	public := tpm2.TPMSNVPublic{
		NVIndex: c.Index, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTCounter, PolicyWrite: true, AuthRead: true, NoDA: true, Written: true},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy[:]},
	}
	name, err := tpm2.NVName(&public)
	if err != nil || !bytes.Equal(name.Buffer, c.Name) {
		return nil, usage("counter's public area does not give its name")
	}
	return tpm2.Marshal(public), nil
}

// Activate answers the controller's credential, which proves that AK and EK live in this TPM. The result is the secret
// in it; the caller makes its proof from it and wipes it.
func (e *Enrolment) Activate(ctx context.Context, idObject, encSecret []byte) (out []byte, err error) {
	err = e.p.TPM.Do(ctx, func(s *tpm.Session) error {
		ek, err := s.EK(nil)
		if err != nil {
			return err
		}
		ak, err := s.AK(nil)
		if err != nil {
			return err
		}
		out, err = s.ActivateCredential(ak, ek, idObject, encSecret)
		return err
	})
	return out, err
}

// Finish seals key and seed for the rack, opens the seal once as a test, and makes the TPM remember the rack. The
// enrolment is used up. The caller writes the first ledger next; if it is cut off in between, the TPM remembers a rack
// of which there is no ledger, and the sled is enrolled again.
func (e *Enrolment) Finish(ctx context.Context, rack ident.RackID, claim Claim) (*Unsealed, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done {
		return nil, reason.New(CodeOrder, "begin the enrolment again", "sealing: this enrolment was finished or given up")
	}
	if rack.IsZero() || claim.Rack != rack {
		return nil, usage("claim of rack %s for rack %s", claim.Rack, rack)
	}
	u := &Unsealed{p: e.p, pins: e.pins, rack: rack, key: e.key, seed: e.seed, boot: e.boot}
	e.done = true
	e.key, e.seed = secret.SealKey{}, secret.Seed{}
	if err := u.finish(ctx, e.counter, claim); err != nil {
		u.Destroy()
		return nil, err
	}
	return u, nil
}

func (u *Unsealed) finish(ctx context.Context, counter tpm.Counter, claim Claim) (err error) {
	if u.auth, err = newAuth(u.p); err != nil {
		return err
	}
	if err := u.seal(ctx, counter); err != nil {
		return err
	}
	if err := u.test(ctx); err != nil {
		return err
	}
	auth, err := claimAuth(u.p.Alloc, u.seed)
	if err != nil {
		return err
	}
	defer auth.Destroy()
	return u.do(ctx, func(s *tpm.Session, srk tpm.Key) error {
		return auth.Use(func(a []byte) error { return replaceClaim(s, srk, u.p.claimIndex(), a, claim) })
	})
}

// now approves the state of the moment, in memory only.
func (u *Unsealed) now(ctx context.Context, sequence uint64) ([]Approval, error) {
	a := ApprovalInfo{Sequence: sequence}
	if err := u.do(ctx, func(s *tpm.Session, srk tpm.Key) (err error) {
		a.PCRs, err = s.ReadPCRs(srk, u.p.PCRs)
		return err
	}); err != nil {
		return nil, err
	}
	if err := u.sign(&a); err != nil {
		return nil, err
	}
	return []Approval{a.encode()}, nil
}

// seal makes the sealed object and the blob around it.
func (u *Unsealed) seal(ctx context.Context, counter tpm.Counter) error {
	info := BlobInfo{CounterKey: counter.Key, CounterIndex: u.p.CounterIndex}
	var err error
	if info.PolicyKey, err = publicKey(u.seed, labelPolicy); err != nil {
		return err
	}
	name, err := policyKeyName(info.PolicyKey)
	if err != nil {
		return err
	}
	policy := sealPolicy(name, policyRef(u.rack, u.p.Baseboard))
	err = u.withSealed(func(auth, sealed []byte) error {
		return u.do(ctx, func(s *tpm.Session, srk tpm.Key) (err error) {
			info.Public, info.Private, err = create(s, srk, policy, auth, sealed)
			return err
		})
	})
	if err != nil {
		return err
	}
	raw, err := info.encode()
	if err != nil {
		return err
	}
	u.v, err = verify(u.p, u.pins, u.rack, raw)
	return err
}

// withSealed lends auth value and the 64 bytes to seal: key, then seed.
func (u *Unsealed) withSealed(f func(auth, sealed []byte) error) error {
	both, err := secret.New[secret.PlaintextKind](u.p.Alloc, sealedLen, func(b []byte) error {
		if err := u.key.Use(func(k []byte) error { copy(b, k); return nil }); err != nil {
			return err
		}
		return u.seed.Use(func(s []byte) error { copy(b[keyLen:], s); return nil })
	})
	if err != nil {
		return err
	}
	defer both.Destroy()
	return u.auth.Use(func(auth []byte) error {
		return both.Use(func(sealed []byte) error { return f(auth, sealed) })
	})
}
