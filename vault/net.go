package vault

import (
	"context"
	"encoding/hex"
	"maps"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// CodeOwnEvidence marks evidence of this sled that its own enrolment record refuses.
const CodeOwnEvidence reason.Code = "own-evidence"

// setStore publishes the ledger and starts what speaks for it: the prover.
func (d *Daemon) setStore(s *store) error {
	set := d.Set()
	rec, ok := set.Find(d.identity())
	if !ok {
		return reason.New(CodeForeignBoard, hintReenroll, "vault: the enrolment set has no record of sled %s", d.identity())
	}
	d.mu.RLock()
	a := &attestor{tpm: d.tpm, record: rec, logPath: d.cfg.TPM.EventLog, counter: d.counterOf(rec)}
	d.mu.RUnlock()
	p, err := rot.NewProver(rot.ProverConfig{Attestor: a, Baseboard: d.identity(), Facts: s.Facts, CommandTimeout: d.cfg.TPM.CommandTimeout.std()})
	if err != nil {
		return err
	}
	d.recallSeen(s.ledger.Observed())
	n := newNetwork(s.ledger.Network(), s.ledger.SaveNetwork, d.reasons, d.log)
	n.onNews = d.changes.bump
	d.mu.Lock()
	defer d.mu.Unlock()
	d.store, d.attestor, d.prover, d.network = s, a, p, n
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

// startPeers makes the node from the ledger's state, and starts the peer network and the driver.
func (d *Daemon) startPeers(ctx context.Context) error {
	listen, err := d.cfg.peerListen()
	if err != nil {
		return err
	}
	addrs, err := parseAddrs(d.peerList())
	if err != nil {
		return err
	}
	if err := d.takeOver(ctx); err != nil {
		return err
	}
	store := d.getStore()
	node, err := quorum.New(quorum.Config{ID: d.identity(), Rand: d.rand, Alloc: d.alloc, Authority: enroll.NewAuthority(d.Set())}, store.snapshot().Quorum)
	if err != nil {
		return err
	}
	ch := d.channel()
	if _, err := ch.CheckSelf(ctx); err != nil { // what peers would refuse is not offered to them
		return retry(reason.Wrap(err, CodeOwnEvidence, "", "vault: this sled's own evidence does not pass"))
	}
	m, err := peer.New(peer.Config{Self: d.identity(), Listen: listen, Channel: peer.Attest(ch), Alloc: d.alloc, Reasons: d.reasons})
	if err != nil {
		return err
	}
	if err := m.Listen(ctx); err != nil {
		return retry(err)
	}
	m.SetPeers(addrs)
	network := d.getNetwork()
	network.setSend(func(to ident.Baseboard, c wire.NetworkConfig) error { return m.Send(to, c) })
	drv := newDriver(node, store, m, network, d.reasons, d.log, d.onCommitted)
	drv.onChange = d.changes.bump
	drv.alarm = func(a quorum.Alarm) { d.keepAlarm(store, a) }
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := drv.run(ctx); err != nil {
			d.fail(err)
		}
	})
	wg.Go(func() {
		if err := m.Run(ctx); err != nil && ctx.Err() == nil {
			d.fail(err)
		}
	})
	wg.Go(func() { network.run(ctx) })
	wg.Go(func() { d.keepSeen(ctx) })
	wg.Go(func() { d.followRemoval(ctx, drv) })
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers, d.driver = m, drv
	d.stopNet = func() { cancel(); wg.Wait() }
	return nil
}

// channel says who this sled is and by what it judges others.
func (d *Daemon) channel() *channel.Config {
	return &channel.Config{
		Self: d.identity(), Identity: d.tls, Prover: d.prover, Set: d.Set, AdoptSet: d.AdoptSet,
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
