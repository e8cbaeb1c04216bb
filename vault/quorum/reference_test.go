package quorum_test

import (
	"math/rand/v2"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/quorum/reference"
	"github.com/sledvault/sledvault/vault/secret"
)

// TestWithoutAuthority shows what a node believes that exists to replay logs of the reference: everything.
func TestWithoutAuthority(t *testing.T) {
	t.Parallel()
	ids := []ident.Baseboard{{Part: "test", Serial: "0"}, {Part: "test", Serial: "1"}, {Part: "test", Serial: "2"}}
	var nodes []*quorum.Node
	for i, id := range ids {
		n, err := quorum.New(quorum.Config{Authority: reference.Authority{}, ID: id, Rand: rand.NewChaCha8([32]byte{byte(i)}), Alloc: secret.Heap{}}, quorum.State{})
		ok(t, err)
		nodes = append(nodes, n)
	}
	var kinds []quorum.Kind
	var do func(i int, in quorum.Input) quorum.Effects
	do = func(i int, in quorum.Input) quorum.Effects {
		t.Helper()
		out, err := nodes[i].Step(in)
		ok(t, err)
		fx, err := out.Durable(func(quorum.State) error { return nil })
		ok(t, err)
		for _, e := range fx.Send {
			kinds = append(kinds, quorum.KindOf(e.Message.Kind))
			for j, id := range ids {
				if id == e.To {
					do(j, quorum.PeerMessage{From: ids[i], Message: e.Message})
				}
			}
		}
		return fx
	}
	for i := range ids {
		for j, id := range ids {
			if i != j {
				do(i, quorum.PeerUp{Peer: id, Capabilities: []string{quorum.CapabilityAuthority}})
			}
		}
	}
	do(0, quorum.Reconfigure{RackID: quorumtest.RackID(), Epoch: 1, Members: ids, Threshold: 2})
	for i := range ids {
		do(i, quorum.Commit{RackID: quorumtest.RackID(), Epoch: 1})
	}
	do(0, quorum.LoadSecret{ID: 1})
	for _, k := range kinds {
		switch k { //nolint:exhaustive // the kinds that are ours alone
		case quorum.KindGrant, quorum.KindCommitProof, quorum.KindNoSuchShare:
			t.Errorf("sent %s", k)
		}
	}
	if got := nodes[0].Status().Loader.Loaded; len(got) != 1 {
		t.Errorf("loaded %v", got)
	}
	do(0, quorum.PeerMessage{From: ids[2], Message: quorum.Message{RackID: quorumtest.RackID(), Kind: quorum.ExpungedNotice{Epoch: 7}}})
	if nodes[0].State().Expunged == nil {
		t.Error("not expunged")
	}
	if fx := do(0, quorum.LoadSecret{ID: 2}); len(fx.Replies) != 1 {
		t.Errorf("a cached secret: have %+v", fx.Replies)
	}
}
