package vault

import (
	"context"
	"encoding/hex"

	"github.com/sledvault/sledvault/internal/lockedmem"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/quorum"
)

// Status puts together what every part says about itself.
func (d *Daemon) Status(context.Context) api.Status {
	revision, _ := d.changes.current() // first: what changes from here on is another revision
	d.mu.RLock()
	s := api.Status{
		Version: d.version, Revision: revision, State: d.state,
		Relaxed: d.cfg.Relax.Names(),
	}
	if !d.id.IsZero() {
		id := d.id
		s.Baseboard = &id
	}
	if d.set != nil {
		s.Rack = rackOf(d.set)
	}
	if d.sp != nil {
		s.SP = d.sp.Stats()
	}
	s.Seal = &api.Seal{PCRs: d.cfg.TPM.PCRs, Reason: api.ErrorOf(d.lost)}
	if d.tpm != nil {
		s.Seal.TPM = d.tpmID
	}
	s.Claim.Fingerprint = d.claimFingerprint()
	store, drv, peers, network := d.store, d.driver, d.peers, d.network
	d.mu.RUnlock()

	s.Boot = d.boot.snapshot()
	if store != nil {
		s.Seal.Ledger = store.ledger.Status()
	}
	if peers != nil {
		s.Peers = peers.Status()
	}
	if old := d.lrtqServer(); old != nil {
		s.LRTQ = old.Status()
	}
	s.Alarms = []api.Alarm{}
	if drv != nil {
		st, _, _ := drv.Status()
		s.Quorum = quorumOf(st)
		s.Quorum.ProxiedRequests = drv.proxies.count()
		s.Alarms = alarms(st, store.ledger.Observed().Alarms)
	}
	if network != nil {
		s.Network = networkStatus(network)
		s.Alarms = append(s.Alarms, network.alarms()...)
	}
	s.Disks = d.disks.list()
	for _, st := range lockedmem.Hardening() {
		s.Hardening = append(s.Hardening, api.Hardening{Name: st.Name, OK: st.InForce, Detail: st.Detail})
	}
	s.Hardening = append(s.Hardening, d.confined...)
	mem := d.alloc.Stats()
	s.Hardening = append(s.Hardening, api.Hardening{Name: "locked-pages", OK: mem.Locked, Detail: string(mem.Kind)})
	s.Reasons = d.reasons.Entries()
	s.NextStep = nextStep(s)
	return s
}

func rackOf(set *enroll.Set) *api.Rack {
	digest := set.Digest()
	r := &api.Rack{ID: set.Rack, SetGeneration: set.Generation, SetDigest: hex.EncodeToString(digest[:]), Fingerprint: enroll.Fingerprint(set.MembershipKey)}
	for _, rec := range set.Records {
		r.Sleds = append(r.Sleds, rec.Baseboard)
	}
	return r
}

func quorumOf(st quorum.Status) *api.Quorum {
	q := &api.Quorum{
		Configs: st.Configs, Shares: st.Shares, Commits: st.Commits,
		Certificates: st.Certificates, Expunged: (*api.Expunged)(st.Expunged), Collecting: collecting(st), LRTQ: st.LRTQ,
	}
	if q.Collecting == nil { // a rotation holds nobody up
		q.Collecting = collectingFor("agreement", st.Agreement)
	}
	for _, p := range st.Peers {
		q.ConnectedPeers = append(q.ConnectedPeers, p.ID)
	}
	if c := st.LatestCommitted; c != nil {
		q.Threshold, q.OlderSecrets, q.KeepFrom = int(c.Threshold), c.OldSecrets(), st.KeepFrom
		for _, m := range c.Members {
			q.Members = append(q.Members, m.ID)
		}
	}
	if st.Coordinator != nil {
		q.Coordinating = st.Coordinator.Config.Epoch
	}
	return q
}

// collecting says for which shares a node waits that it cannot do without; nil if for none.
func collecting(st quorum.Status) *api.Collecting {
	if c := collectingFor("own share", st.KeyShare); c != nil {
		return c
	}
	return collectingFor("rack secret", st.Loader.Collecting)
}

func collectingFor(purpose string, from *quorum.CollectionStatus) *api.Collecting {
	if from == nil {
		return nil
	}
	out := &api.Collecting{Purpose: purpose, Epoch: from.Epoch, Have: from.Have, Want: from.Want}
	for _, m := range from.MissingConnected {
		out.Missing = append(out.Missing, api.Missing{Sled: m, Connected: true})
	}
	for _, m := range from.MissingDisconnected {
		out.Missing = append(out.Missing, api.Missing{Sled: m})
	}
	return out
}

// nextStep is what the operator should do in each state; "" when nothing.
func nextStep(s api.Status) string {
	if s.Boot.Error != nil && s.Boot.Error.Hint != "" {
		return s.Boot.Error.Hint
	}
	switch s.State {
	case api.StateStarting:
		return "wait; the boot is at step " + s.Boot.Step
	case api.StateUnclaimed:
		return "enroll this sled: sledvault rack enroll"
	case api.StateClaimed:
		return "initialise the rack: " + beginWith(s.Quorum != nil && s.Quorum.LRTQ)
	case api.StateExpunged:
		return "this sled was removed from its rack; to use it again: sledvault seal reset, then sledvault rack enroll"
	case api.StateLostSeal:
		return hintReenroll
	case api.StateMember:
		for _, d := range s.Disks {
			if d.State == "unformatted" {
				return "format disk " + d.ID + ": sledvault disks format " + d.ID
			}
		}
	}
	return ""
}

// refreshState follows what the node knows about membership.
func (d *Daemon) refreshState(st quorum.Status) {
	switch {
	case st.Expunged != nil:
		d.setState(api.StateExpunged)
	case len(st.Commits) > 0:
		d.setState(api.StateMember)
	default:
		d.setState(api.StateClaimed)
	}
}
