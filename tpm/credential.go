package tpm

import (
	"errors"
	"io"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sledvault/sledvault/vault/reason"
)

// MakeCredential encrypts a secret of up to 32 bytes to the TPM that holds both the endorsement key (TPMT_PUBLIC) and the
// object of the given Name. It needs no TPM. Results go to [Session.ActivateCredential].
func MakeCredential(rand io.Reader, ekPublic, akName, secret []byte) (idObject, encSecret []byte, err error) {
	if len(secret) == 0 || len(secret) > 32 {
		return nil, nil, usage("credential of %d bytes, want 1 to 32", len(secret))
	}
	pub, err := parsePublic(ekPublic)
	if err != nil {
		return nil, nil, err
	}
	if err := sameTemplate(*pub, tpm2.ECCEKTemplate); err != nil {
		return nil, nil, usage("endorsement key does not follow template L-2")
	}
	key, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		return nil, nil, reason.Wrap(err, CodeUsage, "", "tpm: endorsement key")
	}
	idObject, encSecret, err = tpm2.CreateCredential(rand, key, akName, secret)
	if err != nil {
		return nil, nil, reason.Wrap(err, CodeUsage, "", "tpm: make credential")
	}
	return idObject, encSecret, nil
}

// ActivateCredential decrypts a credential, which proves that both keys live in this TPM. The secret crosses the bus
// encrypted to the endorsement key's session.
func (s *Session) ActivateCredential(ak, ek Key, idObject, encSecret []byte) ([]byte, error) {
	callback := func(t transport.TPM, h tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: h, NonceTPM: nonce,
		}.Execute(t)
		return err
	}
	rsp, err := run(s, "activate credential", tpm2.ActivateCredential{
		ActivateHandle: ak.with(tpm2.PasswordAuth(nil)),
		KeyHandle:      ek.with(s.Policy(ek, Out, nil, callback)),
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: idObject},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encSecret},
	})
	if err != nil {
		return nil, err
	}
	return rsp.CertInfo.Buffer, nil
}

// ekCertificateECC is where vendors store the certificate of the ECC P-256 endorsement key.
const ekCertificateECC = 0x01c0000a

// maxCertificate bounds what is read from NV.
const maxCertificate = 8192

// EKCertificate reads the vendor's certificate of the endorsement key (DER, padding removed), or nil if there is none.
// It is not authenticated, and need not be: its chain is checked by who uses it.
func (s *Session) EKCertificate() ([]byte, error) {
	public, err := s.indexPublic(ekCertificateECC)
	if errors.Is(err, ErrAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if public.DataSize > maxCertificate {
		return nil, reason.New(CodeAnswer, hintAnswer, "tpm: EK certificate of %d bytes, want at most %d", public.DataSize, maxCertificate)
	}
	name, err := tpm2.NVName(public)
	if err != nil {
		return nil, fail("read EK certificate", err)
	}
	// TCG provisions this index with OwnerRead and AuthRead; its auth value is empty.
	der := make([]byte, 0, public.DataSize)
	for len(der) < int(public.DataSize) {
		n := min(int(public.DataSize)-len(der), s.t.props.NVBufferMax)
		rsp, err := run(s, "read EK certificate", tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: ekCertificateECC, Name: *name, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: ekCertificateECC, Name: *name},
			Size:       uint16(n), Offset: uint16(len(der)),
		})
		if err != nil {
			return nil, err
		}
		if len(rsp.Data.Buffer) != n {
			return nil, reason.New(CodeAnswer, hintAnswer, "tpm: EK certificate: have %d bytes, want %d", len(rsp.Data.Buffer), n)
		}
		der = append(der, rsp.Data.Buffer...)
	}
	return trimDER(der)
}

// trimDER cuts the padding behind a certificate by the length that its outer SEQUENCE states.
func trimDER(b []byte) ([]byte, error) {
	if len(b) == 0 || b[0] != 0x30 {
		return nil, nil // an index that was reserved and never filled
	}
	if len(b) >= 4 && b[1] == 0x82 {
		if n := 4 + int(b[2])<<8 + int(b[3]); n <= len(b) {
			return b[:n], nil
		}
	}
	return nil, reason.New(CodeAnswer, hintAnswer, "tpm: EK certificate is not DER")
}
