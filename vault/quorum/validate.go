package quorum

import (
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/reason"
)

// Sizes of a configuration (protocol.md §5).
const (
	MinMembers   = 3
	MaxMembers   = 32
	MinThreshold = 2
	MaxThreshold = 31
)

const (
	secretRecord = 8 + keys.Size // one older secret inside a configuration
	secretTag    = 16
)

// checkSizes applies the size rules in the order in which the reference answers them.
func checkSizes(members int, k ident.Threshold) error {
	switch {
	case members <= int(k):
		return reason.New(CodeThresholdMismatch, "", "quorum: threshold: have %d of %d members, want fewer", k, members)
	case members < MinMembers || members > MaxMembers:
		return reason.New(CodeInvalidMembershipSize, "", "quorum: members: have %d, want %d to %d", members, MinMembers, MaxMembers)
	case k < MinThreshold || k > MaxThreshold:
		return reason.New(CodeInvalidThreshold, "", "quorum: threshold: have %d, want %d to %d", k, MinThreshold, MaxThreshold)
	}
	return nil
}

// checkMembers demands usable identities in strictly ascending order.
func checkMembers[M any](members []M, id func(M) ident.Baseboard) error {
	for i, m := range members {
		if err := id(m).Validate(); err != nil {
			return reason.Wrap(err, CodeInvalidMembers, "", "quorum: member %d", i)
		}
		if i > 0 && id(members[i-1]).Compare(id(m)) >= 0 {
			return reason.New(CodeInvalidMembers, "", "quorum: member %d: %s is doubled or out of order", i, id(m))
		}
	}
	return nil
}

// validateConfig checks what must hold for any configuration by itself.
func validateConfig(c *Configuration) error {
	err := checkSizes(len(c.Members), c.Threshold)
	if err == nil {
		err = checkMembers(c.Members, func(m Member) ident.Baseboard { return m.ID })
	}
	switch {
	case err != nil:
		return reason.Wrap(err, CodeInvalidConfiguration, "", "quorum: configuration of epoch %d", c.Epoch)
	case c.Epoch == 0:
		return reason.New(CodeInvalidConfiguration, "", "quorum: configuration: epoch 0")
	case !c.Has(c.Coordinator):
		return reason.New(CodeInvalidConfiguration, "", "quorum: configuration of epoch %d: its coordinator is not a member", c.Epoch)
	}
	if s := c.EncryptedSecrets; s != nil {
		if n := len(s.Data) - secretTag; n < secretRecord || n%secretRecord != 0 || n/secretRecord > keys.MaxOldSecrets {
			return reason.New(CodeInvalidConfiguration, "", "quorum: configuration of epoch %d: %d bytes of older secrets", c.Epoch, len(s.Data))
		}
	}
	return nil
}

// OldSecrets is how many older secrets a valid configuration carries.
func (c *Configuration) OldSecrets() int {
	if c.EncryptedSecrets == nil {
		return 0
	}
	return (len(c.EncryptedSecrets.Data) - secretTag) / secretRecord
}

// checkOldSecrets demands that a configuration carries a secret for every older epoch that this node knows as committed,
// the older scheme included, but for those that the operator has dropped: epochs below keepFrom (protocol.md §8.7).
// Without them the next epoch would lose them for the whole rack.
func (n *Node) checkOldSecrets(c *Configuration, keepFrom ident.Epoch) error {
	want, have := 0, c.OldSecrets()
	if n.st.LRTQ != nil {
		if keepFrom <= LRTQEpoch {
			want++
		}
		if c.Epoch <= LRTQEpoch {
			return reason.New(CodeOldSecretsMissing, hintUpgrade, "quorum: configuration of epoch %d: that epoch is the older scheme's", c.Epoch)
		}
	}
	for e := range n.st.Commits {
		if keepFrom <= e && e < c.Epoch {
			want++
		}
	}
	if have < want {
		return reason.New(CodeOldSecretsMissing, "send the configuration as its coordinator made it",
			"quorum: configuration of epoch %d: older secrets: have %d, want at least %d", c.Epoch, have, want)
	}
	return nil
}

// checkShare demands the number and the digest that a configuration gives to a member.
func checkShare(c *Configuration, member int, s gfss.Share) bool {
	if int(s.X) != member+1 || s.Y.Len() != keys.Size {
		return false
	}
	d, err := s.Digest()
	return err == nil && d == c.Members[member].ShareDigest
}

// validReconfigure is a request whose form and authority were checked.
type validReconfigure struct {
	rack      ident.RackID
	epoch     ident.Epoch
	last      ident.Epoch // last committed; 0 = none
	based     bool        // a last committed epoch was named
	members   []ident.Baseboard
	threshold ident.Threshold
	grant     *Grant // may be nil with a credulous authority
	upgrade   bool   // from the older scheme
}

// keepFrom is the first epoch whose secret is carried over.
func (r validReconfigure) keepFrom() ident.Epoch {
	if r.grant == nil {
		return 0
	}
	return r.grant.KeepFrom
}

func (r validReconfigure) same(b validReconfigure) bool {
	return r.rack == b.rack && r.epoch == b.epoch && r.last == b.last && r.threshold == b.threshold && r.upgrade == b.upgrade &&
		slices.Equal(r.members, b.members)
}

// validateRequest checks a request in the order of protocol.md §8.1 and §8.6: form, authority, then the reference's
// checks. repeated says that this very request is being coordinated already.
func (n *Node) validateRequest(r validReconfigure, members []ident.Baseboard) (_ validReconfigure, repeated bool, err error) {
	if len(members) > 8*MaxMembers { // so that nothing below takes long
		return r, false, checkSizes(len(members), 0)
	}
	r.members = ident.SortBaseboards(members)
	if err := checkMembers(r.members, func(b ident.Baseboard) ident.Baseboard { return b }); err != nil {
		return r, false, err
	}
	if err := n.checkGrant(r); err != nil {
		return r, false, err
	}
	if err := n.checkScheme(r); err != nil {
		return r, false, err
	}
	if _, ok := slices.BinarySearchFunc(r.members, n.id, ident.Baseboard.Compare); !ok {
		return r, false, reason.New(CodeCoordinatorNotMember, "", "quorum: epoch %d: coordinator %s is not in the new group", r.epoch, n.id)
	}
	if err := checkSizes(len(r.members), r.threshold); err != nil {
		return r, false, err
	}
	if lowest := r.lowest(); r.epoch < lowest {
		return r, false, reason.New(CodeInvalidEpoch, "", "quorum: epoch: have %d, want at least %d", r.epoch, lowest)
	}
	if r.based && r.last == 0 {
		return r, false, reason.New(CodeInvalidEpoch, "leave it out where nothing is committed", "quorum: epoch %d: last committed epoch 0", r.epoch)
	}
	repeated, err = n.checkProgress(r)
	return r, repeated, err
}

// checkProgress holds a request against the node's state.
func (n *Node) checkProgress(r validReconfigure) (repeated bool, err error) {
	const next = "use the next free epoch"
	c := n.coord
	switch {
	case n.known.hasRack && n.known.rack != r.rack:
		return false, errRack(n.known.rack, r.rack)
	case n.st.Expunged != nil:
		return false, errExpunged(n.st.Expunged)
	case r.last != n.known.committedEpoch():
		return false, reason.New(CodeLastCommittedMismatch, "choose a coordinator that has committed the last epoch",
			"quorum: epoch %d: last committed epoch: have %s, want %s", r.epoch, epochText(r.last), epochText(n.known.committedEpoch()))
	case n.known.certified > n.known.committedEpoch():
		return false, reason.Later(CodeLastCommittedMismatch, "choose a coordinator that has committed the last epoch",
			"quorum: epoch %d: epoch %d is committed and this sled still computes its share", r.epoch, n.known.certified)
	case c != nil && c.req.same(r):
		return true, nil
	case n.known.latest != nil && n.known.latest.Epoch >= r.epoch:
		return false, reason.New(CodePreparedEpochMismatch, next,
			"quorum: epoch: have %d, want more than %d", r.epoch, n.known.latest.Epoch)
	case c != nil && c.config.Epoch > r.epoch:
		return false, reason.New(CodeReconfigurationRunning, next,
			"quorum: epoch %d: coordinating epoch %d", r.epoch, c.config.Epoch)
	case c != nil && c.config.Epoch == r.epoch:
		return false, reason.New(CodeReconfigurationConflict, next,
			"quorum: epoch %d: coordinating it with other content", r.epoch)
	}
	return false, nil
}

// validatePrepare checks a Prepare in the order of protocol.md §9.1. repeated says that it is stored already.
func (n *Node) validatePrepare(rack ident.RackID, m Prepare, from ident.Baseboard) (repeated bool, r *refusal) {
	c := m.Config
	own, member := c.Index(n.id)
	stored := n.st.Configs[c.Epoch]
	switch {
	case n.known.committedEpoch() > c.Epoch:
		return false, refuse(CodeStale, "", "epoch %d is committed", n.known.committedEpoch())
	case !member:
		return false, refuse(CodeNotMember, "", "this sled is not in the configuration")
	case c.RackID != rack:
		return false, refuse(CodeInvalidRackID, AlarmForgedPrepare, "rack of message and configuration differ")
	case c.Coordinator != from:
		return false, refuse(CodeNotCoordinator, AlarmForgedPrepare, "the coordinator is %s", c.Coordinator)
	}
	if err := validateConfig(c); err != nil {
		return false, refuse(CodeInvalidConfiguration, AlarmForgedPrepare, "%v", err)
	}
	if !checkShare(c, own, m.Share) {
		return false, refuse(CodeShareInvalid, AlarmForgedPrepare, "the share does not fit its number or digest")
	}
	switch {
	case stored != nil && !stored.Equal(c):
		return false, refuse(CodeConfigConflict, AlarmConflictingPrepare, "another configuration of this epoch is stored")
	case n.st.Prepared(c.Epoch):
		return true, nil
	case stored == nil && n.coord != nil && n.coord.config.Epoch == c.Epoch:
		return false, refuse(CodeConfigConflict, AlarmConflictingPrepare, "this sled coordinates that epoch itself")
	}
	var keepFrom ident.Epoch
	if p := n.peers[from]; p != nil && p.grant != nil {
		keepFrom = p.grant.KeepFrom // verified right below
	}
	if err := n.checkOldSecrets(c, keepFrom); err != nil {
		return false, refuse(CodeOldSecretsMissing, AlarmForgedPrepare, "%v", err)
	}
	return false, n.granted(c, from)
}

// validateState checks a stored state: it may come from a damaged or foreign disk (protocol.md §12).
func validateState(id ident.Baseboard, st State, certified bool) error {
	bad := func(format string, args ...any) error {
		return reason.New(CodeState, "restore the other copy of the ledger, or reset this sled and enrol it again",
			"quorum: stored state: "+format, args...)
	}
	rack, _ := st.RackID()
	if p := st.LRTQ; p != nil {
		if err := p.Validate(); err != nil {
			return bad("package of the older scheme: %v", err)
		}
		if p.RackID != rack {
			return bad("package of the older scheme: of another rack")
		}
	}
	for _, e := range Epochs(st.Configs) {
		c := st.Configs[e]
		if c == nil || c.Epoch != e || c.RackID != rack {
			return bad("configuration %d: missing, of another epoch or of another rack", e)
		}
		if st.LRTQ != nil && e <= LRTQEpoch {
			return bad("configuration %d: that epoch is the older scheme's", e)
		}
		if err := validateConfig(c); err != nil {
			return bad("%v", err)
		}
	}
	for _, e := range Epochs(st.Shares) {
		c := st.Configs[e]
		if c == nil {
			return bad("share %d: no configuration", e)
		}
		if i, ok := c.Index(id); !ok || !checkShare(c, i, st.Shares[e]) {
			return bad("share %d: does not fit the configuration", e)
		}
	}
	for _, e := range Epochs(st.Commits) {
		if !st.Commits[e] || !st.Prepared(e) {
			return bad("commit %d: not prepared", e)
		}
		if certified && st.Certificates[e] == nil {
			return bad("commit %d: no certificate", e)
		}
	}
	for _, e := range Epochs(st.Certificates) {
		if cert := st.Certificates[e]; cert == nil || st.Configs[e] == nil || cert.Epoch != e || cert.RackID != rack {
			return bad("certificate %d: missing, without configuration, of another epoch or of another rack", e)
		}
	}
	return nil
}
