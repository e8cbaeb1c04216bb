package tpm

import (
	"bytes"
	"errors"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sledvault/sledvault/vault/reason"
)

// Index is an ordinary NV index that anybody may read and only the holder of its auth value may write.
type Index struct {
	Index tpm2.TPMHandle
	Size  uint16 // bytes
}

// public describes an index as this package defines it. Reading goes by a policy that any session meets, because the
// auth value, which would also allow reading, is secret, and the owner's may be.
func (x Index) public(written bool) tpm2.TPMSNVPublic {
	policy := policyCommand(digest{}, tpm2.TPMCCNVRead)
	return tpm2.TPMSNVPublic{
		NVIndex: x.Index, NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTOrdinary, AuthWrite: true, PolicyRead: true, NoDA: true, WriteAll: true, Written: written},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy[:]},
		DataSize:   x.Size,
	}
}

// Name computes the Name of the index, before or after its first write.
func (x Index) Name(written bool) ([]byte, error) { return nvName(x.public(written)) }

// define defines an index under the owner. The auth value travels encrypted.
func (s *Session) define(srk Key, public tpm2.TPMSNVPublic, auth []byte) error {
	if err := ownerIndex(uint32(public.NVIndex)); err != nil {
		return err
	}
	_, err := run(s, "define index", tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s.Encrypting(srk, In)},
		Auth:       tpm2.TPM2BAuth{Buffer: auth},
		PublicInfo: tpm2.New2B(public),
	})
	if errors.Is(err, tpm2.TPMRCNVDefined) {
		return reason.Wrap(err, CodeExists, "the index belongs to this sled's earlier life or to another program: choose another one, or remove it with `sledvault seal reset`",
			"tpm: index 0x%08x is taken", uint32(public.NVIndex))
	}
	return err
}

// DefineIndex defines an index of up to [Properties.NVBufferMax] bytes. The auth value (see [RandomAuth]) is needed for
// every write. An index that is taken refuses with [ErrExists].
func (s *Session) DefineIndex(srk Key, x Index, auth []byte) error {
	if x.Size == 0 || int(x.Size) > s.t.props.NVBufferMax {
		return usage("index of %d bytes, want 1 to %d", x.Size, s.t.props.NVBufferMax)
	}
	if err := checkAuth(auth); err != nil {
		return err
	}
	return s.define(srk, x.public(false), auth)
}

func checkAuth(auth []byte) error {
	if len(auth) == 0 || len(auth) > 32 {
		return usage("auth value of %d bytes, want 1 to 32", len(auth))
	}
	if slices.Contains(auth, 0) {
		return usage("auth value holds a zero byte")
	}
	return nil
}

// WriteIndex replaces the whole content. First says that the index has never been written, which changes its Name.
func (s *Session) WriteIndex(srk Key, x Index, auth, data []byte, first bool) error {
	if len(data) != int(x.Size) {
		return usage("index: have %d bytes, want %d", len(data), x.Size)
	}
	if err := checkAuth(auth); err != nil {
		return err
	}
	name, err := x.Name(!first)
	if err != nil {
		return err
	}
	n := tpm2.TPM2BName{Buffer: name}
	_, err = run(s, "write index", tpm2.NVWrite{
		AuthHandle: tpm2.AuthHandle{Handle: x.Index, Name: n, Auth: s.HMAC(srk, In, auth)},
		NVIndex:    tpm2.NamedHandle{Handle: x.Index, Name: n},
		Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data},
	})
	return absent(err)
}

// ReadIndex reads the whole content in a salted session that binds the Name. Errors: [ErrAbsent] and, for an index that was
// defined and never written, [ErrEmpty] (neither is authenticated, as all error codes), tpm-answer if another index answers.
func (s *Session) ReadIndex(srk Key, x Index) ([]byte, error) {
	name, err := x.Name(true)
	if err != nil {
		return nil, err
	}
	n := tpm2.TPM2BName{Buffer: name}
	sess, err := s.Kept(srk)
	if err != nil {
		return nil, err
	}
	auth := s.Beside(nil, func(t transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicyCommandCode{PolicySession: h, Code: tpm2.TPMCCNVRead}.Execute(t)
		return err
	})
	rsp, err := run(s, "read index", tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: x.Index, Name: n, Auth: auth},
		NVIndex:    tpm2.NamedHandle{Handle: x.Index, Name: n},
		Size:       x.Size,
	}, sess)
	if err != nil {
		s.Drop()
		return nil, s.empty(x, absent(err))
	}
	if len(rsp.Data.Buffer) != int(x.Size) {
		return nil, reason.New(CodeAnswer, hintAnswer, "tpm: read index: have %d bytes, want %d", len(rsp.Data.Buffer), x.Size)
	}
	return rsp.Data.Buffer, nil
}

// empty gives a refused read of an index that was never written a code of its own. The first write changes the Name, so a
// TPM may refuse the session, which binds the other Name, before it sees that there is nothing to read.
func (s *Session) empty(x Index, err error) error {
	if rc, ok := errors.AsType[tpm2.TPMRC](err); !ok || errors.Is(rc, tpm2.TPMRCHandle) {
		return err
	}
	public, failed := s.indexPublic(x.Index)
	if failed != nil || !bytes.Equal(tpm2.Marshal(*public), tpm2.Marshal(x.public(false))) {
		return err
	}
	return reason.Wrap(err, CodeEmpty, hintRC, "tpm: index 0x%08x was never written", uint32(x.Index))
}

// absent gives the answer "no such index" a code of its own.
func absent(err error) error {
	if rc, ok := errors.AsType[tpm2.TPMRC](err); ok && errors.Is(rc, tpm2.TPMRCHandle) {
		return reason.Wrap(err, CodeAbsent, hintRC, "tpm: no such index")
	}
	return err
}

// UndefineIndex removes an index of the owner's range.
func (s *Session) UndefineIndex(index uint32) error {
	if err := ownerIndex(index); err != nil {
		return err
	}
	public, err := s.indexPublic(tpm2.TPMHandle(index))
	if err != nil {
		return err
	}
	name, err := tpm2.NVName(public)
	if err != nil {
		return fail("undefine index", err)
	}
	_, err = run(s, "undefine index", tpm2.NVUndefineSpace{
		AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name},
	})
	return err
}

// IndexExists tells whether an index is there. Not authenticated: fit for display and for choosing an index.
func (s *Session) IndexExists(index uint32) (bool, error) {
	_, err := s.indexPublic(tpm2.TPMHandle(index))
	if errors.Is(err, ErrAbsent) {
		return false, nil
	}
	return err == nil, err
}

// indexPublic reads what an index says about itself. Not authenticated.
func (s *Session) indexPublic(index tpm2.TPMHandle) (*tpm2.TPMSNVPublic, error) {
	rsp, err := run(s, "read index public", tpm2.NVReadPublic{NVIndex: index})
	if err != nil {
		return nil, absent(err)
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, fail("read index public", err)
	}
	return public, nil
}
