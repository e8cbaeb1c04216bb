package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

const lrtqVectorFile = "../../lrtq/testdata/lrtq.json"

type lrtqVectors struct {
	Hello    string
	Identify []struct {
		CBOR  string
		Value struct {
			Addr netip.AddrPort
			ID   struct {
				Type, Identifier, Model string
				Revision                uint32
			}
		}
	}
	Wire []struct{ Name, CBOR string }
	FSM  struct {
		Ledgers []struct{ JSON string }
	}
	Packages []struct {
		Full *string `json:"full_first_pkg_json"`
	}
}

func pc(name string) lrtq.Board {
	return lrtq.Board{Kind: lrtq.PC, Identifier: name, Model: "p"}
}

// exampleCommon is the package of wire.md §10: two digests for brevity, so it is none that anybody made.
func exampleCommon(t testing.TB) lrtq.Package {
	t.Helper()
	y := make([]byte, ShareSize)
	for i := range y {
		y[i] = byte(0x10 + i)
	}
	p := lrtq.Package{RackID: rackR, Threshold: 2, Share: share(t, 1, y...)}
	for _, c := range []byte{1, 2} {
		p.Digests = append(p.Digests, [32]byte(bytes.Repeat([]byte{c}, 32)))
	}
	return p
}

var exampleRequest = lrtq.RequestID{0xde, 0xad, 0xbe, 0xef, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 1}

// lrtqExamples are the messages of wire.md §10 with their bytes.
func lrtqExamples(t testing.TB) map[string]LRTQMsg {
	t.Helper()
	common := exampleCommon(t)
	pkg := lrtq.SharePackage{Common: common, Members: []lrtq.Board{pc("1"), pc("2")}, Encrypted: []byte{9, 8, 7}}
	copy(pkg.Salt[:], bytes.Repeat([]byte{3}, 32))
	copy(pkg.Nonce[:], bytes.Repeat([]byte{4}, 12))
	req := func(k lrtq.RequestKind) LRTQMsg { return LRTQ{lrtq.Request{ID: exampleRequest, Kind: k}} }
	rsp := func(k lrtq.ResponseKind) LRTQMsg { return LRTQ{lrtq.Response{Request: exampleRequest, Kind: k}} }
	return map[string]LRTQMsg{
		"Ping":                         Ping{},
		"NetworkConfig":                NetworkConfig{7, []byte("{}")},
		"Req Init":                     req(lrtq.Init{Package: pkg}),
		"Req GetShare":                 req(lrtq.GetShare{RackID: rackR}),
		"Req Learn":                    req(lrtq.Learn{}),
		"Rsp InitAck":                  rsp(lrtq.InitAck{}),
		"Rsp Share":                    rsp(lrtq.ShareReply{Share: common.Share}),
		"Rsp LearnPkg":                 rsp(lrtq.LearnReply{Package: common}),
		"Rsp Error AlreadyInitialized": rsp(lrtq.Refusal{Why: lrtq.AlreadyInitialized}),
		"Rsp Error RackUuidMismatch":   rsp(lrtq.Refusal{Why: lrtq.RackMismatch, Expected: rackR}),
	}
}

func TestLRTQFrozen(t *testing.T) {
	t.Parallel()
	examples := lrtqExamples(t)
	if len(examples) != len(frozenLRTQ) {
		t.Errorf("have %d examples, want %d", len(examples), len(frozenLRTQ))
	}
	for name, m := range examples {
		have, err := EncodeLRTQ(nil, m)
		if err != nil || hex.EncodeToString(have) != frozenLRTQ[name] {
			t.Errorf("%s: %v\nhave %x\nwant %s", name, err, have, frozenLRTQ[name])
			continue
		}
		again, err := DecodeLRTQ(&counted{}, have)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if d := diff(m, again); d != "" {
			t.Errorf("%s: decoded differs: %s", name, d)
		}
		frame, err := AppendLRTQFrame(nil, m)
		if p, err2 := ReadLRTQFrame(bytes.NewReader(frame), nil); err != nil || err2 != nil || !bytes.Equal(p, have) {
			t.Errorf("%s: frame: %v, %v", name, err, err2)
		}
	}
}

// TestLRTQVectors reads every message of the reference's recorded run and writes it again.
func TestLRTQVectors(t *testing.T) {
	t.Parallel()
	var v lrtqVectors
	loadJSON(t, lrtqVectorFile, &v)
	if len(v.Wire) < 12 || len(v.Identify) != 2 {
		t.Fatalf("have %d messages", len(v.Wire))
	}
	for _, c := range v.Wire {
		in := unhex(t, c.CBOR)
		a := &counted{}
		m, err := DecodeLRTQ(a, in)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if out, err := EncodeLRTQ(nil, m); err != nil || !bytes.Equal(in, out) {
			t.Errorf("%s: %v: written again, it differs", c.Name, err)
		}
		fsm := m.(LRTQ)
		way := map[bool]string{true: "req ", false: "rsp "}
		_, isReq := fsm.Message.(lrtq.Request)
		if name := way[isReq] + string(lrtq.KindOf(fsm.Message)); name != c.Name {
			t.Errorf("have %s, want %s", name, c.Name)
		}
		DestroyLRTQ(m)
		if a.live() != 0 {
			t.Errorf("%s: %d secrets remain", c.Name, a.live())
		}
	}
	for _, c := range v.Identify {
		want := LRTQIdentify{lrtq.Board{Kind: lrtq.PC, Identifier: c.Value.ID.Identifier, Model: c.Value.ID.Model, Revision: c.Value.ID.Revision}, c.Value.Addr}
		if c.Value.ID.Type == "gimlet" {
			want.ID.Kind = lrtq.Gimlet
		}
		bytesOf, err := AppendLRTQHandshake(nil, want)
		if err != nil || hex.EncodeToString(bytesOf[:16]) != v.Hello || hex.EncodeToString(bytesOf[20:]) != c.CBOR || int(bytesOf[19]) != len(bytesOf)-20 {
			t.Errorf("%v: %v: have %x", want, err, bytesOf)
			continue
		}
		if got, err := ReadLRTQHandshake(bytes.NewReader(bytesOf)); err != nil || got != want {
			t.Errorf("have %v (%v), want %v", got, err, want)
		}
	}
}

func TestLRTQHandshakeRefuses(t *testing.T) {
	t.Parallel()
	good, err := AppendLRTQHandshake(nil, LRTQIdentify{pc("1"), netip.MustParseAddrPort("[::1]:5")})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   reason.Code
	}{
		"good":          {func(b []byte) []byte { return b }, ""},
		"reserved bits": {func(b []byte) []byte { b[9] = 1; return b }, ""},
		"scheme":        {func(b []byte) []byte { b[3] = 1; return b }, CodeVersion},
		"version":       {func(b []byte) []byte { b[4] = 1; return b }, CodeVersion},
		"empty":         {func(b []byte) []byte { b[19] = 0; return b }, CodeTooLarge},
		"109 bytes":     {func(b []byte) []byte { b[19] = 109; return append(b, make([]byte, 80)...) }, CodeTooLarge},
		"4 GiB":         {func(b []byte) []byte { copy(b[16:], "\xff\xff\xff\xff"); return b }, CodeTooLarge},
		"nothing":       {func([]byte) []byte { return nil }, CodeShort},
		"short hello":   {func(b []byte) []byte { return b[:12] }, CodeShort},
		"short":         {func(b []byte) []byte { return b[:len(b)-1] }, CodeShort},
		"trailing":      {func(b []byte) []byte { b[19]++; return append(b, 0) }, CodeTrailing},
		"port": {func(b []byte) []byte {
			b[19] += 4
			return append(b[:len(b)-1], 0x1a, 0, 1, 0, 0)
		}, CodeRange},
		"unknown kind": {func(b []byte) []byte { return bytes.Replace(b, []byte("bpc"), []byte("bpd"), 1) }, CodeUnknown},
		"no revision": {func(b []byte) []byte {
			b[19] += 4
			return bytes.Replace(b, []byte("\x62pc"), []byte("\x66gimlet"), 1)
		}, CodeMissing},
		"identity": {func(b []byte) []byte { return bytes.Replace(b, []byte("identifiera1"), []byte("identifiera:"), 1) }, CodeText},
	} {
		if _, err := ReadLRTQHandshake(bytes.NewReader(c.change(bytes.Clone(good)))); reason.CodeOf(err) != c.want {
			t.Errorf("%s: have %v, want %q", name, err, c.want)
		}
	}
	long := lrtq.Board{Kind: lrtq.Gimlet, Identifier: strings.Repeat("i", 51), Model: strings.Repeat("m", 51)}
	if _, err := AppendLRTQHandshake(nil, LRTQIdentify{long, netip.MustParseAddrPort("[::1]:5")}); reason.CodeOf(err) != CodeTooLarge {
		t.Errorf("too long: have %v", err)
	}
	if _, err := AppendLRTQHandshake(nil, LRTQIdentify{pc("1"), netip.MustParseAddrPort("127.0.0.1:5")}); reason.CodeOf(err) != CodeEncode {
		t.Errorf("IPv4: have %v", err)
	}
}

func TestLRTQDecodeRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		of, from, to string
		want         reason.Code
	}{
		"unknown message":  {"Ping", "6450696e67", "6450696e68", CodeUnknown},
		"unknown request":  {"Req Learn", "654c6561726e", "654c6561726f", CodeUnknown},
		"unknown response": {"Rsp InitAck", "67496e697441636b", "67496e697441636c", CodeUnknown},
		"unknown error":    {"Rsp Error AlreadyInitialized", "416c7265616479", "426c7265616479", CodeUnknown},
		"share of 32":      {"Rsp Share", "982101", "982001", CodeLength},
		"share number 0":   {"Rsp Share", "982101", "982100", CodeRange},
		"share of 256":     {"Rsp Share", "182f", "19012f", CodeRange},
		"digests":          {"Rsp LearnPkg", "82982001", "82982003", CodeOrder},
		"threshold":        {"Rsp LearnPkg", "686f6c6402", "686f6c64190100", CodeRange},
		"members":          {"Req Init", "6965726132", "6965726131", CodeDuplicate},
		"unsorted":         {"Req Init", "6965726131656d", "6965726133656d", CodeOrder},
		"salt":             {"Req Init", "7498200303", "74981f03", CodeLength},
		"nonce":            {"Req Init", "8c04", "8b", CodeLength},
		"no id":            {"Req Learn", "a2626964", "a2626965", CodeMissing},
		"trailing":         {"Rsp InitAck", "41636b", "41636b00", CodeTrailing},
		"short":            {"Rsp Share", "182e182f", "182e", CodeShort},
	} {
		in := strings.Replace(frozenLRTQ[c.of], c.from, c.to, 1)
		if in == frozenLRTQ[c.of] {
			t.Fatalf("%s: nothing replaced", name)
		}
		a := &counted{}
		if _, err := DecodeLRTQ(a, unhex(t, in)); reason.CodeOf(err) != c.want || a.live() != 0 {
			t.Errorf("%s: have %v, want %s; %d secrets remain", name, err, c.want, a.live())
		}
	}
	if _, err := DecodeLRTQ(&counted{}, make([]byte, MaxLRTQPayload+1)); reason.CodeOf(err) != CodeTooLarge {
		t.Errorf("too large: have %v", err)
	}
	if _, err := ReadLRTQFrame(bytes.NewReader([]byte{0, 8, 0, 0}), nil); reason.CodeOf(err) != CodeTooLarge {
		t.Errorf("too large a frame: have %v", err)
	}
}

// FuzzDecodeLRTQ: no panic, no secret left behind, and what is accepted survives a trip through the encoder.
func FuzzDecodeLRTQ(f *testing.F) {
	for _, b := range frozenLRTQ {
		f.Add(unhex(f, b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a := &counted{}
		m, err := DecodeLRTQ(a, b)
		if err != nil {
			if reason.CodeOf(err) == "" || a.live() != 0 {
				t.Fatalf("%v: %d secrets remain", err, a.live())
			}
			return
		}
		if err := cbor.Wellformed(b); err != nil {
			t.Fatalf("accepted what is not CBOR: %v", err)
		}
		once, err := EncodeLRTQ(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeLRTQ(a, once)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := EncodeLRTQ(nil, again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%v\n%x\n%x", err, once, twice)
		}
	})
}

// FuzzLRTQHandshake: what is accepted is said again in the same words, up to the reserved bits.
func FuzzLRTQHandshake(f *testing.F) {
	b, _ := AppendLRTQHandshake(nil, LRTQIdentify{pc("1"), netip.MustParseAddrPort("[::1]:5")})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &greedy{r: bytes.NewReader(b)}
		id, err := ReadLRTQHandshake(r)
		if r.most > maxHandshake {
			t.Fatalf("makes room for %d bytes", r.most)
		}
		if err != nil || id.Addr.Addr().Is4In6() {
			return
		}
		again, err := AppendLRTQHandshake(nil, id)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ReadLRTQHandshake(bytes.NewReader(again)); err != nil || got != id {
			t.Fatalf("have %v (%v), want %v", got, err, id)
		}
	})
}

func TestLRTQLedgers(t *testing.T) {
	t.Parallel()
	var v lrtqVectors
	loadJSON(t, lrtqVectorFile, &v)
	files := []string{`{"generation":1,"state":"Uninitialized"}`, `{"generation":18446744073709551615,"state":"Learning"}`}
	for _, l := range v.FSM.Ledgers {
		files = append(files, l.JSON)
	}
	for _, p := range v.Packages {
		if p.Full != nil {
			files = append(files, `{"generation":1,"state":{"InitialMember":{"pkg":`+*p.Full+`,"distributed_shares":[]}}}`)
		}
	}
	if len(files) != 7 {
		t.Fatalf("have %d files, want 7", len(files))
	}
	for i, in := range files {
		a := &counted{}
		l, err := DecodeLRTQLedger(a, []byte(in))
		if err != nil {
			t.Errorf("file %d: %v", i, err)
			continue
		}
		if out, err := EncodeLRTQLedger(l); err != nil || string(out) != in {
			t.Errorf("file %d: %v: written again, it differs", i, err)
		}
		if _, err := lrtq.New(lrtq.Config{ID: pc("x"), Rand: rand.NewChaCha8([32]byte{}), Alloc: secret.Heap{}}, l.State); err != nil {
			t.Errorf("file %d: %v", i, err)
		}
		l.Destroy()
		if a.live() != 0 {
			t.Errorf("file %d: %d secrets remain", i, a.live())
		}
	}
	good := v.FSM.Ledgers[0].JSON
	for name, c := range map[string]struct {
		from, to string
		want     reason.Code
	}{
		"blanks":            {`{"generation":1,`, " {\n\"generation\" : 1 , ", ""},
		"newline":           {`]]}}}`, "]]}}}\n", ""},
		"generation 0":      {`"generation":1`, `"generation":0`, CodeRange},
		"no generation":     {`"generation":1,`, ``, CodeMissing},
		"unknown key":       {`"generation":1`, `"generation":1,"x":2`, CodeUnknownKey},
		"twice":             {`"generation":1`, `"generation":1,"generation":1`, CodeDuplicate},
		"state":             {`InitialMember`, `FinalMember`, CodeUnknownKey},
		"no state":          {`{"InitialMember":`, `{"Learned":null,"InitialMember":`, CodeType},
		"epoch":             {`"epoch":0`, `"epoch":1`, CodeLedger},
		"negative epoch":    {`"epoch":0`, `"epoch":-1`, CodeType},
		"threshold":         {`"threshold":2`, `"threshold":256`, CodeType},
		"threshold 1":       {`"threshold":2`, `"threshold":1`, CodeLedger},
		"share changed":     {`"share":[86`, `"share":[87`, CodeLedger},
		"share number 0":    {`"share":[86`, `"share":[0`, CodeLedger},
		"share short":       {`"share":[86,`, `"share":[`, CodeLength},
		"share 256":         {`"share":[86`, `"share":[256`, CodeRange},
		"share 08":          {`"share":[86`, `"share":[086`, CodeType},
		"share 1e1":         {`"share":[86`, `"share":[1e1`, CodeRange},
		"share text":        {`"share":[86`, `"share":["86"`, CodeRange},
		"share nested":      {`"share":[86`, `"share":[[86]`, CodeRange},
		"digests unsorted":  {`"share_digests":[[1,`, `"share_digests":[[255,`, CodeOrder},
		"rack":              {`00112233-4455`, `00112233-445G`, CodeText},
		"rack upper case":   {`ccddeeff`, `CCDDEEFF`, CodeText},
		"board kind":        {`"type":"pc"`, `"type":"pd"`, CodeUnknown},
		"gimlet":            {`"type":"pc"`, `"type":"gimlet"`, CodeUnknown},
		"pc with revision":  {`"type":"pc"`, `"type":"pc","revision":1`, CodeUnknown},
		"members unsorted":  {`"identifier":"0"`, `"identifier":"9"`, CodeLedger},
		"given too high":    {`"model":"p"},0]`, `"model":"p"},84]`, CodeLedger},
		"given negative":    {`"model":"p"},0]`, `"model":"p"},-1]`, CodeType},
		"given three":       {`"model":"p"},0]`, `"model":"p"},0,0]`, CodeLength},
		"cut":               {`]]}}}`, `]]}}`, CodeShort},
		"cut in a number":   {`,"state"`, ``, CodeType},
		"something follows": {`]]}}}`, `]]}}}{}`, CodeTrailing},
		"not JSON":          {`{"generation"`, `<"generation"`, CodeType},
	} {
		in := strings.Replace(good, c.from, c.to, 1)
		if in == good {
			t.Fatalf("%s: nothing replaced", name)
		}
		a := &counted{}
		l, err := DecodeLRTQLedger(a, []byte(in))
		if reason.CodeOf(err) != c.want {
			t.Errorf("%s: have %q (%v), want %q", name, reason.CodeOf(err), err, c.want)
		}
		l.Destroy()
		if a.live() != 0 {
			t.Errorf("%s: %d secrets remain", name, a.live())
		}
	}
	if _, err := EncodeLRTQLedger(LRTQLedger{}); reason.CodeOf(err) != CodeRange {
		t.Errorf("generation 0 was written: %v", err)
	}
}

// TestReferenceStates reads and writes every trust-quorum ledger that the reference made.
func TestReferenceStates(t *testing.T) {
	t.Parallel()
	var v struct {
		Cases []struct {
			Name       string
			Generation uint64
			Ledger     string `json:"ledger_file"`
			Summary    struct {
				LRTQOnly bool          `json:"is_lrtq_only"`
				Latest   *ident.Epoch  `json:"latest_config"`
				Commit   *ident.Epoch  `json:"latest_committed_config"`
				RackID   *ident.RackID `json:"rack_id"`
			} `json:"persistent_state_summary"`
		}
	}
	loadJSON(t, "persistent.json", &v)
	for _, c := range v.Cases {
		a := &counted{}
		l, err := DecodeTrustQuorumLedger(a, []byte(c.Ledger))
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if out, err := EncodeTrustQuorumLedger(l); err != nil || string(out) != c.Ledger || l.Generation != c.Generation {
			t.Errorf("%s: %v: written again, it differs\nhave %.400s\nwant %.400s", c.Name, err, out, c.Ledger)
		}
		latest, committed := l.State.LatestConfig(), l.State.LatestCommittedConfig()
		rack, known := l.State.RackID()
		if l.State.LRTQOnly() != c.Summary.LRTQOnly || (latest == nil) != (c.Summary.Latest == nil) || latest != nil && latest.Epoch != *c.Summary.Latest ||
			(committed == nil) != (c.Summary.Commit == nil) || committed != nil && committed.Epoch != *c.Summary.Commit ||
			known != (c.Summary.RackID != nil) || known && rack != *c.Summary.RackID {
			t.Errorf("%s: another summary than %+v", c.Name, c.Summary)
		}
		l.Destroy()
		if a.live() != 0 {
			t.Errorf("%s: %d secrets remain", c.Name, a.live())
		}
	}
}

// TestReferenceDecoder holds ours against the reference's decoder: what that refuses, ours refuses; of what it accepts,
// ours refuses every second form of the same state, with the reason.
func TestReferenceDecoder(t *testing.T) {
	t.Parallel()
	strict := map[string]reason.Code{
		"unknown key": CodeUnknownKey, "commits unsorted with duplicates": CodeOrder, "configs as a map of values": CodeType,
		"digest in upper case": CodeText, "uuid in upper case": CodeText, "uuid without hyphens": CodeText,
		"duplicate member: last wins": CodeDuplicate, "data in upper case": CodeText, "share keys not numeric order": CodeLength,
		"duplicate share epoch": CodeLength, "empty members": "",
	}
	refused := map[string]reason.Code{
		"configs missing": CodeMissing, "shares missing": CodeMissing, "commits missing": CodeMissing, "duplicate key": CodeDuplicate,
		"duplicate config epoch": CodeDuplicate, "members as an object": CodeType, "salt as array": CodeType, "data odd length": CodeText,
		"share x 256": CodeRange,
	}
	var v struct {
		Decoder []struct {
			Name, Input string
			OK          bool
			Again       *string `json:"written_again"`
		}
	}
	loadJSON(t, "persistent.json", &v)
	if len(v.Decoder) != 23 {
		t.Fatalf("have %d cases, want 23", len(v.Decoder))
	}
	for _, c := range v.Decoder {
		l, err := DecodeTrustQuorumLedger(&counted{}, []byte(`{"generation":1,"state":`+c.Input+`}`))
		want := strict[c.Name]
		if !c.OK {
			want = refused[c.Name]
			if want == "" {
				t.Errorf("%s: the reference refuses it, and no verdict of ours is written here", c.Name)
			}
		}
		if reason.CodeOf(err) != want || (err == nil) != (want == "") {
			t.Errorf("%s: have %q (%v), want %q", c.Name, reason.CodeOf(err), err, want)
		}
		if err != nil {
			if reason.HintOf(err) == "" || strings.Contains(err.Error(), "%!") {
				t.Errorf("%s: %v", c.Name, err)
			}
			continue
		}
		if out, err := EncodeTrustQuorumLedger(l); err != nil || string(out) != `{"generation":1,"state":`+*c.Again+`}` {
			t.Errorf("%s: %v: written again, it differs", c.Name, err)
		}
	}
	good := `{"generation":1,"state":{"configs":[],"shares":{"9":{"x_coordinate":1,"y_coordinates":[` + strings.Repeat("7,", 31) + `7]},"10":{"x_coordinate":2,"y_coordinates":[` +
		strings.Repeat("8,", 31) + `8]}},"commits":[1,3],"expunged":{"epoch":3,"from":{"part_number":"p","serial_number":"1"}}}}`
	for name, c := range map[string]struct {
		from, to string
		want     reason.Code
	}{
		"good":             {`"commits":[1,3]`, `"commits":[ 1 , 3 ]`, ""},
		"share order":      {`{"9":`, `{"11":`, CodeOrder},
		"share twice":      {`"10":`, `"9":`, CodeDuplicate},
		"share key":        {`"9":`, `"09":`, CodeText},
		"share key text":   {`"9":`, `"nine":`, CodeText},
		"share x 0":        {`"x_coordinate":1`, `"x_coordinate":0`, CodeRange},
		"share x 1.0":      {`"x_coordinate":1`, `"x_coordinate":1.0`, CodeRange},
		"share long":       {`[7,`, `[7,7,`, CodeLength},
		"shares as list":   {`"shares":{`, `"shares":[{`, CodeType},
		"commit twice":     {`[1,3]`, `[3,3]`, CodeDuplicate},
		"commit fraction":  {`[1,3]`, `[1,3.5]`, CodeType},
		"expunged half":    {`"epoch":3,"from"`, `"from"`, CodeMissing},
		"expunged by":      {`"serial_number":"1"`, `"serial_number":" "`, CodeText},
		"trailing comma":   {`[1,3]`, `[1,3,]`, CodeType},
		"no colon":         {`"commits":[`, `"commits"[`, CodeType},
		"a bare key":       {`"commits":`, `commits:`, CodeType},
		"configuration":    {`"configs":[]`, `"configs":[null]`, CodeType},
		"deep":             {`"configs":[]`, `"configs":` + strings.Repeat("[", 30) + strings.Repeat("]", 30), CodeDepth},
		"escaped key":      {`"commits"`, `"c\u006fmmits"`, ""},
		"control in text":  {`"serial_number":"1"`, "\"serial_number\":\"\n\"", CodeType},
		"true for a state": {good[len(`{"generation":1,"state":`) : len(good)-1], `true`, CodeType},
	} {
		in := strings.Replace(good, c.from, c.to, 1)
		if in == good {
			t.Fatalf("%s: nothing replaced", name)
		}
		a := &counted{}
		l, err := DecodeTrustQuorumLedger(a, []byte(in))
		if name == "shares as list" && err != nil { // two faults; either will do
			continue
		}
		if reason.CodeOf(err) != c.want {
			t.Errorf("%s: have %q (%v), want %q", name, reason.CodeOf(err), err, c.want)
		}
		l.Destroy()
		if a.live() != 0 {
			t.Errorf("%s: %d secrets remain", name, a.live())
		}
	}
	if _, err := DecodeTrustQuorumLedger(&counted{}, make([]byte, MaxReferenceLedger+1)); reason.CodeOf(err) != CodeTooLarge {
		t.Errorf("too large: have %v", err)
	}
}

func TestNetworkConfigLedger(t *testing.T) {
	t.Parallel()
	const file = `{"generation":7,"blob":[123,125]}`
	c, err := DecodeNetworkConfigLedger([]byte(file))
	if err != nil || c.Generation != 7 || string(c.Blob) != "{}" {
		t.Fatalf("have %+v (%v)", c, err)
	}
	if out, err := EncodeNetworkConfigLedger(c); err != nil || string(out) != file {
		t.Errorf("%v: have %s, want %s", err, out, file)
	}
	if c, err := DecodeNetworkConfigLedger([]byte(`{"generation":1,"blob":[]}`)); err != nil || len(c.Blob) != 0 {
		t.Errorf("empty blob: have %v (%v)", c, err)
	}
	for in, want := range map[string]reason.Code{
		`{"generation":0,"blob":[]}`: CodeRange, `{"generation":1,"blob":[256]}`: CodeRange, `{"generation":1,"blob":"{}"}`: CodeType,
		`{"generation":1}`: CodeMissing, `{"generation":1,"blob":[1,]}`: CodeType, `[]`: CodeType, ``: CodeShort, `{"generation":"1","blob":[]}`: CodeType,
	} {
		if _, err := DecodeNetworkConfigLedger([]byte(in)); reason.CodeOf(err) != want {
			t.Errorf("%s: have %v, want %s", in, err, want)
		}
	}
}

// FuzzReferenceLedgers: no panic, no secret left behind, and what is accepted is written in one form.
func FuzzReferenceLedgers(f *testing.F) {
	var v lrtqVectors
	loadJSON(f, lrtqVectorFile, &v)
	f.Add([]byte(v.FSM.Ledgers[3].JSON))
	var p struct {
		Cases []struct {
			Ledger string `json:"ledger_file"`
		}
		Decoder []struct{ Input string }
	}
	loadJSON(f, "persistent.json", &p)
	for _, c := range p.Cases[:3] {
		f.Add([]byte(c.Ledger))
	}
	for _, c := range p.Decoder {
		f.Add([]byte(`{"generation":1,"state":` + c.Input + `}`))
	}
	f.Add([]byte(`{"generation":7,"blob":[123,125]}`))
	f.Add([]byte(`{"generation":7,"state":"Learning"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a := &counted{}
		check := func(err error, again func() ([]byte, error)) {
			if err != nil {
				if reason.CodeOf(err) == "" || a.live() != 0 {
					t.Fatalf("%v: %d secrets remain", err, a.live())
				}
				return
			}
			if !json.Valid(b) {
				t.Fatal("accepted what is not JSON")
			}
			if _, err := again(); err != nil {
				t.Fatal(err)
			}
		}
		l, err := DecodeTrustQuorumLedger(a, b)
		check(err, func() ([]byte, error) { return EncodeTrustQuorumLedger(l) })
		l.Destroy()
		o, err := DecodeLRTQLedger(a, b)
		check(err, func() ([]byte, error) { return EncodeLRTQLedger(o) })
		o.Destroy()
		c, err := DecodeNetworkConfigLedger(b)
		check(err, func() ([]byte, error) { return EncodeNetworkConfigLedger(c) })
		// the scanner agrees with the library on what is JSON, apart from depth
		d := &jsonReader{}
		d.whole(b)
		if valid := json.Valid(b); d.err == nil && !valid || d.err != nil && d.err.Code != CodeDepth && valid {
			t.Fatalf("JSON: %v, the scanner says %v", valid, d.err)
		}
	})
}

// TestLRTQDocs checks that wire.md shows the bytes that we write.
func TestLRTQDocs(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range frozenLRTQ {
		if !strings.Contains(string(doc), b) {
			t.Errorf("%s is not in wire.md", name)
		}
	}
}

func TestSniffReferenceLedger(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]ReferenceLedgerKind{
		`{"generation":1,"state":"Learning"}`:                              LedgerLRTQ,
		` {"generation":1,"state": { "InitialMember" :{}}}`:                LedgerLRTQ,
		`{"generation":1,"state":{"Learned":{}}}`:                          LedgerLRTQ,
		`{"generation":1,"state":{"configs":["Learned","InitialMember"]}}`: LedgerTrustQuorum,
		`{"generation":1,"state":{}}`:                                      LedgerTrustQuorum,
		`{"generation":1,"state":[]}`:                                      LedgerTrustQuorum,
		`{"blob":[],"generation":1}`:                                       LedgerNetworkConfig,
		`{"generation":1}`:                                                 "",
		`{"generation":1,"state":{},"blob":[]}`:                            "",
		`{"generation":1,"version":1}`:                                     "",
		`[]`:                                                               "", ``: "", `{"generation":1,"state":{}`: "",
	} {
		have, err := SniffReferenceLedger([]byte(in))
		if have != want || (err == nil) != (want != "") || err != nil && (reason.CodeOf(err) == "" || reason.HintOf(err) == "") {
			t.Errorf("%s: have %q (%v), want %q", in, have, err, want)
		}
	}
}
