package wire

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

func testGrant() *quorum.Grant {
	return &quorum.Grant{
		RackID: rackR, Epoch: 2, Coordinator: board("1"), Members: []ident.Baseboard{board("1"), board("2")},
		Threshold: 2, LastCommitted: 1, LRTQUpgrade: true, Signature: quorum.Signature(bytes.Repeat([]byte{0x51}, 64)),
	}
}

func testCertificate() *quorum.Certificate {
	return &quorum.Certificate{RackID: rackR, Epoch: 1, ConfigDigest: ConfigDigest(config1()), Signature: quorum.Signature(bytes.Repeat([]byte{0x52}, 64))}
}

func ownMessages() map[string]Msg {
	tq := func(k quorum.MessageKind) Msg { return TQ{quorum.Message{RackID: rackR, Kind: k}} }
	return map[string]Msg{
		"Grant":                      tq(quorum.GrantNotice{Grant: testGrant()}),
		"CommitProof":                tq(quorum.CommitProof{Certificate: testCertificate()}),
		"CommitProof, configuration": tq(quorum.CommitProof{Config: config1(), Certificate: testCertificate()}),
		"NoSuchShare":                tq(quorum.NoSuchShare{Epoch: 7}),
		"EnrolmentSet":               EnrolmentSet{[]byte{1, 2, 3}},
		"Evidence":                   Evidence{[]byte{4, 5, 6}},
		"EvidenceResult":             EvidenceResult{Accepted: false, Reason: "evidence-rollback"},
		"ProxyRefusal":               ProxyRefusal{ID: RequestID{0xde, 0xad, 0xbe, 0xef, 6: 0x40, 8: 0x80, 15: 1}, Reason: "quorum-certificate-missing"},
	}
}

// TestOwnFrozen holds the bytes of our own messages. A failure means: revert, sleds of different releases talk to each
// other in them.
func TestOwnFrozen(t *testing.T) {
	t.Parallel()
	frozen := frozenOwn()
	for name, m := range ownMessages() {
		b := mustEncode(t, m)
		if have := hex.EncodeToString(b); have != frozen[name] {
			t.Errorf("%q: %q,", name, have)
		}
		if !Ours(m) {
			t.Errorf("%s is not called ours", name)
		}
		if d := diff(m, mustDecode(t, b)); d != "" {
			t.Errorf("%s: decoded differs: %s", name, d)
		}
	}
	for name, have := range map[string][]byte{"sign grant": GrantSigningBytes(testGrant()), "sign certificate": CertificateSigningBytes(testCertificate())} {
		if have := hex.EncodeToString(have); have != frozen[name] {
			t.Errorf("%q: %q,", name, have)
		}
	}
}

// TestOwnStrict checks that our messages have one form.
func TestOwnStrict(t *testing.T) {
	t.Parallel()
	good := hex.EncodeToString(mustEncode(t, ownMessages()["NoSuchShare"]))
	result := hex.EncodeToString(mustEncode(t, ownMessages()["EvidenceResult"]))
	rack := tx("rack_id") + "50" + hex.EncodeToString(rackR[:])
	for _, c := range []struct {
		name, from, to string
		in             string
		code           reason.Code
	}{
		{"long number", tx("epoch") + "07", tx("epoch") + "1807", good, CodeNotCanonical},
		{"indefinite map", "a2" + tx("rack_id"), "bf" + tx("rack_id"), good, CodeNotCanonical},
		{"another order", rack + tx("epoch") + "07", tx("epoch") + "07" + rack, good, CodeNotCanonical},
		{"another field", "a2" + rack, "a3" + rack + tx("x") + "00", good, CodeUnknownKey},
		{"absent field", "a2" + rack, "a1" + rack, good, CodeMissing},
		{"unknown kind", tx("NoSuchShare"), tx("NoSuchSharf"), good, CodeUnknown},
		{"text instead of a value", "a1" + tx("NoSuchShare"), tx("NoSuchShare"), good, CodeType},
		{"number for bool", "f4", "00", result, CodeType},
	} {
		in := strings.Replace(c.in, c.from, c.to, 1)
		if in == c.in {
			t.Fatalf("%s: nothing replaced", c.name)
		}
		_, err := Decode(secret.Heap{}, unhex(t, in))
		if have := reason.CodeOf(err); have != c.code && (c.code != CodeMissing || have != CodeTrailing) {
			t.Errorf("%s: have %q (%v), want %q", c.name, have, err, c.code)
		}
	}
}

// TestSigningBytes checks that every field counts and that the signature does not.
func TestSigningBytes(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for i, change := range []func(*quorum.Grant){
		func(*quorum.Grant) {},
		func(g *quorum.Grant) { g.RackID[15]++ },
		func(g *quorum.Grant) { g.Epoch++ },
		func(g *quorum.Grant) { g.Coordinator = board("2") },
		func(g *quorum.Grant) { g.Members = g.Members[:1] },
		func(g *quorum.Grant) { g.Members = nil },
		func(g *quorum.Grant) { g.Threshold++ },
		func(g *quorum.Grant) { g.LastCommitted++ },
		func(g *quorum.Grant) { g.LRTQUpgrade = false },
	} {
		g := testGrant()
		change(g)
		b := string(GrantSigningBytes(g))
		if seen[b] {
			t.Errorf("change %d gives the bytes of another grant", i)
		}
		seen[b] = true
		g.Signature[0]++
		if string(GrantSigningBytes(g)) != b {
			t.Errorf("change %d: the signature is signed", i)
		}
	}
	c := testCertificate()
	b := CertificateSigningBytes(c)
	c.Signature[0]++
	if !bytes.Equal(b, CertificateSigningBytes(c)) || seen[string(b)] {
		t.Error("the certificate's signature is signed")
	}
}

// TestKeepFrom: the first kept epoch is the last field, there only if it says something, and signed.
func TestKeepFrom(t *testing.T) {
	t.Parallel()
	g, c := testGrant(), testCertificate()
	g.KeepFrom, c.KeepFrom = 9, 9
	msgs := []Msg{
		TQ{quorum.Message{RackID: rackR, Kind: quorum.GrantNotice{Grant: g}}},
		TQ{quorum.Message{RackID: rackR, Kind: quorum.CommitProof{Config: config1(), Certificate: c}}},
	}
	for i, m := range msgs {
		b := mustEncode(t, m)
		if d := diff(m, mustDecode(t, b)); d != "" {
			t.Errorf("message %d: decoded differs: %s", i, d)
		}
		at := bytes.LastIndex(b, []byte("keep_from\x09"))
		if at < 0 {
			t.Fatalf("message %d: no such field in %x", i, b)
		}
		zero := bytes.Clone(b)
		zero[at+len("keep_from")] = 0
		if _, err := Decode(secret.Heap{}, zero); reason.CodeOf(err) != CodeNotCanonical {
			t.Errorf("message %d: 0 written out: %v", i, err)
		}
	}
	for name, p := range map[string][2][]byte{
		"grant":       {GrantSigningBytes(g), GrantSigningBytes(testGrant())},
		"certificate": {CertificateSigningBytes(c), CertificateSigningBytes(testCertificate())},
	} {
		if !bytes.Contains(p[0], []byte("/v2")) || !bytes.HasSuffix(p[0], []byte{9}) || !bytes.Contains(p[1], []byte("/v1")) {
			t.Errorf("%s: signed as %x and %x", name, p[0], p[1])
		}
	}
}
