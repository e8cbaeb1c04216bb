package enroll

import (
	"crypto/hmac"
	"crypto/sha256"

	"github.com/sledvault/sledvault/vault/ident"
)

// The claim of a sled (enrolment.md §5): three calls on one connection. The JSON forms carry bytes as base64.
const (
	beginDomain    = "sledvault/enroll/v1"
	activateDomain = "sledvault/activate/v1"
	answerDomain   = "sledvault/enroll-answer/v1"

	// NonceSize is the length of the controller's nonce, ExporterSize that of the exported keying material.
	NonceSize    = 32
	ExporterSize = 32
)

// EnrollExtra is the extraData of everything that the attestation key signs for step 1: it ties the answer to the
// controller's nonce and to the TLS connection.
func EnrollExtra(nonce [NonceSize]byte, exporter [ExporterSize]byte) [32]byte {
	b := append([]byte(beginDomain), nonce[:]...)
	return sha256.Sum256(append(b, exporter[:]...))
}

// ActivateMAC is the answer to step 2: who can compute it has the secret that only the TPM with both keys releases, and
// gave the answer to step 1 on the same connection. Compare with [hmac.Equal].
func ActivateMAC(secret []byte, answer [32]byte, exporter [ExporterSize]byte) [32]byte {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(activateDomain))
	m.Write(answer[:])
	m.Write(exporter[:])
	return [32]byte(m.Sum(nil))
}

// BeginRequest opens a claim.
type BeginRequest struct {
	Nonce []byte `json:"nonce"` // 32 random bytes of the controller
}

// Check returns the nonce.
func (r BeginRequest) Check() (nonce [NonceSize]byte, err error) {
	if len(r.Nonce) != NonceSize {
		return nonce, refuse(CodeBegin, "", "begin: have a nonce of %d bytes, want %d", len(r.Nonce), NonceSize)
	}
	return [NonceSize]byte(r.Nonce), nil
}

// Signed is a structure that the attestation key signed.
type Signed struct {
	Attest    []byte `json:"attest"`    // TPMS_ATTEST
	Signature []byte `json:"signature"` // TPMT_SIGNATURE
}

// PCRValue is the value of one register in the SHA-256 bank.
type PCRValue struct {
	PCR   int    `json:"pcr"`
	Value []byte `json:"value"`
}

// Properties is what the TPM says about itself.
type Properties struct {
	Manufacturer string `json:"manufacturer"`
	Firmware     uint64 `json:"firmware"`
}

// BeginResponse shows the sled's TPM and its state. Everything in it is either signed with [EnrollExtra], or checked
// against what is.
type BeginResponse struct {
	Baseboard      ident.Baseboard `json:"baseboard"`      // "part:serial", from the service processor
	EKPublic       []byte          `json:"ek_public"`      // TPMT_PUBLIC
	EKCertificate  []byte          `json:"ek_certificate"` // DER, or empty
	AKPublic       []byte          `json:"ak_public"`      // TPMT_PUBLIC
	SRKPublic      []byte          `json:"srk_public"`     // TPMT_PUBLIC
	CounterPublic  []byte          `json:"counter_public"` // TPMS_NV_PUBLIC
	CertifySRK     Signed          `json:"certify_srk"`
	CertifyCounter Signed          `json:"certify_counter"`
	Quote          Signed          `json:"quote"`
	PCRs           []PCRValue      `json:"pcrs"`      // ascending
	EventLog       []byte          `json:"event_log"` // TCG2 binary log
	Properties     Properties      `json:"properties"`
	ResetCount     uint32          `json:"reset_count"`
}

// ActivateRequest carries the credential for the endorsement key.
type ActivateRequest struct {
	IDObject        []byte `json:"id_object"`
	EncryptedSecret []byte `json:"encrypted_secret"`
}

// ActivateResponse proves that the credential was opened.
type ActivateResponse struct {
	MAC []byte `json:"mac"` // [ActivateMAC]
}

// Verify compares the answer in constant time.
func (r ActivateResponse) Verify(secret []byte, answer [32]byte, exporter [ExporterSize]byte) error {
	want := ActivateMAC(secret, answer, exporter)
	if !hmac.Equal(r.MAC, want[:]) {
		return refuse(CodeBegin, "the attestation key is not in the TPM that the rack file names", "activate: wrong answer")
	}
	return nil
}

// The answer's digest covers every field in a form that does not depend on how JSON was written.
type answerWire struct {
	_            struct{} `cbor:",toarray"`
	Domain       string
	Part, Serial string
	EK, EKCert   []byte
	AK, SRK      []byte
	Counter      []byte
	Signed       [][]byte // attest and signature of SRK, counter, quote
	PCRs         [][]byte // register in one byte, then the value
	EventLog     []byte
	Manufacturer string
	Firmware     uint64
	ResetCount   uint32
}

// Digest identifies the answer on both sides.
func (r *BeginResponse) Digest() [32]byte {
	w := answerWire{
		Domain: answerDomain, Part: r.Baseboard.Part, Serial: r.Baseboard.Serial, EK: r.EKPublic,
		EKCert: r.EKCertificate, AK: r.AKPublic, SRK: r.SRKPublic, Counter: r.CounterPublic,
		Signed: [][]byte{
			r.CertifySRK.Attest, r.CertifySRK.Signature, r.CertifyCounter.Attest, r.CertifyCounter.Signature,
			r.Quote.Attest, r.Quote.Signature,
		},
		EventLog: r.EventLog, Manufacturer: r.Properties.Manufacturer, Firmware: r.Properties.Firmware,
		ResetCount: r.ResetCount,
	}
	for _, p := range r.PCRs {
		w.PCRs = append(w.PCRs, append([]byte{byte(p.PCR)}, p.Value...)) // checked to be below 24
	}
	return sha256.Sum256(encode(w))
}

// Check refuses an answer that is incomplete or oversized. Whether its signatures are good is for package rot to say.
func (r *BeginResponse) Check() error {
	bad := func(format string, args ...any) error { return refuse(CodeBegin, "", "begin: "+format, args...) }
	if err := r.Baseboard.Validate(); err != nil {
		return bad("%v", err)
	}
	for _, p := range [][]byte{r.EKPublic, r.AKPublic, r.SRKPublic} {
		if _, err := PublicName(p); err != nil {
			return err
		}
	}
	if _, err := NVName(r.CounterPublic); err != nil {
		return err
	}
	for _, s := range []Signed{r.CertifySRK, r.CertifyCounter, r.Quote} {
		if len(s.Attest) == 0 || len(s.Attest) > maxArea || len(s.Signature) == 0 || len(s.Signature) > maxArea {
			return bad("have a signed structure of %d bytes with a signature of %d, want 1 to %d", len(s.Attest), len(s.Signature), maxArea)
		}
	}
	if len(r.EKCertificate) > maxCertificate || len(r.EventLog) > maxEventLog || len(r.Properties.Manufacturer) > maxText {
		return bad("certificate, event log or manufacturer is too long")
	}
	for i, p := range r.PCRs {
		if p.PCR < 0 || p.PCR >= maxPCRs || len(p.Value) != 32 || (i > 0 && r.PCRs[i-1].PCR >= p.PCR) {
			return bad("registers must be ascending, below %d, with 32 bytes each", maxPCRs)
		}
	}
	return nil
}

const (
	maxCertificate = 16 << 10
	maxEventLog    = 1 << 20
)

// Record makes the record of a checked answer: version, baseboard, Names, what the TPM said. The caller adds the
// counter's value, which the counter's certificate shows, the policy (Manifest, or PCRs), and Replaces when the operator
// decided that this device takes the place of another.
func (r *BeginResponse) Record(counter uint64) (Record, error) {
	if err := r.Check(); err != nil {
		return Record{}, err
	}
	rec := Record{
		Baseboard: r.Baseboard, AKPublic: r.AKPublic, SRKPublic: r.SRKPublic, Counter: counter, Kind: KindTPM,
		ResetCount: r.ResetCount,
		Firmware:   &Firmware{Manufacturer: r.Properties.Manufacturer, Version: r.Properties.Firmware, Minimum: r.Properties.Firmware},
	}
	var err error
	for _, n := range []struct {
		to   *[]byte
		name func([]byte) ([]byte, error)
		from []byte
	}{
		{&rec.EKName, PublicName, r.EKPublic},
		{&rec.AKName, PublicName, r.AKPublic},
		{&rec.SRKName, PublicName, r.SRKPublic},
		{&rec.CounterName, NVName, r.CounterPublic},
	} {
		if *n.to, err = n.name(n.from); err != nil {
			return Record{}, err
		}
	}
	if len(r.EKCertificate) > 0 {
		d := sha256.Sum256(r.EKCertificate)
		rec.EKCertificate = d[:]
	}
	return rec.Clone(), nil
}

// Pin returns the answer's registers as a policy by value.
func (r *BeginResponse) Pin(pcrs []int) (map[int][][32]byte, error) {
	out := map[int][][32]byte{}
	for _, want := range pcrs {
		for _, p := range r.PCRs {
			if p.PCR == want && len(p.Value) == 32 {
				out[want] = [][32]byte{[32]byte(p.Value)}
			}
		}
		if out[want] == nil {
			return nil, refuse(CodeBegin, "", "begin: register %d is not in the answer", want)
		}
	}
	return out, nil
}
