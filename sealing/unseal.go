package sealing

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// unseal runs the whole policy and fills key and seed. It takes two object slots of the TPM's three, and two sessions. The
// kept one is salted: it encrypts the answer and makes it the pinned TPM's; the other proves the policy and the auth value.
//
// The TPM takes its own ticket of an earlier check of the approval. One that it does not take (it was cleared, or the file
// was touched) costs a second attempt, with a ticket made now.
func (u *Unsealed) unseal(s *tpm.Session, srk tpm.Key, auth secret.AuthValue, a *approval) error {
	if len(a.info.Ticket) > 0 {
		stored := tpm2.TPMTTKVerified{Tag: tpm2.TPMSTVerified, Hierarchy: tpm2.TPMRHOwner, Digest: tpm2.TPM2BDigest{Buffer: a.info.Ticket}}
		if err := u.unsealBy(s, srk, auth, a, stored); err == nil || !errors.Is(err, errTicket) {
			return err
		}
	}
	fresh, err := ticket(s, u.v, a)
	if err != nil {
		return unsealError(err)
	}
	return u.unsealBy(s, srk, auth, a, fresh)
}

// errTicket marks a ticket that the TPM refused.
var errTicket = errors.New("sealing: ticket refused")

func (u *Unsealed) unsealBy(s *tpm.Session, srk tpm.Key, auth secret.AuthValue, a *approval, ticket tpm2.TPMTTKVerified) error {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](u.v.Public)
	if err != nil {
		return blobError("public area: %v", err)
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return blobError("public area: %v", err)
	}
	kept, err := s.Kept(srk)
	if err != nil {
		return err
	}
	obj, err := safely(func() (*tpm2.LoadResponse, error) {
		return tpm2.Load{
			ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: kept},
			InPrivate:    tpm2.TPM2BPrivate{Buffer: u.v.Private}, InPublic: tpm2.New2B(*pub),
		}.Execute(s)
	})
	if err != nil {
		s.Drop()
		return unsealError(fmt.Errorf("load: %w", err))
	}
	defer func() { _ = s.Flush(obj.ObjectHandle) }() // flushed at the end otherwise
	return auth.Use(func(value []byte) error {
		out, err := safely(func() (*tpm2.UnsealResponse, error) {
			return tpm2.Unseal{ItemHandle: tpm2.AuthHandle{
				Handle: obj.ObjectHandle, Name: *name, Auth: s.Beside(value, u.v.policy(a, ticket)),
			}}.Execute(s, kept)
		})
		if err != nil {
			s.Drop()
			return unsealError(err)
		}
		defer clear(out.OutData.Buffer)
		return u.take(out.OutData.Buffer)
	})
}

// policy issues the assertions in the order of the digests in policy.go.
func (v *verified) policy(a *approval, ticket tpm2.TPMTTKVerified) tpm2.PolicyCallback {
	return func(t transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		sel, err := tpm.Selection(slices.Sorted(maps.Keys(a.info.PCRs)))
		if err != nil {
			return err
		}
		if _, err := (tpm2.PolicyPCR{PolicySession: h, Pcrs: sel}).Execute(t); err != nil {
			return fmt.Errorf("policy PCR: %w", err)
		}
		name := tpm2.TPM2BName{Buffer: v.counter.Name}
		if _, err := (tpm2.PolicyNV{
			AuthHandle:    tpm2.AuthHandle{Handle: v.counter.Index, Name: name, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:       tpm2.NamedHandle{Handle: v.counter.Index, Name: name},
			PolicySession: h, OperandB: tpm2.TPM2BOperand{Buffer: operand(a.info.Sequence)}, Operation: tpm2.TPMEOUnsignedLE,
		}).Execute(t); err != nil {
			return fmt.Errorf("policy NV: %w", err)
		}
		if _, err := (tpm2.PolicyAuthorize{
			PolicySession: h, ApprovedPolicy: tpm2.TPM2BDigest{Buffer: a.policy}, PolicyRef: tpm2.TPM2BDigest{Buffer: v.ref[:]},
			KeySign: tpm2.TPM2BName{Buffer: v.keyName}, CheckTicket: ticket,
		}).Execute(t); err != nil {
			return fmt.Errorf("%w: policy authorize: %w", errTicket, err)
		}
		_, err = tpm2.PolicyAuthValue{PolicySession: h}.Execute(t)
		return err
	}
}

// ticket has the TPM check the approval's signature, in a slot of its own that is free again afterwards.
func ticket(s *tpm.Session, v *verified, a *approval) (t tpm2.TPMTTKVerified, err error) {
	sig, err := tpm.Signature(a.info.R[:], a.info.S[:])
	if err != nil {
		return t, err
	}
	key, err := s.LoadPolicyKey(v.PolicyKey)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, s.Flush(key.Handle)) }()
	rsp, err := safely(func() (*tpm2.VerifySignatureResponse, error) {
		return tpm2.VerifySignature{
			KeyHandle: tpm2.NamedHandle{Handle: key.Handle, Name: key.Name},
			Digest:    tpm2.TPM2BDigest{Buffer: approvalDigest(a.policy, v.ref)}, Signature: sig,
		}.Execute(s)
	})
	if err != nil {
		return t, fmt.Errorf("verify approval: %w", err)
	}
	return rsp.Validation, nil
}

// take splits what was unsealed and makes sure that it is ours: the keys that stand in the blob, one of them pinned
// through the counter's Name, must come from this very seed.
func (u *Unsealed) take(sealed []byte) (err error) {
	if len(sealed) != sealedLen {
		return reason.New(CodeSeed, hintSeed, "sealing: unsealed %d bytes, want %d", len(sealed), sealedLen)
	}
	fill := func(from []byte) func([]byte) error { return func(b []byte) error { copy(b, from); return nil } }
	key, err := secret.New[secret.SealKeyKind](u.p.Alloc, keyLen, fill(sealed[:keyLen]))
	if err != nil {
		return err
	}
	seed, err := secret.New[secret.SeedKind](u.p.Alloc, seedLen, fill(sealed[keyLen:]))
	if err != nil {
		key.Destroy()
		return err
	}
	if err := u.v.belongs(seed); err != nil {
		key.Destroy()
		seed.Destroy()
		return err
	}
	u.key, u.seed = key, seed
	return nil
}

func (v *verified) belongs(seed secret.Seed) error {
	counter, err := publicKey(seed, labelCounter)
	if err != nil {
		return err
	}
	policy, err := publicKey(seed, labelPolicy)
	if err != nil {
		return err
	}
	if !counter.Equal(v.CounterKey) || !policy.Equal(v.PolicyKey) {
		return reason.New(CodeSeed, hintSeed, "sealing: the seed is not the one of the pinned counter")
	}
	return nil
}

func unsealError(err error) error {
	if reason.CodeOf(err) != "" { // package tpm knows better what went wrong
		return err
	}
	return reason.Wrap(err, CodeUnseal, hintUnseal, "sealing: unseal")
}

// safely runs one command. A malformed answer gives an error, never a panic in go-tpm's reflection.
func safely[R any](f func() (*R, error)) (rsp *R, err error) {
	defer func() {
		if p := recover(); p != nil {
			rsp, err = nil, reason.New(tpm.CodeAnswer, hintUnseal, "sealing: answer refused: %.200v", p)
		}
	}()
	return f()
}

// create makes the sealed object. Key and seed travel encrypted.
func create(s *tpm.Session, srk tpm.Key, policy, auth, sealed []byte) (public, private []byte, err error) {
	rsp, err := safely(func() (*tpm2.CreateResponse, error) {
		return tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: s.Encrypting(srk, tpm.In)},
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: auth},
				Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: sealed}),
			}},
			InPublic: tpm2.New2B(sealedTemplate(policy)),
		}.Execute(s)
	})
	if err != nil {
		return nil, nil, unsealError(fmt.Errorf("create: %w", err))
	}
	pub, err := rsp.OutPublic.Contents()
	if err != nil {
		return nil, nil, unsealError(err)
	}
	return tpm2.Marshal(*pub), bytes.Clone(rsp.OutPrivate.Buffer), nil
}
