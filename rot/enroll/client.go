package enroll

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"math/big"
	"slices"
	"time"
)

// Client certificates let controllers use a sled's underlay API (enrolment.md §7). They are X.509 because TLS wants that;
// of it only three things count: the key, the generation in the serial number, and the membership key's signature. Dates
// are constant and never looked at.
const (
	issuerName = "sledvault membership key"
	clientName = "sledvault controller"

	serialMark = 1  // keeps the serial positive and its length constant
	serialSize = 17 // mark, generation u32 big-endian, 12 bytes of the key's digest
)

// SelfClient makes a key and certificate for one run of a controller that holds the membership key. The chain's second
// certificate shows the membership key to sleds that know its fingerprint only.
func SelfClient(key crypto.Signer, generation uint32) (tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	chain, err := IssueClient(key, generation, public)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: chain, PrivateKey: private, Leaf: leaf}, nil
}

// IssueClient signs a client's public key. It returns the chain in DER: the client's certificate, then the membership
// key's own.
func IssueClient(key crypto.Signer, generation uint32, client crypto.PublicKey) ([][]byte, error) {
	issuerKey, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, refuse(CodeKey, "", "issue: have a %T, want an Ed25519 key", key.Public())
	}
	spki, err := x509.MarshalPKIXPublicKey(client)
	if err != nil {
		return nil, refuse(CodeClient, "", "issue: %v", err)
	}
	issuer := template(issuerName, big.NewInt(1))
	issuer.IsCA, issuer.KeyUsage = true, x509.KeyUsageCertSign
	leaf := template(clientName, new(big.Int).SetBytes(clientSerial(generation, spki)))
	leaf.KeyUsage, leaf.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	root, err := x509.CreateCertificate(nil, issuer, issuer, issuerKey, key)
	if err != nil {
		return nil, refuse(CodeClient, "", "issue: %v", err)
	}
	der, err := x509.CreateCertificate(nil, leaf, issuer, client, key)
	if err != nil {
		return nil, refuse(CodeClient, "", "issue: %v", err)
	}
	return [][]byte{der, root}, nil
}

func template(name string, serial *big.Int) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0).UTC(), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
}

// clientSerial carries the generation and ties it to the key.
func clientSerial(generation uint32, spki []byte) []byte {
	d := sha256.Sum256(spki)
	b := binary.BigEndian.AppendUint32([]byte{serialMark}, generation)
	return append(b, d[:serialSize-len(b)]...)
}

// VerifyClient checks that the first certificate was issued by the set's membership key, in a generation that is still
// good. The TLS handshake has proved that the client holds its key.
func VerifyClient(chain []*x509.Certificate, s *Set) error {
	generation, err := verifyLeaf(chain, s.MembershipKey)
	if err != nil {
		return err
	}
	if generation < s.MinClientGeneration {
		return refuse(CodeClientOld, "ask the operator for a new client certificate", "client certificate: have generation %d, want at least %d", generation, s.MinClientGeneration)
	}
	return nil
}

// VerifyClaimant checks a client of an unclaimed sled: its certificate is issued by the key that the chain's second
// certificate shows, and that key has the fingerprint in the sled's configuration.
func VerifyClaimant(chain []*x509.Certificate, fingerprint string) error {
	want, err := ParseFingerprint(fingerprint)
	if err != nil {
		return err
	}
	if len(chain) < 2 {
		return refuse(CodeClient, hintFolder, "claim: have %d certificates, want the client's and the membership key's", len(chain))
	}
	key, ok := chain[1].PublicKey.(ed25519.PublicKey)
	if !ok {
		return refuse(CodeClient, hintFolder, "claim: have a %T, want an Ed25519 membership key", chain[1].PublicKey)
	}
	if have := Fingerprint(key); have != want {
		return refuse(CodeFingerprint, "only the controller whose fingerprint the sled's configuration names can claim it",
			"claim: have membership key %s, want %s", have, want)
	}
	_, err = verifyLeaf(chain, key)
	return err
}

func verifyLeaf(chain []*x509.Certificate, key ed25519.PublicKey) (generation uint32, err error) {
	if len(chain) == 0 {
		return 0, refuse(CodeClient, hintFolder, "client certificate: none was given")
	}
	c := chain[0]
	serial := c.SerialNumber.Bytes()
	switch {
	case len(key) != ed25519.PublicKeySize || c.SignatureAlgorithm != x509.PureEd25519 || !ed25519.Verify(key, c.RawTBSCertificate, c.Signature):
		return 0, refuse(CodeClient, hintFolder, "client certificate: not issued by membership key %s", Fingerprint(key))
	case c.IsCA || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}):
		return 0, refuse(CodeClient, hintFolder, "client certificate: issued for another use")
	case len(serial) != serialSize || serial[0] != serialMark:
		return 0, refuse(CodeClient, hintFolder, "client certificate: its serial number carries no generation")
	}
	generation = binary.BigEndian.Uint32(serial[1:])
	if !bytes.Equal(serial, clientSerial(generation, c.RawSubjectPublicKeyInfo)) {
		return 0, refuse(CodeClient, hintFolder, "client certificate: its serial number belongs to another key")
	}
	return generation, nil
}
