package sealing

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"io"
	"math/big"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/secret"
)

// Sizes in bytes.
const (
	keyLen    = 32
	seedLen   = 32
	sealedLen = keyLen + seedLen
	authLen   = 32
)

// Labels of what is derived from the seed. Each names one use; a new use gets a new label.
const (
	labelPolicy  = "sledvault/seed/policy-key/v1"
	labelCounter = "sledvault/seed/counter-key/v1"
	labelClaim   = "sledvault/seed/claim-auth/v1"
)

// derive expands the seed into n bytes for one use. The caller wipes them.
func derive(seed secret.Seed, label string, n int) (out []byte, err error) {
	err = seed.Use(func(b []byte) error {
		out, err = hkdf.Key(sha256.New, b, nil, label, n)
		return err
	})
	return out, err
}

// withKey lends a P-256 key derived from the seed: 48 bytes reduced to 1..n-1, so that the bias is below 2^-128.
func withKey(seed secret.Seed, label string, f func(*ecdsa.PrivateKey) error) error {
	wide, err := derive(seed, label, 48)
	if err != nil {
		return err
	}
	defer clear(wide)
	one := big.NewInt(1)
	limit := new(big.Int).Sub(elliptic.P256().Params().N, one)
	d := new(big.Int).SetBytes(wide)
	d.Mod(d, limit).Add(d, one)
	defer func() { clear(d.Bits()) }()
	var raw [32]byte
	defer clear(raw[:])
	d.FillBytes(raw[:])
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw[:])
	if err != nil {
		return err
	}
	return f(key)
}

func publicKey(seed secret.Seed, label string) (pub *ecdsa.PublicKey, err error) {
	err = withKey(seed, label, func(k *ecdsa.PrivateKey) error { pub = &k.PublicKey; return nil })
	return pub, err
}

// sign signs a SHA-256 digest with a derived key; r and s have 32 bytes.
func sign(seed secret.Seed, rand io.Reader, label string, digest []byte) (r, s []byte, err error) {
	err = withKey(seed, label, func(k *ecdsa.PrivateKey) error {
		a, b, err := ecdsa.Sign(rand, k, digest)
		if err != nil {
			return err
		}
		r, s = a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))
		return nil
	})
	return r, s, err
}

// incrementer signs increments of the counter.
func incrementer(seed secret.Seed, rand io.Reader) tpm.Signer {
	return func(digest []byte) (r, s []byte, err error) { return sign(seed, rand, labelCounter, digest) }
}

// claimAuth derives the auth value of the claim index: the first bytes of the stream that are not zero.
func claimAuth(a secret.Allocator, seed secret.Seed) (secret.AuthValue, error) {
	stream, err := derive(seed, labelClaim, 4*authLen) // fewer than 32 bytes other than zero: never, in practice
	if err != nil {
		return secret.AuthValue{}, err
	}
	defer clear(stream)
	return secret.New[secret.AuthValueKind](a, authLen, func(out []byte) error {
		n := 0
		for _, b := range stream {
			if b != 0 && n < authLen {
				out[n] = b
				n++
			}
		}
		if n < authLen {
			return usage("claim auth: have %d bytes, want %d", n, authLen)
		}
		return nil
	})
}
