package rot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/sledvault/sledvault/vault/ident"
)

// Limits of what is accepted, in bytes.
const (
	MaxEvidence = 2 << 20
	MaxEventLog = 1 << 20
)

// The kinds of evidence.
const (
	KindTPM  = "tpm"
	KindDICE = "dice"
)

// Role says which end of a connection proves itself. It keeps evidence of one end from serving the other.
type Role byte

// The roles.
const (
	RoleDialer   Role = 'C'
	RoleAcceptor Role = 'S'
	RoleUnderlay Role = 'H' // a sled to the controller, over HTTPS
)

// Request is what a verifier asks for: everything of the connection that the evidence is bound to.
type Request struct {
	Role         Role     // of the prover
	Nonce        [32]byte // of the verifier
	Exporter     [32]byte // exported keying material of the TLS connection
	ProverSPKI   [32]byte // SHA-256 of the prover's SubjectPublicKeyInfo
	VerifierSPKI [32]byte // the same of the verifier
}

// Facts is what a sled says about its own state. The counter certificate backs LedgerSequence.
type Facts struct {
	SetGeneration    uint64
	LedgerSequence   uint64
	LedgerGeneration uint64
}

const bindingLabel = "sledvault/tpm-attest/v1"

// binding ties facts and attestation key to one request (evidence.md §4).
func binding(req Request, akPublic []byte, f Facts) [32]byte {
	ak := sha256.Sum256(akPublic)
	b := make([]byte, 0, len(bindingLabel)+1+5*32+3*8)
	b = append(b, bindingLabel...)
	b = append(b, byte(req.Role))
	for _, part := range [][32]byte{req.Nonce, req.Exporter, req.ProverSPKI, req.VerifierSPKI, ak} {
		b = append(b, part[:]...)
	}
	for _, n := range []uint64{f.SetGeneration, f.LedgerSequence, f.LedgerGeneration} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return sha256.Sum256(b)
}

// Place says where a binding stands in the batch of one quote.
type Place struct {
	_     struct{} `cbor:",toarray"`
	Index uint8
	Count uint8
	Path  [][32]byte
}

// factsArray is [Facts] in its order on the wire.
type factsArray struct {
	_                                               struct{} `cbor:",toarray"`
	SetGeneration, LedgerSequence, LedgerGeneration uint64
}

// Evidence is what one sled shows another (evidence.md §5).
type Evidence struct {
	Kind             string
	Baseboard        ident.Baseboard
	Facts            Facts
	AKPublic         []byte // TPMT_PUBLIC
	Quote            []byte // TPMS_ATTEST
	Signature        []byte // TPMT_SIGNATURE over Quote
	PCRs             [][32]byte
	EventLog         []byte // TCG2 binary log
	Place            Place
	Counter          []byte // TPMS_ATTEST of the counter
	CounterSignature []byte
}

type evidenceWire struct {
	Kind             string     `cbor:"0,keyasint"`
	Part             string     `cbor:"1,keyasint"`
	Serial           string     `cbor:"2,keyasint"`
	Facts            factsArray `cbor:"3,keyasint"`
	AKPublic         []byte     `cbor:"4,keyasint"`
	Quote            []byte     `cbor:"5,keyasint"`
	Signature        []byte     `cbor:"6,keyasint"`
	PCRs             [][32]byte `cbor:"7,keyasint"`
	EventLog         []byte     `cbor:"8,keyasint"`
	Place            Place      `cbor:"9,keyasint"`
	Counter          []byte     `cbor:"10,keyasint"`
	CounterSignature []byte     `cbor:"11,keyasint"`
}

// encMode is deterministic CBOR: one encoding per value. Its options are constants, so it cannot fail.
func encMode() cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	m, err := o.EncMode()
	if err != nil {
		panic("rot: encoding options: " + err.Error())
	}
	return m
}

func decMode() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, UTF8: cbor.UTF8RejectInvalid,
		MaxNestedLevels: 8, MaxArrayElements: 4096, MaxMapPairs: 64,
	}.DecMode()
	if err != nil {
		panic("rot: decoding options: " + err.Error())
	}
	return m
}

// decodeStrict decodes exactly one value and refuses every encoding but the deterministic one.
func decodeStrict(b []byte, into any) error {
	if err := decMode().Unmarshal(b, into); err != nil {
		return err
	}
	again, err := encMode().Marshal(into)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, again) {
		return errors.New("not the deterministic encoding")
	}
	return nil
}

// Encode gives the bytes that travel.
func (e *Evidence) Encode() ([]byte, error) {
	b, err := encMode().Marshal(evidenceWire{
		Kind: e.Kind, Part: e.Baseboard.Part, Serial: e.Baseboard.Serial,
		Facts:    factsArray{SetGeneration: e.Facts.SetGeneration, LedgerSequence: e.Facts.LedgerSequence, LedgerGeneration: e.Facts.LedgerGeneration},
		AKPublic: e.AKPublic, Quote: e.Quote, Signature: e.Signature, PCRs: e.PCRs, EventLog: e.EventLog, Place: e.Place,
		Counter: e.Counter, CounterSignature: e.CounterSignature,
	})
	if err != nil {
		return nil, fmt.Errorf("rot: encode evidence: %w", err)
	}
	if len(b) > MaxEvidence {
		return nil, fmt.Errorf("rot: encode evidence: have %d bytes, want at most %d", len(b), MaxEvidence)
	}
	return b, nil
}

// DecodeEvidence reads evidence strictly: deterministic encoding, every key present, limits kept. It judges nothing.
// The result shares no memory with b.
func DecodeEvidence(b []byte) (*Evidence, error) {
	if len(b) > MaxEvidence {
		return nil, refuse(CodeMalformed, "decode evidence: have %d bytes, want at most %d", len(b), MaxEvidence)
	}
	var w evidenceWire
	if err := decodeStrict(b, &w); err != nil {
		return nil, refuse(CodeMalformed, "decode evidence: %.200s", err)
	}
	e := &Evidence{
		Kind: w.Kind, Baseboard: ident.Baseboard{Part: w.Part, Serial: w.Serial},
		Facts:    Facts{SetGeneration: w.Facts.SetGeneration, LedgerSequence: w.Facts.LedgerSequence, LedgerGeneration: w.Facts.LedgerGeneration},
		AKPublic: w.AKPublic, Quote: w.Quote, Signature: w.Signature, PCRs: w.PCRs, EventLog: w.EventLog, Place: w.Place,
		Counter: w.Counter, CounterSignature: w.CounterSignature,
	}
	if err := e.validate(); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Evidence) validate() error {
	if err := e.Baseboard.Validate(); err != nil {
		return refuseBecause(err, CodeMalformed, "decode evidence")
	}
	for _, f := range []struct {
		what      string
		have, max int
	}{
		{"kind", len(e.Kind), 16},
		{"attestation key", len(e.AKPublic), maxTPMStructure},
		{"quote", len(e.Quote), maxTPMStructure},
		{"signature", len(e.Signature), maxTPMStructure},
		{"PCR values", len(e.PCRs), maxPCR + 1},
		{"event log", len(e.EventLog), MaxEventLog},
		{"path", len(e.Place.Path), 6},
		{"counter certificate", len(e.Counter), maxTPMStructure},
		{"counter signature", len(e.CounterSignature), maxTPMStructure},
	} {
		if f.have > f.max {
			return refuse(CodeMalformed, "decode evidence: %s: have %d, want at most %d", f.what, f.have, f.max)
		}
	}
	return nil
}
