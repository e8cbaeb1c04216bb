package tpm

import (
	"github.com/google/go-tpm/tpm2"
)

// Quote signs the given PCRs of the SHA-256 bank and 32 bytes of the caller's with the attestation key. It returns the
// TPMS_ATTEST as signed and the TPMT_SIGNATURE. The signature is not checked here: verifiers do (package rot).
func (s *Session) Quote(ak Key, extra [32]byte, pcrs []int) (attest, sig []byte, err error) {
	sel, err := Selection(pcrs)
	if err != nil {
		return nil, nil, err
	}
	rsp, err := run(s, "quote", tpm2.Quote{
		SignHandle: ak.with(tpm2.PasswordAuth(nil)), QualifyingData: tpm2.TPM2BData{Buffer: extra[:]},
		InScheme: noScheme(), PCRSelect: sel,
	})
	if err != nil {
		return nil, nil, err
	}
	return rsp.Quoted.Bytes(), tpm2.Marshal(rsp.Signature), nil
}

// CertifyCounter signs the counter's Name and value. Results as for [Session.Quote].
func (s *Session) CertifyCounter(ak Key, c Counter, extra [32]byte) (attest, sig []byte, err error) {
	n := tpm2.TPM2BName{Buffer: c.Name}
	rsp, err := run(s, "certify counter", tpm2.NVCertify{
		SignHandle:     ak.with(tpm2.PasswordAuth(nil)),
		AuthHandle:     tpm2.AuthHandle{Handle: c.Index, Name: n, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:        tpm2.NamedHandle{Handle: c.Index, Name: n},
		QualifyingData: tpm2.TPM2BData{Buffer: extra[:]}, InScheme: noScheme(), Size: 8,
	})
	if err != nil {
		return nil, nil, absent(err)
	}
	return rsp.CertifyInfo.Bytes(), tpm2.Marshal(rsp.Signature), nil
}

// Certify signs the Name of an object with an empty auth value, for example the SRK. Results as for [Session.Quote].
func (s *Session) Certify(ak, obj Key, extra [32]byte) (attest, sig []byte, err error) {
	rsp, err := run(s, "certify", tpm2.Certify{
		ObjectHandle: obj.with(tpm2.PasswordAuth(nil)), SignHandle: ak.with(tpm2.PasswordAuth(nil)),
		QualifyingData: tpm2.TPM2BData{Buffer: extra[:]}, InScheme: noScheme(),
	})
	if err != nil {
		return nil, nil, err
	}
	return rsp.CertifyInfo.Bytes(), tpm2.Marshal(rsp.Signature), nil
}

// noScheme leaves the scheme to the key.
func noScheme() tpm2.TPMTSigScheme { return tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull} }
