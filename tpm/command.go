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

// command runs a command of one authorised permanent handle that answers without parameters.
func (s *Session) command(op string, cc tpm2.TPMCC, handle tpm2.TPMHandle, auth tpm2.Session, params []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = reason.New(CodeAnswer, hintAnswer, "tpm: %s: answer refused: %.200v", op, p)
		}
	}()
	if err := auth.Init(s); err != nil {
		return fail(op, err)
	}
	if err := auth.NewNonceCaller(); err != nil {
		return fail(op, err)
	}
	names := []tpm2.TPM2BName{tpm2.HandleName(handle)}
	ac, err := auth.Authorize(cc, params, nil, names, 0)
	if err != nil {
		return fail(op, err)
	}
	area := tpm2.Marshal(*ac)
	size := headerSize + 4 + 4 + len(area) + len(params)
	cmd := binary.BigEndian.AppendUint16(make([]byte, 0, size), uint16(tpm2.TPMSTSessions))
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(size))
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(cc))
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(handle))
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(len(area)))
	cmd = append(append(cmd, area...), params...)
	rsp, err := s.Send(cmd)
	if err != nil {
		return fail(op, err)
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:10])); rc != tpm2.TPMRCSuccess {
		_ = auth.CleanupFailure(s) // flushed at the end otherwise
		return failRC(op, rc)
	}
	return fail(op, checkEmptyAnswer(rsp[headerSize:], cc, names, auth))
}

// checkEmptyAnswer checks the authentication of an answer that has no parameters.
func checkEmptyAnswer(body []byte, cc tpm2.TPMCC, names []tpm2.TPM2BName, auth tpm2.Session) error {
	if len(body) < 4 || binary.BigEndian.Uint32(body) != 0 {
		return fmt.Errorf("answer of %d bytes, want an empty one", len(body))
	}
	ar, err := tpm2.Unmarshal[tpm2.TPMSAuthResponse](body[4:])
	if err != nil {
		return err
	}
	return auth.Validate(tpm2.TPMRCSuccess, cc, nil, names, 0, ar)
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
	return s.command("set lock parameters", ccLockParameters, tpm2.TPMRHLockout, s.HMAC(srk, 0, auth), params)
}

// ResetLock ends a dictionary-attack lockout.
func (s *Session) ResetLock(srk Key, auth []byte) error {
	return s.command("reset lock", ccLockReset, tpm2.TPMRHLockout, s.HMAC(srk, 0, auth), nil)
}

// DisableClear keeps software from clearing the TPM; firmware still can.
func (s *Session) DisableClear(srk Key, auth []byte) error {
	return s.command("disable clear", ccClearControl, tpm2.TPMRHLockout, s.HMAC(srk, 0, auth), []byte{1})
}
