package channel

import (
	"crypto/tls"
	"crypto/x509"
	"io"
)

// For hostile peers in tests: the same TLS profile and frames, without the order.

// TLSConfig is the profile of an identity.
func (i *Identity) TLSConfig() *tls.Config { return i.tlsConfig() }

// WithCertificate is an identity around a certificate of any kind.
func WithCertificate(c tls.Certificate, leaf *x509.Certificate) *Identity {
	return &Identity{certificate: c, spki: SPKI(leaf)}
}

// Hello is the body of frames 1 and 2.
type Hello = hello

// ReadFrame and WriteFrame move one body.
func ReadFrame(r io.Reader) ([]byte, error)     { return readFrame(r, maxEvidenceFrame) }
func WriteFrame(w io.Writer, body []byte) error { return writeFrame(w, body) }

// Encode is the deterministic encoding.
func Encode(v any) []byte {
	b, err := encMode().Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// DecodeHello and DecodeVerdict are the decoders of frames 1, 2, 5 and 6.
func DecodeHello(b []byte) (Hello, error) { return decodeHello(b) }

// DecodeVerdict reads frames 5 and 6.
func DecodeVerdict(b []byte) (accepted bool, code string, err error) {
	v, err := decodeVerdict(b)
	return v.Accepted, v.Code, err
}

// EncodeVerdict writes them.
func EncodeVerdict(accepted bool, code string) []byte { return Encode(verdict{accepted, code}) }
