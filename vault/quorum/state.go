package quorum

import (
	"maps"
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/lrtq"
)

// Expunged records that a committed configuration no longer contains this node. Once set it is never cleared.
type Expunged struct {
	Epoch ident.Epoch
	From  ident.Baseboard // who told us
}

// State is what a node must not forget (protocol.md §6). Maps are owned by the holder; a node copies on write, so that
// a State handed to a save function stays what it was.
type State struct {
	Configs      map[ident.Epoch]*Configuration // every configuration seen
	Shares       map[ident.Epoch]gfss.Share     // own shares
	Commits      map[ident.Epoch]bool           // committed epochs; values are always true
	Certificates map[ident.Epoch]*Certificate   // proofs of commit, by epoch; ours
	Expunged     *Expunged                      // nil while a member
	// LRTQ is this sled's package of the older scheme, read from its ledger at the first start; nil where there was none.
	// It stays for good: the secret of epoch 1 came out of it.
	LRTQ *lrtq.Package
}

// Clone copies the maps; configurations, certificates, shares and the package are shared, since nobody changes them.
func (s State) Clone() State {
	s.Configs, s.Shares = maps.Clone(s.Configs), maps.Clone(s.Shares)
	s.Commits, s.Certificates = maps.Clone(s.Commits), maps.Clone(s.Certificates)
	return s
}

// Epochs returns the keys of one of the state's maps in ascending order.
func Epochs[V any](m map[ident.Epoch]V) []ident.Epoch { return slices.Sorted(maps.Keys(m)) }

func last[V any](m map[ident.Epoch]V) (e ident.Epoch, ok bool) {
	for k := range m {
		if !ok || k > e {
			e, ok = k, true
		}
	}
	return e, ok
}

// LatestConfig is the stored configuration with the highest epoch, committed or not; nil if there is none.
func (s State) LatestConfig() *Configuration {
	if e, ok := last(s.Configs); ok {
		return s.Configs[e]
	}
	return nil
}

// LatestCommitted is the highest committed epoch, or false.
func (s State) LatestCommitted() (ident.Epoch, bool) { return last(s.Commits) }

// LatestCommittedConfig is the configuration of the highest committed epoch; nil if nothing is committed.
func (s State) LatestCommittedConfig() *Configuration {
	if e, ok := s.LatestCommitted(); ok {
		return s.Configs[e]
	}
	return nil
}

// RackID is the rack id of the latest configuration, committed or not, else that of the older scheme; false if none is
// known.
func (s State) RackID() (ident.RackID, bool) {
	if c := s.LatestConfig(); c != nil {
		return c.RackID, true
	}
	if s.LRTQ != nil {
		return s.LRTQ.RackID, true
	}
	return ident.RackID{}, false
}

// LRTQOnly reports whether the sled still lives by the older scheme: it has a package and has committed nothing.
func (s State) LRTQOnly() bool { return s.LRTQ != nil && len(s.Commits) == 0 }

// Prepared reports whether configuration and own share of the epoch are stored.
func (s State) Prepared(e ident.Epoch) bool {
	_, c := s.Configs[e]
	_, sh := s.Shares[e]
	return c && sh
}
