package wire

import (
	"bytes"
	"strconv"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// The ledger files of the reference (wire.md §9): read strictly, with the reason of every refusal, and written byte for
// byte. They hold shares in clear; what the encoders return is wiped by the caller.

// MaxReferenceLedger bounds a ledger file of the reference.
const MaxReferenceLedger = 16 << 20

// The names of the reference's ledger files.
const (
	TrustQuorumLedgerName       = "trust-quorum-state.json"
	NetworkConfigLedgerName     = "trust-quorum-network-config.json"
	LRTQLedgerName              = "bootstore-fsm-state.json"
	LRTQNetworkConfigLedgerName = "bootstore-network-config.json"
)

// TrustQuorumLedger is the state of one of the reference's nodes. It has no certificates and no marks of ours.
type TrustQuorumLedger struct {
	Generation uint64
	State      quorum.State
}

// LRTQLedger is the state of a sled in the older scheme.
type LRTQLedger struct {
	Generation uint64
	State      lrtq.State
}

// Destroy wipes the shares.
func (l TrustQuorumLedger) Destroy() {
	for _, s := range l.State.Shares {
		s.Destroy()
	}
	if l.State.LRTQ != nil {
		l.State.LRTQ.Destroy()
	}
}

// Destroy wipes the share.
func (l LRTQLedger) Destroy() { l.State.Destroy() }

// CodeLedger marks a ledger file whose form is right and whose content cannot be.
const CodeLedger reason.Code = "wire-reference-ledger" // a ledger file of the reference whose content contradicts itself

const hintLedger = "look at the other copy of the file; sledvault ledger show says what is in it"

// DecodeTrustQuorumLedger reads trust-quorum-state.json. It refuses unknown and doubled keys, other spellings, sets that
// are not ascending, shares of other lengths, and a package of the older scheme that cannot be.
func DecodeTrustQuorumLedger(a secret.Allocator, b []byte) (l TrustQuorumLedger, err error) {
	err = decodeLedger(a, b, "state", func(d *jsonReader, generation uint64, state []byte) {
		l = TrustQuorumLedger{generation, d.quorumState(state)}
	})
	if err != nil {
		return TrustQuorumLedger{}, err
	}
	return l, nil
}

// DecodeLRTQLedger reads bootstore-fsm-state.json, as strictly.
func DecodeLRTQLedger(a secret.Allocator, b []byte) (l LRTQLedger, err error) {
	err = decodeLedger(a, b, "state", func(d *jsonReader, generation uint64, state []byte) {
		l = LRTQLedger{generation, d.lrtqState(state)}
		if d.err == nil {
			if err := l.State.Validate(); err != nil {
				d.fail(CodeLedger, "%v", err)
			}
		}
	})
	if err != nil {
		return LRTQLedger{}, err
	}
	return l, nil
}

// DecodeNetworkConfigLedger reads either of the network-config files.
func DecodeNetworkConfigLedger(b []byte) (c NetworkConfig, err error) {
	err = decodeLedger(secret.Heap{}, b, "blob", func(d *jsonReader, generation uint64, blob []byte) {
		c = NetworkConfig{generation, d.ints("blob", blob, -1, MaxPayload)}
	})
	if err != nil {
		return NetworkConfig{}, err
	}
	return c, nil
}

func decodeLedger(a secret.Allocator, b []byte, body string, read func(*jsonReader, uint64, []byte)) error {
	if len(b) > MaxReferenceLedger {
		return reason.New(CodeTooLarge, hintLedger, "wire: ledger file: have %d bytes, want at most %d", len(b), MaxReferenceLedger)
	}
	d := &jsonReader{hint: hintLedger, alloc: a}
	v := d.object(b, "generation", body)
	var generation uint64
	d.value("generation", v[0], &generation)
	if d.err == nil && generation == 0 {
		d.fail(CodeRange, "generation: have 0, want at least 1")
	}
	if d.err == nil {
		read(d, generation, v[1])
	}
	return d.finish()
}

func (d *jsonReader) quorumState(b []byte) (s quorum.State) {
	v := d.object(b, "lrtq?", "configs", "shares", "commits", "expunged?")
	if d.err != nil {
		return s
	}
	if !isNull(v[0]) {
		p := d.lrtqPackage(v[0])
		s.LRTQ = &p
		if d.err == nil {
			if err := p.Validate(); err != nil {
				d.fail(CodeLedger, "%v", err)
			}
		}
	}
	s.Configs = map[ident.Epoch]*quorum.Configuration{}
	var last ident.Epoch
	for i, raw := range d.list(v[1], maxEpochs) {
		c := d.configuration(raw)
		if d.err == nil && c == nil {
			d.fail(CodeType, "configuration %d is null", i)
		}
		if d.err != nil {
			return s
		}
		d.ascending("configs", i, last, c.Epoch)
		s.Configs[c.Epoch], last = c, c.Epoch
	}
	s.Shares = d.shares(v[2])
	s.Commits, last = map[ident.Epoch]bool{}, 0
	for i, raw := range d.list(v[3], maxEpochs) {
		var e ident.Epoch
		d.value("commit", raw, &e)
		d.ascending("commits", i, last, e)
		s.Commits[e], last = true, e
	}
	if !isNull(v[4]) {
		x := d.object(v[4], "epoch", "from")
		s.Expunged = &quorum.Expunged{From: d.baseboard("from", x[1])}
		d.value("epoch", x[0], &s.Expunged.Epoch)
	}
	return s
}

// ascending refuses epoch number i of a set unless it is greater than the one before.
func (d *jsonReader) ascending(what string, i int, last, e ident.Epoch) {
	switch {
	case d.err != nil || i == 0 || e > last:
	case e == last:
		d.fail(CodeDuplicate, "%s: epoch %d occurs twice", what, e)
	default:
		d.fail(CodeOrder, "%s are not ascending at epoch %d", what, e)
	}
}

// shares reads an object whose keys are epochs.
func (d *jsonReader) shares(b []byte) map[ident.Epoch]gfss.Share {
	out := map[ident.Epoch]gfss.Share{}
	v := d.whole(b)
	if d.err == nil && v[0] != '{' {
		d.fail(CodeType, "shares: want an object")
	}
	if d.err != nil {
		return out
	}
	var last ident.Epoch
	v = blanks(v[1:])
	for i := 0; d.err == nil && v[0] != '}'; i++ {
		key, rest := d.next(v)
		name := d.text("epoch", key)
		e, err := strconv.ParseUint(name, 10, 64)
		if err != nil || strconv.FormatUint(e, 10) != name {
			d.fail(CodeText, "shares: have the key %.40q, want an epoch", name)
		}
		d.ascending("shares", i, last, ident.Epoch(e))
		var value []byte
		value, v = d.next(rest[1:])
		s := d.object(value, "x_coordinate", "y_coordinates")
		if d.err != nil {
			return out
		}
		share := gfss.Share{X: d.shareX(s[0])}
		if d.err == nil {
			share.Y = d.shareY("y_coordinates", s[1], nil)
		}
		last, v = ident.Epoch(e), afterComma(v)
		out[last] = share
	}
	return out
}

func (d *jsonReader) shareX(b []byte) byte {
	x, rest, ok := oneByte(b)
	if d.err == nil && (!ok || len(rest) != 0 || x == 0) {
		d.fail(CodeRange, "share number: want a whole number from 1 to 255")
	}
	return x
}

func (d *jsonReader) lrtqPackage(b []byte) (p lrtq.Package) {
	v := d.object(b, "rack_uuid", "epoch", "threshold", "share", "share_digests")
	if d.err != nil {
		return p
	}
	p.RackID = d.rackID("rack_uuid", v[0])
	d.value("epoch", v[1], &p.Epoch)
	d.value("threshold", v[2], &p.Threshold)
	if d.err != nil {
		return p
	}
	var x [1]byte
	p.Share.Y = d.shareY("share", v[3], x[:])
	p.Share.X = x[0]
	for _, raw := range d.list(v[4], lrtq.TotalShares) {
		var digest [32]byte
		d.intBytes("digest", raw, len(digest), 0, func(int) []byte { return digest[:] })
		p.Digests = append(p.Digests, digest)
		if n := len(p.Digests); n > 1 && d.err == nil && bytes.Compare(p.Digests[n-2][:], digest[:]) >= 0 {
			d.fail(CodeOrder, "share_digests are not ascending at %d", n-1)
		}
		if d.err != nil {
			return p
		}
	}
	return p
}

// lrtqState reads one of "Uninitialized", "Learning", {"InitialMember": …}, {"Learned": …}.
func (d *jsonReader) lrtqState(b []byte) (s lrtq.State) {
	v := d.whole(b)
	if d.err != nil {
		return s
	}
	if v[0] == '"' {
		switch name := d.text("state", v); name {
		case "Uninitialized":
		case "Learning":
			s.Phase = lrtq.Learning
		default:
			d.fail(CodeUnknown, "unknown state %.40q", name)
		}
		return s
	}
	o := d.object(v, "InitialMember?", "Learned?")
	switch {
	case d.err != nil:
	case (o[0] == nil) == (o[1] == nil):
		d.fail(CodeType, "want a state: one of InitialMember, Learned")
	case o[1] != nil:
		pkg := d.object(o[1], "pkg")
		common := d.object(pkg[0], "common")
		if d.err == nil {
			s = lrtq.State{Phase: lrtq.Learned, Package: lrtq.SharePackage{Common: d.lrtqPackage(common[0])}}
		}
	default:
		m := d.object(o[0], "pkg", "distributed_shares")
		if d.err == nil {
			s = lrtq.State{Phase: lrtq.InitialMember, Package: d.sharePackage(m[0]), Given: d.given(m[1])}
		}
	}
	return s
}

func (d *jsonReader) sharePackage(b []byte) (p lrtq.SharePackage) {
	v := d.object(b, "common", "initial_membership", "salt", "nonce", "encrypted_shares")
	if d.err != nil {
		return p
	}
	p.Common = d.lrtqPackage(v[0])
	for _, raw := range d.list(v[1], lrtq.TotalShares) {
		p.Members = append(p.Members, d.board(raw))
	}
	copy(p.Salt[:], d.ints("salt", v[2], len(p.Salt), 0))
	copy(p.Nonce[:], d.ints("nonce", v[3], len(p.Nonce), 0))
	p.Encrypted = d.ints("encrypted_shares", v[4], -1, maxSpareBytes)
	return p
}

// given reads which spare share which board was given: pairs in the order of boards.
func (d *jsonReader) given(b []byte) map[lrtq.Board]int {
	out := map[lrtq.Board]int{}
	var last lrtq.Board
	for i, raw := range d.list(b, lrtq.TotalShares) {
		pair := d.list(raw, 2)
		if d.err == nil && len(pair) != 2 {
			d.fail(CodeLength, "distributed_shares: have %d elements, want 2: board, number", len(pair))
		}
		if d.err != nil {
			return out
		}
		var index uint16
		board := d.board(pair[0])
		d.value("number", pair[1], &index)
		if d.err == nil && i > 0 && last.Compare(board) >= 0 {
			d.fail(CodeOrder, "distributed_shares are not ascending at %d", i)
		}
		out[board], last = int(index), board
	}
	return out
}

func (d *jsonReader) board(b []byte) (out lrtq.Board) {
	v := d.object(b, "type", "identifier", "model", "revision?")
	if d.err != nil {
		return out
	}
	kind := d.text("type", v[0])
	out = lrtq.Board{Identifier: d.text("identifier", v[1]), Model: d.text("model", v[2])}
	switch {
	case d.err != nil:
	case kind == "pc" && v[3] == nil:
		out.Kind = lrtq.PC
	case kind == "gimlet" && v[3] != nil:
		d.value("revision", v[3], &out.Revision)
	default:
		d.fail(CodeUnknown, "board: have type %.20q, revision present: %v", kind, v[3] != nil)
	}
	if d.err == nil {
		if err := out.Validate(); err != nil {
			d.fail(CodeText, "%v", err)
		}
	}
	return out
}

// maxSpareBytes is the longest encrypted_shares: all shares but one in one package, and the tag.
const maxSpareBytes = (lrtq.TotalShares-1)*(1+ShareSize) + 16

// ReferenceLedgerKind is what a ledger file of the reference holds.
type ReferenceLedgerKind string

// The kinds of ledger files.
const (
	LedgerTrustQuorum   ReferenceLedgerKind = "trust-quorum"
	LedgerLRTQ          ReferenceLedgerKind = "lrtq"
	LedgerNetworkConfig ReferenceLedgerKind = "network-config"
)

// SniffReferenceLedger tells from a file's content which decoder it is for. It refuses what is none of the reference's
// ledgers.
func SniffReferenceLedger(b []byte) (ReferenceLedgerKind, error) {
	if len(b) > MaxReferenceLedger {
		return "", reason.New(CodeTooLarge, hintLedger, "wire: ledger file: have %d bytes, want at most %d", len(b), MaxReferenceLedger)
	}
	d := &jsonReader{hint: hintLedger}
	v := d.object(b, "generation", "state?", "blob?")
	switch {
	case d.err != nil:
	case (v[1] == nil) == (v[2] == nil):
		d.fail(CodeMissing, "want a state or a blob beside the generation")
	case v[2] != nil:
		return LedgerNetworkConfig, nil
	case v[1][0] == '"' || firstKey(v[1]) == "InitialMember" || firstKey(v[1]) == "Learned":
		return LedgerLRTQ, nil
	default:
		return LedgerTrustQuorum, nil
	}
	return "", d.finish()
}

// firstKey is the first key of an object, "" if there is none.
func firstKey(b []byte) string {
	d := &jsonReader{}
	if b[0] != '{' || blanks(b[1:])[0] != '"' {
		return ""
	}
	key, _ := d.next(b[1:])
	return d.text("key", key)
}
