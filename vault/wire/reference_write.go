package wire

import (
	"maps"
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/quorum"
)

// EncodeTrustQuorumLedger writes trust-quorum-state.json as the reference does. Certificates have no place in it.
func EncodeTrustQuorumLedger(l TrustQuorumLedger) ([]byte, error) {
	return encodeLedger(l.Generation, "state", func(w *writer) { w.quorumStateJSON(l.State) })
}

// EncodeLRTQLedger writes bootstore-fsm-state.json as the reference does.
func EncodeLRTQLedger(l LRTQLedger) ([]byte, error) {
	return encodeLedger(l.Generation, "state", func(w *writer) { w.lrtqStateJSON(l.State) })
}

// EncodeNetworkConfigLedger writes a network-config file as the reference does.
func EncodeNetworkConfigLedger(c NetworkConfig) ([]byte, error) {
	return encodeLedger(c.Generation, "blob", func(w *writer) { w.intsJSON(c.Blob) })
}

func encodeLedger(generation uint64, body string, emit func(*writer)) ([]byte, error) {
	return build(nil, MaxReferenceLedger, func(w *writer) {
		if generation == 0 {
			w.fail(CodeRange, "generation: have 0, want at least 1")
		}
		w.str(`{"generation":`)
		w.decimal(generation)
		w.str(`,"` + body + `":`)
		emit(w)
		w.str(`}`)
	})
}

func (w *writer) quorumStateJSON(s quorum.State) {
	w.str(`{"lrtq":`)
	if s.LRTQ != nil {
		w.lrtqPackageJSON(*s.LRTQ)
	} else {
		w.str(`null`)
	}
	w.str(`,"configs":[`)
	for i, e := range quorum.Epochs(s.Configs) {
		w.comma(i)
		w.configurationJSON(s.Configs[e])
	}
	w.str(`],"shares":{`)
	for i, e := range quorum.Epochs(s.Shares) {
		w.comma(i)
		w.byte('"')
		w.decimal(uint64(e))
		w.str(`":`)
		w.shareJSON(s.Shares[e])
	}
	w.str(`},"commits":[`)
	for i, e := range quorum.Epochs(s.Commits) {
		w.comma(i)
		w.decimal(uint64(e))
	}
	w.str(`],"expunged":`)
	if x := s.Expunged; x != nil {
		w.str(`{"epoch":`)
		w.decimal(uint64(x.Epoch))
		w.str(`,"from":`)
		w.baseboardJSON(x.From)
		w.str(`}}`)
		return
	}
	w.str(`null}`)
}

func (w *writer) shareJSON(s gfss.Share) {
	w.checkShare(s)
	w.str(`{"x_coordinate":`)
	w.decimal(uint64(s.X))
	w.str(`,"y_coordinates":`)
	w.revealJSON(s.Y)
	w.str(`}`)
}

func (w *writer) lrtqPackageJSON(p lrtq.Package) {
	w.checkShare(p.Share)
	w.str(`{"rack_uuid":"` + p.RackID.String() + `","epoch":`)
	w.decimal(uint64(p.Epoch))
	w.str(`,"threshold":`)
	w.decimal(uint64(p.Threshold))
	w.str(`,"share":`)
	w.revealJSON(p.Share.Y, p.Share.X)
	w.str(`,"share_digests":[`)
	for i := range p.Digests {
		w.comma(i)
		w.intsJSON(p.Digests[i][:])
	}
	w.str(`]}`)
}

func (w *writer) lrtqStateJSON(s lrtq.State) {
	switch s.Phase {
	case lrtq.Uninitialized:
		w.str(`"Uninitialized"`)
	case lrtq.Learning:
		w.str(`"Learning"`)
	case lrtq.Learned:
		w.str(`{"Learned":{"pkg":{"common":`)
		w.lrtqPackageJSON(s.Package.Common)
		w.str(`}}}`)
	case lrtq.InitialMember:
		w.str(`{"InitialMember":{"pkg":`)
		w.sharePackageJSON(s.Package)
		w.str(`,"distributed_shares":[`)
		for i, b := range slices.SortedFunc(maps.Keys(s.Given), lrtq.Board.Compare) {
			w.comma(i)
			w.str(`[`)
			w.boardJSON(b)
			w.str(`,`)
			w.decimal(uint64(s.Given[b]))
			w.str(`]`)
		}
		w.str(`]}}`)
	default:
		w.fail(CodeEncode, "phase %d", s.Phase)
	}
}

func (w *writer) sharePackageJSON(p lrtq.SharePackage) {
	w.str(`{"common":`)
	w.lrtqPackageJSON(p.Common)
	w.str(`,"initial_membership":[`)
	for i, b := range p.Members {
		w.comma(i)
		w.boardJSON(b)
	}
	w.str(`],"salt":`)
	w.intsJSON(p.Salt[:])
	w.str(`,"nonce":`)
	w.intsJSON(p.Nonce[:])
	w.str(`,"encrypted_shares":`)
	w.intsJSON(p.Encrypted)
	w.str(`}`)
}

func (w *writer) boardJSON(b lrtq.Board) {
	kind := map[lrtq.BoardKind]string{lrtq.Gimlet: "gimlet", lrtq.PC: "pc"}[b.Kind]
	w.str(`{"type":"` + kind + `","identifier":`)
	w.quoted(b.Identifier)
	w.str(`,"model":`)
	w.quoted(b.Model)
	if b.Kind == lrtq.Gimlet {
		w.str(`,"revision":`)
		w.decimal(uint64(b.Revision))
	}
	w.str(`}`)
}
