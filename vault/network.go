package vault

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// Reasons of the network configuration (peers.md §8).
const (
	CodeNetworkInvalid reason.Code = "network-config-invalid" // generation 0, or a blob over the limit
	CodeNetworkStale   reason.Code = "network-config-stale"   // not newer than what this sled has
	CodeNetworkSplit   reason.Code = "network-config-split"   // the generation that this sled has, with other content
	CodeNetworkJump    reason.Code = "network-config-jump"    // so far ahead that the numbers would run out
	CodeNetworkSender  reason.Code = "network-config-sender"  // from a peer that is no member
)

const (
	hintNetworkSplit = "find out which content is right and give it a newer generation: sledvault network-config set"
	hintNetworkStale = "ask for the generation of the moment, sledvault network-config get, and use a higher one"
)

const (
	// maxNetworkJump is how far one configuration may be ahead of the one before. Whoever could use up the numbers could
	// keep the rack from ever taking another.
	maxNetworkJump = 1 << 32
	// networkPause is how long a configuration of a peer waits after the one before: each costs writes to both media. Only
	// the newest of those that came meanwhile is taken.
	networkPause = time.Second
)

// network keeps the newest network configuration of the rack and passes it on: stored first, then sent (wire.md §4.3). It
// has a goroutine of its own, so that the quorum does not wait for its disks.
type network struct {
	save    func(context.Context, ledger.Network) error
	send    func(ident.Baseboard, wire.NetworkConfig) error
	reasons *reason.Log
	log     *slog.Logger
	onNews  func() // the status changed

	saving sync.Mutex // one adoption at a time, held while it is written
	wake   chan struct{}

	mu      sync.Mutex
	have    ledger.Network
	from    ident.Baseboard // who gave it; zero: the agent, or an earlier life
	pending *offer          // the newest one of a peer that was not judged yet
	up      map[ident.Baseboard]bool
	splits  map[ident.Baseboard]api.Alarm
	changed chan struct{} // closed and replaced with each adoption
}

// offer is a configuration that a peer sent.
type offer struct {
	cfg  ledger.Network
	from ident.Baseboard
}

func newNetwork(have ledger.Network, save func(context.Context, ledger.Network) error, reasons *reason.Log, log *slog.Logger) *network {
	return &network{
		have: have, save: save, reasons: reasons, log: log, onNews: func() {}, wake: make(chan struct{}, 1),
		up: map[ident.Baseboard]bool{}, splits: map[ident.Baseboard]api.Alarm{}, changed: make(chan struct{}),
	}
}

// setSend says how to reach peers. Before that there are none.
func (n *network) setSend(f func(ident.Baseboard, wire.NetworkConfig) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.send = f
}

// peerUp sends a new connection what this sled has.
func (n *network) peerUp(peer ident.Baseboard) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up[peer] = true
	if n.have.Generation != 0 {
		n.sendTo(peer)
	}
}

func (n *network) peerDown(peer ident.Baseboard) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.up, peer)
}

// sendTo is called with the lock held; it does not block. What is not sent is counted there, and sent with the next
// connection.
func (n *network) sendTo(peer ident.Baseboard) {
	if err := n.send(peer, wire.NetworkConfig(n.have)); err != nil {
		n.log.Debug("not sent", "peer", peer.String(), "kind", "network_config", "err", err)
	}
}

// receive looks at what a peer sent, and leaves a newer one to run. It does not block.
func (n *network) receive(from ident.Baseboard, m wire.NetworkConfig, trusted bool) {
	cfg := ledger.Network(m)
	if !trusted {
		n.reasons.Count(CodeNetworkSender, from.String(), fmt.Sprintf("generation %d, from a sled that is no member", cfg.Generation))
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	err := check(n.have, cfg)
	if err == nil && n.pending != nil && n.pending.cfg.Generation == cfg.Generation {
		err = checkSame(n.pending.cfg, cfg)
	}
	switch reason.CodeOf(err) {
	case "":
		if n.pending == nil || n.pending.cfg.Generation < cfg.Generation {
			n.pending = &offer{cfg, from}
		}
		select {
		case n.wake <- struct{}{}:
		default:
		}
	case CodeNetworkStale: // as happens between honest peers: the sender got ours when it connected
		n.agrees(from)
		if cfg.Generation < n.have.Generation {
			n.reasons.CountRoutine(CodeNetworkStale, from.String(), err.Error())
		}
	default:
		n.refuse(from, cfg.Generation, err)
	}
}

// refuse counts what a peer should not have sent. A peer that has other content under the same number stays so until a
// newer one comes, so that is an alarm for as long. The lock is held.
func (n *network) refuse(from ident.Baseboard, generation uint64, err error) {
	n.reasons.CountError(CodeNetworkInvalid, from.String(), err)
	n.log.Warn("network configuration refused", "code", reason.CodeOf(err), "peer", from.String(), "generation", generation, "err", err)
	if reason.CodeOf(err) != CodeNetworkSplit && reason.CodeOf(err) != CodeNetworkJump {
		return
	}
	n.splits[from] = api.Alarm{Kind: string(reason.CodeOf(err)), From: &from, Text: err.Error()}
	n.onNews()
}

// agrees takes back what was said of a peer. The lock is held.
func (n *network) agrees(peer ident.Baseboard) {
	if _, was := n.splits[peer]; was {
		delete(n.splits, peer)
		n.onNews()
	}
}

// check says whether a configuration may follow the one that this sled has. [CodeNetworkStale] says that it is older or
// the very same.
func check(have, next ledger.Network) error {
	switch {
	case next.Generation == 0:
		return &reason.Error{Code: CodeNetworkInvalid, Text: "vault: network configuration: generation 0", Hint: "begin with 1", Remedy: reason.Usage}
	case len(next.Blob) > wire.MaxNetworkBlob:
		return &reason.Error{
			Code: CodeNetworkInvalid, Text: fmt.Sprintf("vault: network configuration: have %d bytes, want at most %d", len(next.Blob), wire.MaxNetworkBlob),
			Hint: "make it smaller", Remedy: reason.Usage,
		}
	case next.Generation == have.Generation:
		return checkSame(have, next)
	case next.Generation < have.Generation:
		return stale(have, next)
	case next.Generation-have.Generation > maxNetworkJump:
		return reason.New(CodeNetworkJump, "count up from the generation of the moment: sledvault network-config get",
			"vault: network configuration: have generation %d, want at most %d more than %d", next.Generation, uint64(maxNetworkJump), have.Generation)
	}
	return nil
}

// checkSame tells a repetition from a split: two contents under one generation, of which each sled would keep its own.
func checkSame(have, next ledger.Network) error {
	if have.Digest() == next.Digest() {
		return stale(have, next)
	}
	return reason.New(CodeNetworkSplit, hintNetworkSplit, "vault: network configuration: generation %d has SHA-256 %x here and %x there",
		have.Generation, have.Digest(), next.Digest())
}

func stale(have, next ledger.Network) error {
	return reason.New(CodeNetworkStale, hintNetworkStale, "vault: network configuration: have generation %d, want more than %d", next.Generation, have.Generation)
}

// run adopts what peers send, until ctx ends.
func (n *network) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		}
		n.mu.Lock()
		o := n.pending
		n.pending = nil
		n.mu.Unlock()
		if o == nil {
			continue
		}
		if _, err := n.adopt(ctx, o.cfg, o.from); err != nil && reason.CodeOf(err) != CodeNetworkStale {
			n.mu.Lock()
			n.refuse(o.from, o.cfg.Generation, err)
			n.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(networkPause):
		}
	}
}

// adopt stores a newer configuration, makes it the one that counts, and passes it on, but not to the peer that it came from.
func (n *network) adopt(ctx context.Context, cfg ledger.Network, from ident.Baseboard) (ledger.Network, error) {
	n.saving.Lock()
	defer n.saving.Unlock()
	have, _, _ := n.current() // nobody else changes it now
	if err := check(have, cfg); err != nil {
		return have, err
	}
	if err := n.save(context.WithoutCancel(ctx), cfg); err != nil {
		return have, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.have, n.from = cfg, from
	clear(n.splits)
	close(n.changed)
	n.changed = make(chan struct{})
	for peer := range n.up {
		if peer != from {
			n.sendTo(peer)
		}
	}
	n.log.Info("network configuration", "generation", cfg.Generation, "bytes", len(cfg.Blob), "peer", peerName(from))
	n.onNews()
	return cfg, nil
}

func (n *network) current() (have ledger.Network, from ident.Baseboard, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.have, n.from, n.changed
}

// alarms are the disagreements of the moment, by peer.
func (n *network) alarms() []api.Alarm {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.SortedFunc(maps.Values(n.splits), func(a, b api.Alarm) int { return a.From.Compare(*b.From) })
}

func networkReply(n ledger.Network) api.NetworkConfig {
	out := api.NetworkConfig{Generation: n.Generation, Blob: n.Blob}
	if n.Generation != 0 {
		sum := n.Digest()
		out.SHA256 = hex.EncodeToString(sum[:])
	}
	return out
}

// NetworkConfig returns the network configuration once its generation exceeds after, or when ctx ends.
func (d *Daemon) NetworkConfig(ctx context.Context, after uint64) (api.NetworkConfig, error) {
	n := d.getNetwork()
	if n == nil {
		return api.NetworkConfig{}, d.notStarted()
	}
	for {
		have, _, changed := n.current()
		if cmp.Compare(have.Generation, after) > 0 || ctx.Err() != nil {
			return networkReply(have), nil //nolint:nilerr // the end of the wait is an answer
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// SetNetworkConfig takes a newer configuration from the agent. The one that is there already changes nothing.
func (d *Daemon) SetNetworkConfig(ctx context.Context, generation uint64, blob []byte) (api.NetworkConfig, error) {
	n := d.getNetwork()
	if n == nil {
		return api.NetworkConfig{}, d.notStarted()
	}
	cfg := ledger.Network{Generation: generation, Blob: slices.Clone(blob)}
	have, err := n.adopt(ctx, cfg, ident.Baseboard{})
	if reason.CodeOf(err) == CodeNetworkStale && have.Generation == generation {
		err = nil
	}
	out := networkReply(have)
	out.Blob = nil // the caller has it
	return out, err
}

func (d *Daemon) getNetwork() *network { d.mu.RLock(); defer d.mu.RUnlock(); return d.network }

// networkStatus is what status says of the network configuration, nil if there is none.
func networkStatus(n *network) *api.NetworkStatus {
	have, from, _ := n.current()
	if have.Generation == 0 {
		return nil
	}
	out := &api.NetworkStatus{Generation: have.Generation, Bytes: len(have.Blob)}
	if !from.IsZero() {
		out.From = &from
	}
	return out
}
