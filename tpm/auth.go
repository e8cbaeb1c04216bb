package tpm

import (
	"io"

	"github.com/google/go-tpm/tpm2"
)

// Direction says which first parameter a session encrypts.
type Direction uint8

// The directions.
const (
	In    Direction = 1 << iota // towards the TPM
	Out                         // from the TPM
	InOut = In | Out
)

const nonceSize = 32 // bytes; 16 to the digest size are allowed

func salted(srk Key) tpm2.AuthOption { return tpm2.Salted(srk.Handle, srk.Public) }

func encryption(d Direction) []tpm2.AuthOption {
	switch d {
	case In:
		return []tpm2.AuthOption{tpm2.AESEncryption(128, tpm2.EncryptIn)}
	case Out:
		return []tpm2.AuthOption{tpm2.AESEncryption(128, tpm2.EncryptOut)}
	case InOut:
		return []tpm2.AuthOption{tpm2.AESEncryption(128, tpm2.EncryptInOut)}
	}
	return nil
}

// Encrypting returns a one-off HMAC session salted to the pinned SRK that encrypts the first parameter (AES-CFB, 128 bit)
// in the given direction. It authorises entities with an empty auth value, or rides along on any command. Nothing
// happens on the bus before its first use.
func (s *Session) Encrypting(srk Key, d Direction) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, append(encryption(d), salted(srk))...)
}

// HMAC returns a one-off HMAC session like [Session.Encrypting] that proves knowledge of an auth value. The value must
// hold no zero byte (see [RandomAuth]); direction 0 leaves parameters in clear.
func (s *Session) HMAC(srk Key, d Direction, auth []byte) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, append(encryption(d), salted(srk), tpm2.Auth(auth))...)
}

// Policy returns a one-off policy session salted to the pinned SRK. The callback issues the policy commands; auth, if not
// empty, is the auth value that PolicyAuthValue asks for, without zero bytes; direction 0 leaves parameters in clear.
func (s *Session) Policy(srk Key, d Direction, auth []byte, callback tpm2.PolicyCallback) tpm2.Session {
	opts := append(encryption(d), salted(srk))
	if len(auth) > 0 {
		opts = append(opts, tpm2.Auth(auth))
	}
	return tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, callback, opts...)
}

// Beside returns a one-off policy session for a command that [Session.Kept] protects as well: unsalted, it costs the TPM no
// key agreement. It proves an auth value as [Session.Policy] does, and never encrypts by itself.
func (s *Session) Beside(auth []byte, callback tpm2.PolicyCallback) tpm2.Session {
	var opts []tpm2.AuthOption
	if len(auth) > 0 {
		opts = append(opts, tpm2.Auth(auth))
	}
	return tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, callback, opts...)
}

// Kept returns the HMAC session salted to the pinned SRK that lasts until the end of Do, so that several commands cost one
// session. It authorises entities with an empty auth value, or rides along on a command, and encrypts the first parameter
// of the answer. After a failure it is out of step: see [Session.Drop].
func (s *Session) Kept(srk Key) (tpm2.Session, error) {
	if s.reader != nil && s.salt == srk.Handle {
		return s.reader, nil
	}
	s.Drop()
	sess, _, err := tpm2.HMACSession(s, tpm2.TPMAlgSHA256, nonceSize, append(encryption(Out), salted(srk))...)
	if err != nil {
		return nil, fail("start session", err)
	}
	s.reader, s.salt = sess, srk.Handle
	return sess, nil
}

// Drop ends the kept session: after a failure its nonces may be out of step.
func (s *Session) Drop() {
	if s.reader == nil {
		return
	}
	h := s.reader.Handle()
	s.reader = nil
	_ = s.Flush(h) // what cannot be flushed now is flushed at the end
}

// RandomAuth draws an auth value of n bytes without zero bytes. go-tpm cuts HMAC keys at the first zero byte, so about one
// in eight ordinary random values of 32 bytes would fail and count towards a lockout.
func RandomAuth(rand io.Reader, n int) ([]byte, error) {
	if n < 1 || n > 32 {
		return nil, usage("auth value of %d bytes, want 1 to 32", n)
	}
	out := make([]byte, 0, n)
	var b [32]byte
	defer clear(b[:])
	for len(out) < n {
		if _, err := io.ReadFull(rand, b[:n-len(out)]); err != nil {
			clear(out)
			return nil, err
		}
		for _, v := range b[:n-len(out)] {
			if v != 0 {
				out = append(out, v)
			}
		}
	}
	return out, nil
}
