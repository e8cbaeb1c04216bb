package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func loadJSON(t testing.TB, file string, to any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		t.Fatal(err)
	}
}

type cborVectors struct {
	Alarms []struct{ CBOR string }
	Parts  map[string]string
	Peer   []struct {
		Kind  string
		CBOR  string `json:"peer_msg_cbor"`
		Frame string `json:"wire_frame"`
	} `json:"peer_msgs"`
	Wire []struct {
		Name, Frame string
		Len         int    `json:"payload_len"`
		Sum         string `json:"sha256_8"`
	} `json:"wire_msgs"`
}

// The fixtures of wire.md.
var (
	rackR = ident.RackID{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x46, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}
	reqQ  = RequestID{0xde, 0xad, 0xbe, 0xef, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 1}
)

func board(serial string) ident.Baseboard { return ident.Baseboard{Part: "p", Serial: serial} }

func digestOf(c byte) (d [32]byte) {
	for i := range d {
		d[i] = c
	}
	return d
}

func config1() *quorum.Configuration {
	return &quorum.Configuration{RackID: rackR, Epoch: 1, Coordinator: board("1"), Threshold: 2, Members: []quorum.Member{
		{ID: board("1"), ShareDigest: digestOf(0xa1)}, {ID: board("2"), ShareDigest: digestOf(0xa2)}, {ID: board("3"), ShareDigest: digestOf(0xa3)},
	}}
}

func config2() *quorum.Configuration {
	c := config1()
	c.Epoch = 300
	c.EncryptedSecrets = &keys.EncryptedSecrets{Salt: digestOf(0x5a), Data: []byte{0, 1, 0xfe, 0xff}}
	return c
}

func share(t testing.TB, x byte, y ...byte) gfss.Share {
	t.Helper()
	s, err := secret.Take[secret.ShareKind](secret.Heap{}, bytes.Clone(y))
	if err != nil {
		t.Fatal(err)
	}
	return gfss.Share{X: x, Y: s}
}

func shareSH(t testing.TB) gfss.Share {
	t.Helper()
	var y [32]byte
	for i := range y {
		y[i] = byte(8 * i)
	}
	return share(t, 2, y[:]...)
}

func mustEncode(t testing.TB, m Msg) []byte {
	t.Helper()
	b, err := Encode(nil, m)
	if err != nil {
		t.Fatalf("%T: %v", m, err)
	}
	return b
}

func mustDecode(t testing.TB, b []byte) Msg {
	t.Helper()
	m, err := Decode(secret.Heap{}, b)
	if err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return m
}

func sum8(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:8])
}

// TestReferenceBytes sends every message that the reference wrote through decoder and encoder.
func TestReferenceBytes(t *testing.T) {
	t.Parallel()
	var v cborVectors
	loadJSON(t, "cbor.json", &v)
	frames := map[string]string{}
	for _, m := range v.Wire {
		frames[m.Name] = m.Frame
		if p := unhex(t, m.Frame)[4:]; len(p) != m.Len || sum8(p) != m.Sum {
			t.Errorf("%s: length or digest differs", m.Name)
		}
	}
	for i, m := range v.Peer {
		if strings.HasSuffix(m.CBOR, "795f636f6f7264696e6174657380") {
			// A share without bytes can be written by the reference's types, but not by a correct node.
			if _, err := Decode(secret.Heap{}, unhex(t, m.Frame)[4:]); reason.CodeOf(err) != CodeLength {
				t.Errorf("empty share: have %v, want %s", err, CodeLength)
			}
			continue
		}
		frames[m.Kind+string(rune('a'+i))] = m.Frame
		if !strings.HasSuffix(m.Frame, m.CBOR) {
			t.Errorf("%s: frame does not hold the message", m.Kind)
		}
		msg, ok := mustDecode(t, unhex(t, m.Frame)[4:]).(TQ)
		if !ok || string(quorum.KindOf(msg.Kind)) != m.Kind {
			t.Errorf("have kind %v, want %s", msg.Kind, m.Kind)
		}
	}
	if len(frames) < 60 {
		t.Fatalf("have %d vectors, want 60 or more", len(frames))
	}
	for name, frame := range frames {
		f := unhex(t, frame)
		p, err := ReadFrame(bytes.NewReader(f), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m := mustDecode(t, p)
		if have, err := AppendFrame(nil, m); err != nil || !bytes.Equal(have, f) {
			t.Errorf("%s: %v\nhave %x\nwant %x", name, err, have, f)
		}
		if Ours(m) {
			t.Errorf("%s: a message of the reference is called ours", name)
		}
	}
}

func TestReferenceParts(t *testing.T) {
	t.Parallel()
	var v cborVectors
	loadJSON(t, "cbor.json", &v)
	for name, emit := range map[string]func(*writer){
		"C1":           func(w *writer) { w.configuration(config1()) },
		"C2":           func(w *writer) { w.configuration(config2()) },
		"share":        func(w *writer) { w.share(shareSH(t)) },
		"baseboard_id": func(w *writer) { w.baseboard(ident.Baseboard{Part: "913-0000019", Serial: "BRM42220051"}) },
	} {
		have, err := build(nil, MaxPayload, emit)
		if err != nil || hex.EncodeToString(have) != v.Parts[name] {
			t.Errorf("%s: %v\nhave %x\nwant %s", name, err, have, v.Parts[name])
		}
	}
	for i, a := range v.Alarms {
		r := reader{b: unhex(t, a.CBOR)}
		alarm := r.alarm()
		if err := r.finish(); err != nil {
			t.Errorf("alarm %d: %v", i, err)
			continue
		}
		have, err := build(nil, MaxPayload, func(w *writer) { w.alarm(alarm) })
		if err != nil || hex.EncodeToString(have) != a.CBOR {
			t.Errorf("alarm %d: %v\nhave %x\nwant %s", i, err, have, a.CBOR)
		}
	}
	if have := ConfigDigest(config1()); hex.EncodeToString(have[:8]) != "e6c4ae6b934274d6" {
		t.Errorf("digest of C1: have %x", have)
	}
	if have := ConfigDigest(config2()); hex.EncodeToString(have[:8]) != "9e1ba6e7226da022" {
		t.Errorf("digest of C2: have %x", have)
	}
}

const prefixP = "a1625471a2677261636b5f69645000112233445546778899aabbccddeeff646b696e64"

// TestExamples checks the examples of wire.md against values built by hand.
func TestExamples(t *testing.T) {
	t.Parallel()
	var v cborVectors
	loadJSON(t, "cbor.json", &v)
	c1, c2, sh := v.Parts["C1"], v.Parts["C2"], v.Parts["share"]
	tq := func(k quorum.MessageKind) Msg { return TQ{quorum.Message{RackID: rackR, Kind: k}} }
	lrtq := make([]byte, 32)
	for i := range lrtq {
		lrtq[i] = byte(16 + i)
	}
	req := "a16c50726f787952657175657374a26a726571756573745f696450deadbeef000040008000000000000001626f70"
	rsp := "a16d50726f7879526573706f6e7365a26a726571756573745f696450deadbeef00004000800000000000000166726573756c74"
	full := NodeStatus{
		ConnectedPeers: []ident.Baseboard{board("2"), board("3")}, HasLRTQShare: true,
		Alarms:  []Alarm{{Kind: AlarmShareComputationFailed, Epoch: 3, Err: "too_few_shares"}},
		Configs: []ident.Epoch{2, 3}, Shares: []ident.Epoch{2}, Commits: []ident.Epoch{2},
		Expunged: &quorum.Expunged{Epoch: 3, From: board("2")}, ProxiedRequests: 1,
	}
	for _, c := range []struct {
		m    Msg
		want string
		sum  string
	}{
		{Ping{}, "6450696e67", ""},
		{tq(quorum.Prepare{Config: config1(), Share: shareSH(t)}), prefixP + "a16750726570617265a266636f6e666967" + c1 + "657368617265" + sh, "1dc1f89eca97dcf0"},
		{tq(quorum.Prepare{Config: config2(), Share: shareSH(t)}), prefixP + "a16750726570617265a266636f6e666967" + c2 + "657368617265" + sh, "4e96330f43e72a9e"},
		{tq(quorum.PrepareAck{Epoch: 2}), prefixP + "a16a5072657061726541636b02", "68b0cd51738297a2"},
		{tq(quorum.GetShare{Epoch: 2}), prefixP + "a168476574536861726502", "0d5391acf2cca223"},
		{tq(quorum.ShareReply{Epoch: 2, Share: shareSH(t)}), prefixP + "a1655368617265a26565706f636802657368617265" + sh, "90a5fbda77213990"},
		{tq(quorum.GetLRTQShare{}), prefixP + "6c4765744c7274715368617265", "015f545f3b33f2fc"},
		{tq(quorum.LRTQShare{Share: share(t, 1, lrtq...)}), prefixP + "a1694c7274715368617265982101101112131415161718181819181a181b181c181d181e181f1820182118221823182418251826182718281829182a182b182c182d182e182f", "f7eafcc0e8f12e06"},
		{tq(quorum.ExpungedNotice{Epoch: 3}), prefixP + "a168457870756e67656403", "d1321d9e5c3d9cc1"},
		{tq(quorum.CommitAdvance{Config: config1()}), prefixP + "a16d436f6d6d6974416476616e6365" + c1, "7c9597a254c0008f"},
		{NetworkConfig{Generation: 7, Blob: []byte("{}")}, "a16d4e6574776f726b436f6e666967a26a67656e65726174696f6e0764626c6f6282187b187d", ""},
		{ProxyRequest{reqQ, ProxyCommit{rackR, 2}}, req + "a166436f6d6d6974a2677261636b5f69645000112233445546778899aabbccddeeff6565706f636802", ""},
		{ProxyRequest{reqQ, ProxyPrepareAndCommit{config1()}}, req + "a17050726570617265416e64436f6d6d6974a166636f6e666967" + c1, "f7f9d2654e3dff60"},
		{ProxyRequest{reqQ, ProxyStatus{}}, req + "66537461747573", ""},
		{ProxyResponse{reqQ, ProxyCommitted{quorum.Committed}}, rsp + "a1624f6ba166436f6d6d697469636f6d6d6974746564", ""},
		{ProxyResponse{reqQ, ProxyCommitted{quorum.Pending}}, rsp + "a1624f6ba166436f6d6d69746770656e64696e67", ""},
		{ProxyResponse{reqQ, NodeStatus{}}, rsp + "a1624f6ba166537461747573a46f636f6e6e65637465645f70656572738066616c61726d73807070657273697374656e745f7374617465a56e6861735f6c7274715f7368617265f467636f6e6669677380667368617265738067636f6d6d6974738068657870756e676564f67070726f786965645f726571756573747300", ""},
		{ProxyResponse{reqQ, full}, rsp + "a1624f6ba166537461747573a46f636f6e6e65637465645f706565727382a26b706172745f6e756d62657261706d73657269616c5f6e756d6265726132a26b706172745f6e756d62657261706d73657269616c5f6e756d626572613366616c61726d7381a1781873686172655f636f6d7075746174696f6e5f6661696c6564a26565706f636803636572726e746f6f5f6665775f7368617265737070657273697374656e745f7374617465a56e6861735f6c7274715f7368617265f567636f6e6669677382020366736861726573810267636f6d6d697473810268657870756e676564a26565706f6368036466726f6da26b706172745f6e756d62657261706d73657269616c5f6e756d62657261327070726f786965645f726571756573747301", ""},
		{ProxyResponse{reqQ, &ProxyError{Kind: ProxyInvalidRackID, Expected: rackR}}, rsp + "a163457272a166436f6d6d6974a16d496e76616c69645261636b4964a26865787065637465645000112233445546778899aabbccddeeff63676f745000000000000000000000000000000000", ""},
		{ProxyResponse{reqQ, &ProxyError{Kind: ProxyNotPrepared, Epoch: 2}}, rsp + "a163457272a166436f6d6d6974a16b4e6f74507265706172656402", ""},
		{ProxyResponse{reqQ, &ProxyError{Kind: ProxyExpunged, Epoch: 3, From: board("2")}}, rsp + "a163457272a166436f6d6d6974a168457870756e676564a26565706f6368036466726f6da26b706172745f6e756d62657261706d73657269616c5f6e756d6265726132", ""},
		{ProxyResponse{reqQ, &ProxyError{Kind: ProxyInvalidRackID, Prepare: true, Expected: rackR}}, rsp + "a163457272a17050726570617265416e64436f6d6d6974a16d496e76616c69645261636b4964a26865787065637465645000112233445546778899aabbccddeeff63676f745000000000000000000000000000000000", ""},
		{ProxyResponse{reqQ, &ProxyError{Kind: ProxyExpunged, Prepare: true, Epoch: 3, From: board("2")}}, rsp + "a163457272a17050726570617265416e64436f6d6d6974a168457870756e676564a26565706f6368036466726f6da26b706172745f6e756d62657261706d73657269616c5f6e756d6265726132", ""},
		{ProxyResponse{reqQ, &ProxyError{Kind: ProxyNoInnerError}}, rsp + "a163457272a16c4e6f496e6e65724572726f72f6", ""},
	} {
		have := mustEncode(t, c.m)
		if hex.EncodeToString(have) != c.want || (c.sum != "" && sum8(have) != c.sum) {
			t.Errorf("%T: digest %s\nhave %x\nwant %s", c.m, sum8(have), have, c.want)
		}
		if d := diff(c.m, mustDecode(t, have)); d != "" {
			t.Errorf("%T: decoded differs: %s", c.m, d)
		}
	}
}

// diff compares messages, shares included. A nil list equals an empty one.
func diff(a, b any) string {
	return cmp.Diff(a, b, cmpopts.EquateEmpty(),
		cmp.Comparer(func(x, y gfss.Share) bool { return x.X == y.X && x.Y.Equal(y.Y) }),
		cmp.Comparer(func(x, y *quorum.Configuration) bool { return x == y || (x != nil && y != nil && x.Equal(y)) }))
}
