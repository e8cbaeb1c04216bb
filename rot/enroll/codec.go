package enroll

import (
	"bytes"

	"github.com/fxamacker/cbor/v2"

	"github.com/sledvault/sledvault/vault/reason"
)

// Limits of a set. The envelope bounds everything else.
const (
	MaxSet       = 512 << 10 // bytes
	MaxRecords   = 4096
	MaxManifests = 64

	maxArea   = 1024 // bytes of a TPM public area
	maxName   = 66   // bytes of a TPM Name: algorithm and a SHA-512 digest
	maxText   = 64
	maxPCRs   = 24
	maxPinned = 64 // allowed digests of one register
)

// encMode is deterministic CBOR (RFC 8949 §4.2.1). Its options are constants, so it cannot fail.
func encMode() cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	m, err := o.EncMode()
	if err != nil {
		panic("enroll: encoding options: " + err.Error())
	}
	return m
}

func decMode() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, UTF8: cbor.UTF8RejectInvalid,
		MaxNestedLevels: 8, MaxArrayElements: MaxRecords, MaxMapPairs: 64,
	}.DecMode()
	if err != nil {
		panic("enroll: decoding options: " + err.Error())
	}
	return m
}

// encode writes one of this package's wire types. They hold nothing that could fail to encode.
func encode(v any) []byte {
	b, err := encMode().Marshal(v)
	if err != nil {
		panic("enroll: encode: " + err.Error())
	}
	return b
}

// decode reads exactly one value and refuses every form of it but the deterministic one.
func decode(b []byte, into any) error {
	if err := decMode().Unmarshal(b, into); err != nil {
		return reason.Wrap(err, CodeFormat, hintController, "enroll: decode")
	}
	if !bytes.Equal(b, encode(into)) {
		return refuse(CodeFormat, hintController, "decode: not the deterministic encoding")
	}
	return nil
}
