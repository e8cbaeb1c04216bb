package tpm

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/vault/reason"
)

// Commands for which go-tpm has no struct.
const (
	ccHierarchyChangeAuth tpm2.TPMCC = 0x129 // has a struct, but no exported code
	ccLockReset           tpm2.TPMCC = 0x139
	ccLockParameters      tpm2.TPMCC = 0x13a
	ccClearControl        tpm2.TPMCC = 0x127
)

// command runs a command of one handle, authorised by one session, and returns the parameters of the answer, checked and
// decrypted. They lie in the answer's own buffer, so that the caller can wipe the only copy.
func (s *Session) command(op string, cc tpm2.TPMCC, handle tpm2.TPMHandle, name tpm2.TPM2BName, auth tpm2.Session, params []byte) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, reason.New(CodeAnswer, hintAnswer, "tpm: %s: answer refused: %.200v", op, p)
		}
	}()
	names := []tpm2.TPM2BName{name}
	cmd, err := s.authorized(cc, handle, names, auth, params)
	if err != nil {
		return nil, fail(op, err)
	}
	rsp, err := s.Send(cmd)
	if err != nil {
		return nil, fail(op, err)
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:10])); rc != tpm2.TPMRCSuccess {
		_ = auth.CleanupFailure(s) // flushed at the end otherwise
		return nil, failRC(op, rc)
	}
	out, err = checkAnswer(rsp[headerSize:], cc, names, auth)
	return out, fail(op, err)
}

// authorized builds the frame of a command whose parameters need no encryption.
func (s *Session) authorized(cc tpm2.TPMCC, handle tpm2.TPMHandle, names []tpm2.TPM2BName, auth tpm2.Session, params []byte) ([]byte, error) {
	if err := auth.Init(s); err != nil {
		return nil, err
	}
	if err := auth.NewNonceCaller(); err != nil {
		return nil, err
	}
	ac, err := auth.Authorize(cc, params, nil, names, 0)
	if err != nil {
		return nil, err
	}
	area := tpm2.Marshal(*ac)
	size := headerSize + 4 + 4 + len(area) + len(params)
	cmd := binary.BigEndian.AppendUint16(make([]byte, 0, size), uint16(tpm2.TPMSTSessions))
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(size))
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(cc))
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(handle))
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(len(area)))
	return append(append(cmd, area...), params...), nil
}

// checkAnswer checks the authentication of an answer's body and returns its parameters: u32 size, parameters, session.
func checkAnswer(body []byte, cc tpm2.TPMCC, names []tpm2.TPM2BName, auth tpm2.Session) ([]byte, error) {
	if len(body) < 4 || uint64(binary.BigEndian.Uint32(body)) > uint64(len(body)-4) {
		return nil, fmt.Errorf("answer of %d bytes is cut", len(body))
	}
	n := 4 + int(binary.BigEndian.Uint32(body))
	params := body[4:n]
	ar, err := tpm2.Unmarshal[tpm2.TPMSAuthResponse](body[n:])
	if err != nil {
		return nil, err
	}
	if err := auth.Validate(tpm2.TPMRCSuccess, cc, params, names, 0, ar); err != nil {
		return nil, err
	}
	if !auth.IsEncryption() {
		return params, nil
	}
	if len(params) < 2 || int(binary.BigEndian.Uint16(params)) > len(params)-2 {
		return nil, fmt.Errorf("answer of %d bytes holds nothing to decrypt", len(params))
	}
	return params, auth.Decrypt(params[2 : 2+int(binary.BigEndian.Uint16(params))])
}

// Unseal lends the content of a sealed object to f, which must not keep it: it is wiped afterwards. Go-tpm's own Unseal
// leaves a copy behind that nobody can reach. Auth is a session that meets the object's policy and encrypts answers, see
// [Session.Policy].
func (s *Session) Unseal(obj tpm2.NamedHandle, auth tpm2.Session, f func([]byte) error) error {
	if !auth.IsEncryption() {
		return usage("unseal: the session does not encrypt")
	}
	out, err := s.command("unseal", tpm2.TPMCCUnseal, obj.Handle, obj.Name, auth, nil)
	defer clear(out)
	if err != nil {
		return err
	}
	if len(out) < 2 || int(binary.BigEndian.Uint16(out)) != len(out)-2 {
		return reason.New(CodeAnswer, hintAnswer, "tpm: unseal: answer of %d bytes", len(out))
	}
	return f(out[2:])
}

// lockout runs a command of the lockout hierarchy that answers without parameters.
func (s *Session) lockout(op string, cc tpm2.TPMCC, auth tpm2.Session, params []byte) error {
	out, err := s.command(op, cc, tpm2.TPMRHLockout, tpm2.HandleName(tpm2.TPMRHLockout), auth, params)
	if err == nil && len(out) != 0 {
		return reason.New(CodeAnswer, hintAnswer, "tpm: %s: answer of %d bytes, want none", op, len(out))
	}
	return err
}

// LockParameters are the dictionary-attack settings.
type LockParameters struct {
	MaxTries        uint32
	RecoveryTime    uint32 // seconds until one try is given back
	LockoutRecovery uint32 // seconds until a wrong lockout auth may be followed by another try
}

// SetLockoutAuth gives the lockout hierarchy, whose auth value is still empty, a new one. The value travels encrypted. An
// error does not mean that nothing changed: try the new value before anything else, and never guess: one wrong value
// locks the hierarchy for LockoutRecovery.
func (s *Session) SetLockoutAuth(srk Key, auth []byte) error {
	if err := checkAuth(auth); err != nil {
		return err
	}
	// go-tpm checks an HMAC answer with the old value, the TPM makes it with the new one: hence a password for the empty
	// value and a separate session for the encryption.
	_, err := run(s, "set lockout auth", tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: auth},
	}, s.Encrypting(srk, In))
	return err
}

// SetLockParameters sets the dictionary-attack parameters.
func (s *Session) SetLockParameters(srk Key, auth []byte, p LockParameters) error {
	params := binary.BigEndian.AppendUint32(nil, p.MaxTries)
	params = binary.BigEndian.AppendUint32(params, p.RecoveryTime)
	params = binary.BigEndian.AppendUint32(params, p.LockoutRecovery)
	return s.lockout("set lock parameters", ccLockParameters, s.HMAC(srk, 0, auth), params)
}

// ResetLock ends a dictionary-attack lockout.
func (s *Session) ResetLock(srk Key, auth []byte) error {
	return s.lockout("reset lock", ccLockReset, s.HMAC(srk, 0, auth), nil)
}

// DisableClear keeps software from clearing the TPM; firmware still can.
func (s *Session) DisableClear(srk Key, auth []byte) error {
	return s.lockout("disable clear", ccClearControl, s.HMAC(srk, 0, auth), []byte{1})
}
