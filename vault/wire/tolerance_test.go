package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// counted is an allocator that knows how many secrets live. A secret that nobody destroyed is freed by the collector, on
// a goroutine of its own.
type counted struct{ alive, made atomic.Int64 }

func (c *counted) Alloc(n int) ([]byte, func(), error) {
	c.alive.Add(1)
	c.made.Add(1)
	b := make([]byte, n)
	return b, func() { c.alive.Add(-1) }, nil
}

func (c *counted) live() int64  { return c.alive.Load() }
func (c *counted) total() int64 { return c.made.Load() }

func tx(s string) string { return hex.EncodeToString(append([]byte{0x60 | byte(len(s))}, s...)) }

// TestTolerance goes through wire.md §2: what a decoder takes besides our own form, and what it refuses.
func TestTolerance(t *testing.T) {
	t.Parallel()
	rackBytes := "50" + hex.EncodeToString(rackR[:])
	rack, kind := tx("rack_id")+rackBytes, tx("kind")
	tq := func(body string) string { return "a1" + tx("Tq") + "a2" + rack + kind + body }
	ack := func(epoch string) string { return tq("a1" + tx("PrepareAck") + epoch) }
	netcfg := func(body string) string { return "a1" + tx("NetworkConfig") + body }
	gen7, blob := tx("generation")+"07", tx("blob")+"82187b187d"
	shareOf := func(x, y string) string {
		return tq("a1" + tx("Share") + "a2" + tx("epoch") + "02" + tx("share") + "a2" + tx("x_coordinate") + x + tx("y_coordinates") + y)
	}
	y32 := "9820" + strings.Repeat("05", 32)
	b1 := "a2" + tx("part_number") + tx("p") + tx("serial_number") + tx("1")
	b2 := "a2" + tx("part_number") + tx("p") + tx("serial_number") + tx("2")
	dig := "5820" + strings.Repeat("a1", 32)
	config := func(members, secrets string) string {
		n, tail := "a5", ""
		if secrets != "" {
			n, tail = "a6", "76"+hex.EncodeToString([]byte("encrypted_rack_secrets"))+secrets
		}
		return tq("a1" + tx("CommitAdvance") + n + rack + tx("epoch") + "01" + tx("coordinator") + b1 + tx("members") + members + tx("threshold") + "02" + tail)
	}
	one := "8182" + b1 + dig
	salt := tx("salt") + "5820" + strings.Repeat("5a", 32)

	for _, c := range []struct {
		name, in string
		code     reason.Code // "" if accepted
	}{
		{"own form", ack("02"), ""},
		{"fields in another order", "a1" + tx("Tq") + "a2" + kind + "a1" + tx("PrepareAck") + "02" + rack, ""},
		{"unknown field", "a1" + tx("Tq") + "a3" + rack + tx("new") + "a1" + tx("x") + "82f601" + kind + "a1" + tx("PrepareAck") + "02", ""},
		{"unknown field, deep", netcfg("a3" + gen7 + blob + tx("new") + strings.Repeat("81", 20) + "00"), CodeDepth},
		{"unknown field, huge", netcfg("a3" + gen7 + blob + tx("new") + "9bffffffffffffffff"), CodeShort},
		{"unknown field, tag", netcfg("a3" + gen7 + blob + tx("new") + "c101"), CodeType},
		{"unknown field, indefinite bytes", netcfg("a3" + gen7 + blob + tx("new") + "5f4101ff"), CodeType},
		{"unknown field, float", netcfg("a3" + gen7 + blob + tx("new") + "fb3ff0000000000000"), ""},
		{"duplicate field", netcfg("a3" + gen7 + gen7 + blob), CodeDuplicate},
		{"missing field", netcfg("a1" + gen7), CodeMissing},
		{"missing optional field", config(one, ""), ""},
		{"struct as array", netcfg("820782187b187d"), CodeType},
		{"indefinite array", netcfg("a2" + gen7 + tx("blob") + "9f187b187dff"), ""},
		{"indefinite struct map", netcfg("bf" + gen7 + blob + "ff"), ""},
		{"indefinite, without end", netcfg("bf" + gen7 + blob), CodeShort},
		{"indefinite map for an enum", "bf" + tx("Tq") + "a2" + rack + kind + "a1" + tx("PrepareAck") + "02ff", CodeType},
		{"unit variant as map", "a1" + tx("Ping") + "f6", ""},
		{"unit variant as map of a number", "a1" + tx("Ping") + "00", CodeType},
		{"variant without its value", tx("Tq"), CodeType},
		{"unknown variant", tx("Pong"), CodeUnknown},
		{"unknown quorum kind", tq("a1" + tx("Prepared") + "02"), CodeUnknown},
		{"two variants in one map", "a2" + tx("Ping") + "f6" + tx("Ping") + "f6", CodeType},
		{"long number", ack("1b0000000000000002"), ""},
		{"largest number", ack("1bffffffffffffffff"), ""},
		{"tag before a value", ack("d86302"), CodeType},
		{"bignum", ack("c24102"), CodeType},
		{"negative number", ack("20"), CodeType},
		{"float for a number", ack("f94000"), CodeType},
		{"reserved head", ack("1c"), CodeType},
		{"indefinite text as name", "7f6450696e67ff", CodeType},
		{"rack id as text", "a1" + tx("Tq") + "a2" + tx("rack_id") + "782430303131323233332d343435352d343637372d383839392d616162626363646465656666" + kind + "a1" + tx("PrepareAck") + "02", CodeType},
		{"rack id of 15 bytes", "a1" + tx("Tq") + "a2" + tx("rack_id") + "4f" + strings.Repeat("00", 15) + kind + "a1" + tx("PrepareAck") + "02", CodeLength},
		{"digest as integers", config("8182"+b1+"9820"+strings.Repeat("18a1", 32), "f6"), ""},
		{"digest of 31 bytes", config("8182"+b1+"581f"+strings.Repeat("a1", 31), "f6"), CodeLength},
		{"share", shareOf("02", y32), ""},
		{"share as bytes", shareOf("02", "5820"+strings.Repeat("05", 32)), CodeType},
		{"share of 31", shareOf("02", "981f"+strings.Repeat("05", 31)), CodeLength},
		{"share of 33", shareOf("02", "9821"+strings.Repeat("05", 33)), CodeLength},
		{"share with 256", shareOf("02", "9820"+strings.Repeat("05", 31)+"190100"), CodeRange},
		{"share x 300", shareOf("19012c", y32), CodeRange},
		{"share x 0", shareOf("00", y32), CodeRange},
		{"share, then a broken rest", shareOf("02", y32) + "00", CodeTrailing},
		{"older share of 33", tq("a1" + tx("LrtqShare") + "9821" + strings.Repeat("05", 33)), ""},
		{"older share of 32", tq("a1" + tx("LrtqShare") + y32), CodeLength},
		{"older share as bytes", tq("a1" + tx("LrtqShare") + "5821" + strings.Repeat("05", 33)), CodeType},
		{"blob as bytes", netcfg("a2" + gen7 + tx("blob") + "427b7d"), ""},
		{"blob with 256", netcfg("a2" + gen7 + tx("blob") + "81190100"), CodeRange},
		{"secrets", config(one, "a2"+salt+tx("data")+tx("00fe")), ""},
		{"secrets in upper case", config(one, "a2"+salt+tx("data")+tx("00FE")), ""},
		{"secrets, odd", config(one, "a2"+salt+tx("data")+tx("00f")), CodeText},
		{"secrets, no hex", config(one, "a2"+salt+tx("data")+tx("0x")), CodeText},
		{"secrets as bytes", config(one, "a2"+salt+tx("data")+"420001"), CodeType},
		{"salt missing", config(one, "a1"+tx("data")+tx("00")), CodeMissing},
		{"no members", config("80", "f6"), ""},
		{"member twice", config("8282"+b1+dig+"82"+b1+dig, "f6"), CodeDuplicate},
		{"members not ascending", config("8282"+b2+dig+"82"+b1+dig, "f6"), CodeOrder},
		{"members ascending", config("8282"+b1+dig+"82"+b2+dig, "f6"), ""},
		{"256 members", config("990100", "f6"), CodeLength},
		{"member of three", config("8183"+b1+dig+"00", "f6"), CodeLength},
		{"member of one", config("8181"+b1, "f6"), CodeLength},
		{"baseboard with a blank", config("8182"+strings.Replace(b1, tx("p"), tx(" "), 1)+dig, "f6"), CodeText},
		{"baseboard not UTF-8", config("8182"+strings.Replace(b1, tx("p"), "61ff", 1)+dig, "f6"), CodeText},
		{"baseboard too long", config("8182"+strings.Replace(b1, tx("p"), "7834"+strings.Repeat("61", 52), 1)+dig, "f6"), CodeLength},
		{"nothing", "", CodeShort},
		{"null", "f6", CodeType},
		{"trailing byte", "6450696e6700", CodeTrailing},
		{"text that never comes", "7bffffffffffffffff", CodeLength},
		{"accepted as a number", "a1" + tx(ownName) + "a1" + "6e" + hex.EncodeToString([]byte("EvidenceResult")) + "a2" + tx("accepted") + "01" + tx("reason") + "60", CodeType},
	} {
		a := &counted{}
		m, err := Decode(a, unhex(t, c.in))
		if have := reason.CodeOf(err); have != c.code || (err == nil) != (c.code == "") {
			t.Errorf("%s: have %q (%v), want %q", c.name, have, err, c.code)
		}
		if err != nil && (m != nil || a.live() != 0) {
			t.Errorf("%s: refused, but %v and %d secrets remain", c.name, m, a.live())
		}
		if err == nil {
			if _, err := Encode(nil, m); err != nil {
				t.Errorf("%s: accepted, but cannot be encoded: %v", c.name, err)
			}
			Destroy(m)
			if a.live() != 0 {
				t.Errorf("%s: %d secrets outlive Destroy", c.name, a.live())
			}
		}
	}
}

// TestCutShort cuts every reference message at every byte.
func TestCutShort(t *testing.T) {
	t.Parallel()
	var v cborVectors
	loadJSON(t, "cbor.json", &v)
	for _, m := range v.Wire {
		p := unhex(t, m.Frame)[4:]
		for n := range p {
			if _, err := Decode(secret.Heap{}, p[:n]); reason.CodeOf(err) == "" {
				t.Fatalf("%s: the first %d bytes: have %v, want a code", m.Name, n, err)
			}
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	tq := func(k quorum.MessageKind) Msg { return TQ{quorum.Message{RackID: rackR, Kind: k}} }
	backwards := config1()
	backwards.Members[0], backwards.Members[1] = backwards.Members[1], backwards.Members[0]
	many := config1()
	many.Members = make([]quorum.Member, 256)
	gone := shareSH(t)
	gone.Destroy()
	for name, m := range map[string]Msg{
		"nothing":           nil,
		"no kind":           tq(nil),
		"no configuration":  tq(quorum.CommitAdvance{}),
		"not ascending":     tq(quorum.CommitAdvance{Config: backwards}),
		"256 members":       tq(quorum.CommitAdvance{Config: many}),
		"destroyed share":   tq(quorum.ShareReply{Epoch: 1, Share: gone}),
		"short share":       tq(quorum.ShareReply{Epoch: 1, Share: share(t, 1, 2, 3)}),
		"share x 0":         tq(quorum.ShareReply{Epoch: 1, Share: share(t, 0, make([]byte, 32)...)}),
		"no grant":          tq(quorum.GrantNotice{}),
		"no certificate":    tq(quorum.CommitProof{}),
		"blob too large":    NetworkConfig{Blob: make([]byte, MaxPayload)},
		"set too large":     EnrolmentSet{make([]byte, 512<<10+1)},
		"evidence too long": Evidence{make([]byte, MaxPayload)},
		"long reason":       EvidenceResult{Reason: strings.Repeat("x", 201)},
		"no operation":      ProxyRequest{},
		"no result":         ProxyResponse{},
		"invented status":   ProxyResponse{Result: ProxyCommitted{"done"}},
		"invented error":    ProxyResponse{Result: &ProxyError{Kind: "Full"}},
		"not prepared":      ProxyResponse{Result: &ProxyError{Kind: ProxyNotPrepared, Prepare: true}},
		"invented alarm":    ProxyResponse{Result: NodeStatus{Alarms: []Alarm{{Kind: "fire"}}}},
		"invented cause":    ProxyResponse{Result: NodeStatus{Alarms: []Alarm{{Kind: AlarmDecryptionFailed, Err: "size"}}}},
	} {
		if b, err := Encode([]byte("x"), m); reason.CodeOf(err) == "" || b != nil {
			t.Errorf("%s: have %d bytes, %v; want a code", name, len(b), err)
		}
	}
}

// failing is an allocator without memory.
type failing struct{}

func (failing) Alloc(int) ([]byte, func(), error) { return nil, nil, errors.New("no memory") }

func TestNoMemoryForShare(t *testing.T) {
	t.Parallel()
	b := mustEncode(t, TQ{quorum.Message{RackID: rackR, Kind: quorum.ShareReply{Epoch: 1, Share: shareSH(t)}}})
	if _, err := Decode(failing{}, b); reason.CodeOf(err) != CodeAllocate {
		t.Errorf("have %v, want %s", err, CodeAllocate)
	}
}

func TestEncodeAppends(t *testing.T) {
	t.Parallel()
	for _, room := range []int{0, 2, 4096} {
		dst := append(make([]byte, 0, room+2), "ab"...)
		b, err := Encode(dst, Ping{})
		if err != nil || string(b) != "ab\x64Ping" {
			t.Errorf("have %q, %v", b, err)
		}
		f, err := AppendFrame(dst, Ping{})
		if err != nil || !bytes.Equal(f, []byte("ab\x00\x00\x00\x05\x64Ping")) {
			t.Errorf("have %q, %v", f, err)
		}
	}
}
