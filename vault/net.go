package vault

import (
	"context"
	"encoding/hex"
	"maps"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// CodeOwnEvidence marks evidence of this sled that its own enrolment record refuses.
const CodeOwnEvidence reason.Code = "own-evidence"

// setStore publishes the ledger, and what speaks for it: the prover.
func (d *Daemon) setStore(s *store) error {
	if err := d.makeProver(); err != nil {
		return err
	}
	d.recallSeen(s.ledger.Observed())
	n := newNetwork(s.ledger.Network(), s.ledger.SaveNetwork, d.reasons, d.log)
	n.onNews = d.changes.bump
	d.mu.Lock()
	defer d.mu.Unlock()
	d.store, d.network = s, n
	return nil
}

func (d *Daemon) counterOf(rec *enroll.Record) tpm.Counter {
	return tpm.Counter{Index: tpm2.TPMHandle(d.cfg.TPM.CounterIndex), Name: rec.CounterName}
}

// counterMoved follows a protected save: what evidence says of the ledger has changed, on every connection.
func (d *Daemon) counterMoved() {
	d.mu.RLock()
	p, m := d.prover, d.peers
	d.mu.RUnlock()
	if p != nil {
		p.CounterMoved()
	}
	if m != nil {
		m.Refresh(context.Background())
	}
}

// startPeers makes the node from the ledger's state, lets the peer network go on, and starts the driver.
func (d *Daemon) startPeers(ctx context.Context) error {
	if err := d.takeOver(ctx); err != nil {
		return err
	}
	store := d.getStore()
	node, err := quorum.New(quorum.Config{ID: d.identity(), Rand: d.rand, Alloc: d.alloc, Authority: enroll.NewAuthority(d.Set())}, store.snapshot().Quorum)
	if err != nil {
		return err
	}
	net, err := d.connect(ctx)
	if err != nil {
		return err
	}
	addrs, err := parseAddrs(d.peerList()) // the agent may have given others meanwhile
	if err != nil {
		return err
	}
	net.peers.SetPeers(addrs)
	net.open()
	if _, err := net.channel.CheckSelf(ctx); err != nil { // what peers would refuse is not offered to them
		d.hangUp()
		return retry(reason.Wrap(err, CodeOwnEvidence, "", "vault: this sled's own evidence does not pass"))
	}
	net.clear()
	network, m := d.getNetwork(), net.peers
	network.setSend(func(to ident.Baseboard, c wire.NetworkConfig) error { return m.Send(to, c) })
	drv := newDriver(node, store, m, network, d.reasons, d.log, d.onCommitted)
	drv.onChange = d.changes.bump
	drv.alarm = func(a quorum.Alarm) { d.keepAlarm(store, a) }
	net.wg.Go(func() {
		if err := drv.run(net.ctx); err != nil {
			d.fail(err)
		}
	})
	net.wg.Go(func() { network.run(net.ctx) })
	net.wg.Go(func() { d.keepSeen(net.ctx) })
	net.wg.Go(func() { d.followRemoval(net.ctx, drv) })
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers, d.driver = m, drv
	net.wg.Go(func() { d.serveLRTQ(net.ctx) }) // waits for d.mu
	return nil
}

// channel says who this sled is and by what it judges others.
func (d *Daemon) channel(m *mesh) *channel.Config {
	d.mu.RLock()
	prover := d.prover
	d.mu.RUnlock()
	return &channel.Config{
		Self: d.identity(), Identity: d.tls, Prover: prover, Set: d.Set, AdoptSet: d.AdoptSet, Opened: m.opened, Cleared: m.cleared,
		Seen: d.seen, Remember: d.remember, Capabilities: []string{quorum.CapabilityAuthority}, Relaxations: d.cfg.Relax.Names(),
	}
}

// seen is what the observed file knows of a TPM.
func (d *Daemon) seen(ek []byte) rot.Seen {
	d.seenMu.Lock()
	defer d.seenMu.Unlock()
	return d.seenTPMs[hex.EncodeToString(ek)]
}

// remember keeps the higher of what is known and what a verdict showed. It is written down behind the caller's back: a
// handshake does not wait for a disk.
func (d *Daemon) remember(ek []byte, s rot.Seen) {
	key := hex.EncodeToString(ek)
	d.seenMu.Lock()
	defer d.seenMu.Unlock()
	old := d.seenTPMs[key]
	next := old.Merge(s)
	if next == old {
		return
	}
	d.seenTPMs[key] = next
	select {
	case d.seenNews <- struct{}{}:
	default: // the writer will find this one too
	}
}

// seenDelay is how long a boot keeps what it sees of peers from the disks: it has better use for them and the processor.
// seenPause is the time in which news are collected: the peers of a rack that boots come all at once, and each write is two
// files forced to their media.
const (
	seenDelay = 2 * time.Second
	seenPause = time.Second
)

// keepSeen writes down what was seen of peers' TPMs, until ctx ends and once more then. It begins when the disks are open,
// or have not opened for a while.
func (d *Daemon) keepSeen(ctx context.Context) {
	d.awaitUnlocked(ctx, seenDelay)
	for {
		select {
		case <-ctx.Done():
			d.writeSeen()
			return
		case <-d.seenNews:
		}
		select {
		case <-ctx.Done(): // written above
		case <-time.After(seenPause):
			d.writeSeen()
		}
	}
}

// awaitUnlocked waits until the disks are open, for as long as given.
func (d *Daemon) awaitUnlocked(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		changed := d.boot.changed()
		if d.boot.snapshot().MSToUnlocked > 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (d *Daemon) writeSeen() {
	d.seenMu.Lock()
	seen := maps.Clone(d.seenTPMs)
	d.seenMu.Unlock()
	err := d.getStore().observe(context.Background(), func(o *ledger.Observed) {
		o.Peers = make(map[string]ledger.Seen, len(seen))
		for k, s := range seen {
			o.Peers[k] = ledger.Seen{Sequence: s.Sequence, Generation: s.Generation, ResetCount: s.ResetCount, RestartCount: s.RestartCount, Counter: s.Counter}
		}
	})
	if err != nil {
		d.reasons.CountError(ledger.CodeObserved, "", err)
	}
}

// recallSeen reads what earlier lives saw.
func (d *Daemon) recallSeen(o ledger.Observed) {
	d.seenMu.Lock()
	defer d.seenMu.Unlock()
	for k, s := range o.Peers {
		d.seenTPMs[k] = rot.Seen{Known: true, Sequence: s.Sequence, Generation: s.Generation, ResetCount: s.ResetCount, RestartCount: s.RestartCount, Counter: s.Counter}
	}
}

// onCommitted follows a change of the latest committed epoch.
func (d *Daemon) onCommitted(ident.Epoch) {
	st, _, _ := d.driver.Status()
	d.refreshState(st)
}

func (d *Daemon) peerList() []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.agentPeers != nil {
		return d.agentPeers
	}
	return d.cfg.Peer.Peers
}

// SetPeers replaces the list of peer addresses.
func (d *Daemon) SetPeers(_ context.Context, peers []string) error {
	addrs, err := parseAddrs(peers)
	if err != nil {
		return &reason.Error{Code: api.CodeBadRequest, Text: err.Error(), Remedy: reason.Usage}
	}
	d.mu.Lock()
	d.agentPeers = append([]string{}, peers...)
	m := d.peers
	d.mu.Unlock()
	if m != nil {
		m.SetPeers(addrs)
	}
	return nil
}
