package wire

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

var (
	boards = rapid.Custom(func(t *rapid.T) ident.Baseboard {
		text := rapid.StringMatching(`[!-9;-~]{1,51}`)
		return ident.Baseboard{Part: text.Draw(t, "part"), Serial: text.Draw(t, "serial")}
	})
	bytes32 = rapid.Custom(func(t *rapid.T) (b [32]byte) {
		copy(b[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "bytes"))
		return b
	})
	epochs = rapid.Custom(func(t *rapid.T) ident.Epoch { return ident.Epoch(rapid.Uint64().Draw(t, "epoch")) })
	racks  = rapid.Custom(func(t *rapid.T) ident.RackID {
		return ident.RackID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "rack"))
	})
	configs = rapid.Custom(func(t *rapid.T) *quorum.Configuration {
		c := &quorum.Configuration{
			RackID: racks.Draw(t, "rack"), Epoch: epochs.Draw(t, "epoch"), Coordinator: boards.Draw(t, "coordinator"), Threshold: ident.Threshold(rapid.Byte().Draw(t, "threshold")),
		}
		for _, id := range ident.SortBaseboards(rapid.SliceOfNDistinct(boards, 0, 12, rapid.ID).Draw(t, "members")) {
			c.Members = append(c.Members, quorum.Member{ID: id, ShareDigest: bytes32.Draw(t, "digest")})
		}
		if rapid.Bool().Draw(t, "older secrets") {
			c.EncryptedSecrets = &keys.EncryptedSecrets{Salt: bytes32.Draw(t, "salt"), Data: rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "data")}
		}
		return c
	})
	shares = rapid.Custom(func(t *rapid.T) gfss.Share {
		y, err := secret.Take[secret.ShareKind](secret.Heap{}, rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "y"))
		if err != nil {
			t.Fatal(err)
		}
		return gfss.Share{X: rapid.ByteRange(1, 255).Draw(t, "x"), Y: y}
	})
	signatures = rapid.Custom(func(t *rapid.T) (s quorum.Signature) {
		copy(s[:], rapid.SliceOfN(rapid.Byte(), 64, 64).Draw(t, "signature"))
		return s
	})
	certificates = rapid.Custom(func(t *rapid.T) *quorum.Certificate {
		return &quorum.Certificate{
			RackID: racks.Draw(t, "rack"), Epoch: epochs.Draw(t, "epoch"), ConfigDigest: bytes32.Draw(t, "digest"), Signature: signatures.Draw(t, "signature"),
		}
	})
)

// TestMessagesComeBack: every message that can be written is read as what it was, with exactly the bytes that were written.
func TestMessagesComeBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := TQ{quorum.Message{RackID: racks.Draw(t, "rack")}}
		e := epochs.Draw(t, "epoch")
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0:
			m.Kind = quorum.Prepare{Config: configs.Draw(t, "config"), Share: shares.Draw(t, "share")}
		case 1:
			m.Kind = quorum.PrepareAck{Epoch: e}
		case 2:
			m.Kind = quorum.GetShare{Epoch: e}
		case 3:
			m.Kind = quorum.ShareReply{Epoch: e, Share: shares.Draw(t, "share")}
		case 4:
			m.Kind = quorum.GetLRTQShare{}
		case 5:
			m.Kind = quorum.ExpungedNotice{Epoch: e}
		case 6:
			m.Kind = quorum.CommitAdvance{Config: configs.Draw(t, "config")}
		case 7:
			g := &quorum.Grant{
				RackID: racks.Draw(t, "rack"), Epoch: e, Coordinator: boards.Draw(t, "coordinator"), Threshold: ident.Threshold(rapid.Byte().Draw(t, "threshold")),
				Members:       ident.SortBaseboards(rapid.SliceOfNDistinct(boards, 0, 12, rapid.ID).Draw(t, "members")),
				LastCommitted: epochs.Draw(t, "last"), LRTQUpgrade: rapid.Bool().Draw(t, "upgrade"), Signature: signatures.Draw(t, "signature"),
			}
			m.Kind = quorum.GrantNotice{Grant: g}
		case 8:
			p := quorum.CommitProof{Certificate: certificates.Draw(t, "certificate")}
			if rapid.Bool().Draw(t, "with configuration") {
				p.Config = configs.Draw(t, "config")
			}
			m.Kind = p
		case 9:
			m.Kind = quorum.NoSuchShare{Epoch: e}
		}
		b, err := Encode(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		have, err := Decode(secret.Heap{}, b)
		if err != nil {
			t.Fatalf("%v: %x", err, b)
		}
		if d := diff(Msg(m), have); d != "" {
			t.Fatal(d)
		}
		if again, err := Encode(nil, have); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("written again it differs: %v", err)
		}
	})
}

// TestConfigurationsComeBack: the form for people, and the digest that certificates sign, which no other configuration has.
func TestConfigurationsComeBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := configs.Draw(t, "config")
		b, err := EncodeConfigurationJSON(c)
		if err != nil {
			t.Fatal(err)
		}
		have, err := DecodeConfigurationJSON(b)
		if err != nil || !have.Equal(c) {
			t.Fatalf("%v: have %+v, want %+v", err, have, c)
		}
		if ConfigDigest(have) != ConfigDigest(c) {
			t.Fatal("equal configurations, different digests")
		}
		o := *c
		switch rapid.IntRange(0, 6).Draw(t, "change") {
		case 0:
			o.RackID[0] ^= 1
		case 1:
			o.Epoch++
		case 2:
			o.Threshold++
		case 3:
			o.Coordinator.Part, o.Coordinator.Serial = o.Coordinator.Serial, o.Coordinator.Part
			if o.Coordinator == c.Coordinator {
				return
			}
		case 4, 5:
			if len(c.Members) == 0 {
				return
			}
			o.Members = slices.Clone(c.Members)
			m := &o.Members[rapid.IntRange(0, len(o.Members)-1).Draw(t, "member")]
			m.ShareDigest[31] ^= 1
		case 6:
			if o.EncryptedSecrets = nil; c.EncryptedSecrets == nil {
				o.EncryptedSecrets = &keys.EncryptedSecrets{}
			}
		}
		if o.Equal(c) || ConfigDigest(&o) == ConfigDigest(c) {
			t.Fatal("another configuration counts as the same")
		}
	})
}

// TestStatesComeBack: a state is read as what it was, and has one form only.
func TestStatesComeBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := LedgerState{Sequence: rapid.Uint64().Draw(t, "sequence"), Generation: rapid.Uint64().Draw(t, "generation"), SetDigest: bytes32.Draw(t, "set")}
		s.Quorum = quorum.State{
			Configs: map[ident.Epoch]*quorum.Configuration{}, Shares: map[ident.Epoch]gfss.Share{}, Commits: map[ident.Epoch]bool{}, Certificates: map[ident.Epoch]*quorum.Certificate{},
		}
		for _, e := range rapid.SliceOfNDistinct(epochs, 0, 6, rapid.ID).Draw(t, "epochs") {
			c := configs.Draw(t, "config")
			c.Epoch = e
			s.Quorum.Configs[e] = c
			if rapid.Bool().Draw(t, "share") {
				s.Quorum.Shares[e] = shares.Draw(t, "share")
			}
			if rapid.Bool().Draw(t, "commit") {
				s.Quorum.Commits[e] = true
			}
			if rapid.Bool().Draw(t, "certificate") {
				cert := certificates.Draw(t, "certificate")
				cert.Epoch = e
				s.Quorum.Certificates[e] = cert
			}
		}
		if rapid.Bool().Draw(t, "expunged") {
			s.Quorum.Expunged = &quorum.Expunged{Epoch: epochs.Draw(t, "expunged"), From: boards.Draw(t, "from")}
		}
		for _, id := range slices.Sorted(maps.Keys(rapid.MapOfN(rapid.StringMatching(`[a-z]{1,9}`), rapid.Byte(), 0, 4).Draw(t, "disks"))) {
			s.Disks = append(s.Disks, DiskRecord{ID: id, Backend: "luks2", Serial: rapid.StringMatching(`[ -~]{0,20}`).Draw(t, "serial"), Epoch: epochs.Draw(t, "epoch"), KeySlot: rapid.IntRange(-1, 31).Draw(t, "slot")})
		}
		p, err := EncodeState(secret.Heap{}, s)
		if err != nil {
			t.Fatal(err)
		}
		have, err := DecodeState(secret.Heap{}, p)
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(s, have); d != "" {
			t.Fatal(d)
		}
		again, err := EncodeState(secret.Heap{}, have)
		if err != nil || !again.Equal(p) {
			t.Fatalf("written again it differs: %v", err)
		}
	})
}
