package api_test

import (
	"crypto/ed25519"
	"crypto/tls"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/reason"
)

// TestSetFromStranger: a client whose certificate is not good can hand over a set that changes a key
// under the recovery key's signature, and no other; and nothing else.
func TestSetFromStranger(t *testing.T) {
	t.Parallel()
	held, recovery := claimedSet(t), signingKey(3)
	next := func(rekey bool, by ed25519.PrivateKey) []byte {
		s := held.Next()
		if rekey {
			s.MembershipKey = publicOf(stranger())
		}
		must(t, s.Sign(by))
		return s.Encode()
	}
	for _, c := range []struct {
		name string
		set  []byte
		code reason.Code
	}{
		{"junk", []byte("junk"), api.CodeForbidden},
		{"the same keys, by the membership key", next(false, membership()), api.CodeForbidden},
		{"the same keys, by the recovery key", next(false, recovery), api.CodeForbidden},
		{"another key, by itself", next(true, stranger()), enroll.CodeSignature},
		{"another key, by the membership key", next(true, membership()), enroll.CodeSignature},
		{"another key, by the recovery key", next(true, recovery), ""},
	} {
		for _, cert := range []tls.Certificate{clientCert(t, stranger(), 9), clientCert(t, membership(), 1)} {
			f := newFake()
			f.set = held
			_, addr := serveUnderlay(t, f)
			s, err := client.Open(t.Context(), addr, cert)
			must(t, err)
			_, err = s.EnrollSet(t.Context(), c.set)
			if reason.CodeOf(err) != c.code {
				t.Errorf("%s: have %v, want %q", c.name, err, c.code)
			}
			if reached := len(f.made()) > 0 && slices.ContainsFunc(f.made(), func(call string) bool { return call != "status" }); reached != (c.code == "") {
				t.Errorf("%s: the node was asked %q", c.name, f.made())
			}
			_, err = s.Attest(t.Context(), [32]byte{})
			if reason.CodeOf(err) != api.CodeForbidden {
				t.Errorf("%s: attest: have %v", c.name, err)
			}
			_ = s.Close()
		}
	}
}
