package tpm

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sledvault/sledvault/vault/reason"
)

// Counter is an NV counter that only the holder of the policy key can increment and anybody can read.
type Counter struct {
	Index tpm2.TPMHandle
	Name  []byte           // with the Written bit set
	Key   *ecdsa.PublicKey // authorises increments; nil will do for reading and certifying
}

// incrementLabel separates signatures for increments from all other policy signatures.
const incrementLabel = "sledvault/counter-increment/v1"

func incrementRef() []byte {
	h := sha256.Sum256([]byte(incrementLabel))
	return h[:]
}

// counterBranches are the two ways to increment: the first time by anybody, later by signature.
func counterBranches(keyName []byte) (first, later digest) {
	first = policyCommand(digest{}.extend(tpm2.TPMCCPolicyNvWritten, []byte{0}), tpm2.TPMCCNVIncrement)
	signed := digest{}.extend(tpm2.TPMCCPolicySigned, keyName).hash(incrementRef())
	return first, policyCommand(signed, tpm2.TPMCCNVIncrement)
}

// CounterPolicy computes the authPolicy of a counter: PolicyOR of {NvWritten(false), CommandCode NV_Increment} and
// {PolicySigned(key, ref), CommandCode NV_Increment}.
func CounterPolicy(key *ecdsa.PublicKey) ([32]byte, error) {
	pub, err := PolicyKey(key)
	if err != nil {
		return [32]byte{}, err
	}
	name, err := tpm2.ObjectName(&pub)
	if err != nil {
		return [32]byte{}, usage("policy key: %v", err)
	}
	first, later := counterBranches(name.Buffer)
	return digest{}.extend(tpm2.TPMCCPolicyOR, first[:], later[:]), nil
}

func counterPublic(index tpm2.TPMHandle, policy [32]byte, written bool) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTCounter, PolicyWrite: true, AuthRead: true, NoDA: true, Written: written},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy[:]},
		DataSize:   8,
	}
}

// CounterAt computes, without a TPM, what a counter that this package defined looks like.
func CounterAt(index uint32, key *ecdsa.PublicKey) (Counter, error) {
	policy, err := CounterPolicy(key)
	if err != nil {
		return Counter{}, err
	}
	name, err := nvName(counterPublic(tpm2.TPMHandle(index), policy, true))
	return Counter{Index: tpm2.TPMHandle(index), Name: name, Key: key}, err
}

func nvName(public tpm2.TPMSNVPublic) ([]byte, error) {
	name, err := tpm2.NVName(&public)
	if err != nil {
		return nil, usage("index: %v", err)
	}
	return name.Buffer, nil
}

func ownerIndex(index uint32) error {
	if index < 0x01800000 || index > 0x01bfffff {
		return usage("index 0x%08x, want one of the owner's, 0x01800000 to 0x01bfffff", index)
	}
	return nil
}

// DefineCounter defines a counter and increments it once, without which it cannot be read. It deletes nothing: an index
// that is taken refuses with [ErrExists]. A new counter starts above every value that any counter of this TPM ever had.
func (s *Session) DefineCounter(srk Key, index uint32, key *ecdsa.PublicKey) (Counter, error) {
	c, err := CounterAt(index, key)
	if err != nil {
		return Counter{}, err
	}
	policy, err := CounterPolicy(key)
	if err != nil {
		return Counter{}, err
	}
	public := counterPublic(c.Index, policy, false)
	if err := s.define(srk, public, nil); err != nil {
		return Counter{}, err
	}
	unwritten, err := nvName(public)
	if err != nil {
		return Counter{}, err
	}
	_, later, err := c.branches()
	if err != nil {
		return Counter{}, err
	}
	auth := s.Policy(srk, 0, nil, func(t transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		if _, err := (tpm2.PolicyNVWritten{PolicySession: h, WrittenSet: false}).Execute(t); err != nil {
			return err
		}
		return incrementOnly(t, h, later)
	})
	return c, s.increment(c.Index, unwritten, auth)
}

func (c Counter) branches() (first, later digest, err error) {
	pub, err := PolicyKey(c.Key)
	if err != nil {
		return first, later, err
	}
	name, err := tpm2.ObjectName(&pub)
	if err != nil {
		return first, later, usage("policy key: %v", err)
	}
	first, later = counterBranches(name.Buffer)
	return first, later, nil
}

// incrementOnly finishes either branch: command code, then the OR.
func incrementOnly(t transport.TPM, h tpm2.TPMISHPolicy, later digest) error {
	if _, err := (tpm2.PolicyCommandCode{PolicySession: h, Code: tpm2.TPMCCNVIncrement}).Execute(t); err != nil {
		return err
	}
	first, _ := counterBranches(nil) // does not depend on the key
	_, err := tpm2.PolicyOr{PolicySession: h, PHashList: tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{
		{Buffer: first[:]}, {Buffer: later[:]},
	}}}.Execute(t)
	return err
}

func (s *Session) increment(index tpm2.TPMHandle, name []byte, auth tpm2.Session) error {
	n := tpm2.TPM2BName{Buffer: name}
	_, err := run(s, "increment", tpm2.NVIncrement{
		AuthHandle: tpm2.AuthHandle{Handle: index, Name: n, Auth: auth},
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: n},
	})
	return err
}

// ReadCounter reads a counter in a salted session that binds its Name: the value is the TPM's own and of this counter.
func (s *Session) ReadCounter(srk Key, c Counter) (uint64, error) {
	b, err := s.readNV(srk, c.Index, c.Name, 8, 0)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// readNV reads from an index whose auth value is empty, in the kept session.
func (s *Session) readNV(srk Key, index tpm2.TPMHandle, name []byte, size, offset uint16) ([]byte, error) {
	sess, err := s.Kept(srk)
	if err != nil {
		return nil, err
	}
	n := tpm2.TPM2BName{Buffer: name}
	rsp, err := run(s, "read index", tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: index, Name: n, Auth: sess},
		NVIndex:    tpm2.NamedHandle{Handle: index, Name: n},
		Size:       size, Offset: offset,
	})
	if err != nil {
		s.Drop()
		return nil, absent(err)
	}
	if len(rsp.Data.Buffer) != int(size) {
		return nil, reason.New(CodeAnswer, hintAnswer, "tpm: read index: have %d bytes, want %d", len(rsp.Data.Buffer), size)
	}
	return rsp.Data.Buffer, nil
}

// Increment moves the counter from the given value to the next one and returns what it then reads. It reads first and
// leaves the counter alone unless it stands at from ([ErrMoved], with the value read), because an answer to an earlier
// increment may have been lost or forged. The error of the increment itself is not believed either: what counts is the
// authenticated read after it. A nil error means that the counter stands at from+1.
func (s *Session) Increment(srk Key, c Counter, from uint64, sign Signer) (uint64, error) {
	have, err := s.ReadCounter(srk, c)
	if err != nil {
		return 0, err
	}
	if have != from {
		return have, moved(have, from)
	}
	tried := s.signedIncrement(srk, c, sign)
	if tried != nil && errors.Is(tried, errSigner) {
		return have, tried
	}
	have, err = s.ReadCounter(srk, c)
	if err != nil {
		return 0, errors.Join(err, tried)
	}
	if have == from+1 {
		return have, nil
	}
	if have == from && tried != nil {
		return have, tried
	}
	return have, errors.Join(moved(have, from+1), tried)
}

func moved(have, want uint64) error {
	return reason.New(CodeMoved, "another program uses this counter, or an older state was restored", "tpm: counter: have %d, want %d", have, want)
}

func (s *Session) signedIncrement(srk Key, c Counter, sign Signer) error {
	_, later, err := c.branches()
	if err != nil {
		return fmt.Errorf("%w: %w", errSigner, err)
	}
	key, err := s.LoadPolicyKey(c.Key)
	if err != nil {
		return err
	}
	defer func() { _ = s.Flush(key.Handle) }() // flushed at the end otherwise
	n := tpm2.TPM2BName{Buffer: c.Name}
	cpHash, err := tpm2.CPHash[tpm2.NVIncrementResponse](tpm2.TPMAlgSHA256, tpm2.NVIncrement{
		AuthHandle: tpm2.NamedHandle{Handle: c.Index, Name: n}, NVIndex: tpm2.NamedHandle{Handle: c.Index, Name: n},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errSigner, err)
	}
	auth := s.Policy(srk, 0, nil, func(t transport.TPM, h tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		if err := signPolicy(t, key, h, nonce, *cpHash, sign); err != nil {
			return err
		}
		return incrementOnly(t, h, later)
	})
	return s.increment(c.Index, c.Name, auth)
}

// signPolicy answers the session's nonce with a signature good for this one increment of this one counter.
func signPolicy(t transport.TPM, key Key, h tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce, cpHash tpm2.TPM2BDigest, sign Signer) error {
	toSign := sha256.New()
	toSign.Write(nonce.Buffer)
	toSign.Write(make([]byte, 4)) // no expiration
	toSign.Write(cpHash.Buffer)
	toSign.Write(incrementRef())
	r, sig, err := sign(toSign.Sum(nil))
	if err != nil {
		return fmt.Errorf("%w: %w", errSigner, err)
	}
	signature, err := Signature(r, sig)
	if err != nil {
		return fmt.Errorf("%w: %w", errSigner, err)
	}
	_, err = tpm2.PolicySigned{
		AuthObject: key.named(), PolicySession: h, NonceTPM: nonce, CPHashA: cpHash,
		PolicyRef: tpm2.TPM2BNonce{Buffer: incrementRef()}, Auth: signature,
	}.Execute(t)
	return err
}
