package quorumtest

import (
	"encoding/binary"
	"hash/fnv"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// Shrink takes actions out as long as the rest still fails.
func Shrink(actions []Action, fails func([]Action) bool) []Action {
	for size := len(actions) / 2; size > 0; {
		removed := false
		for at := 0; at+size <= len(actions); {
			rest := append(append([]Action(nil), actions[:at]...), actions[at+size:]...)
			if fails(rest) {
				actions, removed = rest, true
			} else {
				at += size
			}
		}
		if !removed || size > 1 {
			size /= 2
		}
	}
	return actions
}

// Trace digests what every sled has on disk at the end, shares included, and all configurations.
func (s *Sim) Trace() uint64 {
	h := fnv.New64a()
	num := func(e ident.Epoch) { _ = binary.Write(h, binary.BigEndian, uint64(e)) }
	for _, sled := range s.Sleds {
		st := sled.Disk
		for _, e := range quorum.Epochs(st.Configs) {
			d := ConfigDigest(st.Configs[e])
			_, _ = h.Write(d[:])
		}
		for _, e := range quorum.Epochs(st.Shares) {
			digestShare(st.Shares[e], func(d [32]byte) { _, _ = h.Write(d[:]) })
		}
		for _, e := range quorum.Epochs(st.Commits) {
			num(e)
		}
		if st.Expunged != nil {
			num(st.Expunged.Epoch)
			_, _ = h.Write([]byte(st.Expunged.From.String()))
		}
	}
	return h.Sum64()
}

func digestShare(s gfss.Share, f func([32]byte)) {
	if d, err := s.Digest(); err == nil {
		f(d)
	}
}
