package vault

import (
	"context"
	"sync"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/reason"
)

// mesh is the peer network of one start. It comes up while the seal is being opened: that waits for the TPM, connecting
// waits for peers, and neither needs the other. Until [mesh.open] a handshake goes no further than the hellos and a dialer's
// evidence; until [mesh.clear] no evidence of this sled leaves it.
type mesh struct {
	channel         *channel.Config
	peers           *peer.Manager
	opened, cleared chan struct{}

	ctx    context.Context // of everything that lives as long as the network
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (m *mesh) open()  { close(m.opened) }
func (m *mesh) clear() { close(m.cleared) }

// stop ends the network and waits for it.
func (m *mesh) stop() {
	m.cancel()
	m.wg.Wait()
}

// connect listens for peers and dials them, if that has not been done. The enrolment set must be known.
func (d *Daemon) connect(ctx context.Context) (*mesh, error) {
	if m := d.getMesh(); m != nil {
		return m, nil
	}
	listen, err := d.cfg.peerListen()
	if err != nil {
		return nil, err
	}
	addrs, err := parseAddrs(d.peerList())
	if err != nil {
		return nil, err
	}
	if err := d.makeProver(); err != nil {
		return nil, err
	}
	m := &mesh{opened: make(chan struct{}), cleared: make(chan struct{})}
	m.channel = d.channel(m)
	if m.peers, err = peer.New(peer.Config{Self: d.identity(), Listen: listen, Channel: peer.Attest(m.channel), Alloc: d.alloc, Reasons: d.reasons}); err != nil {
		return nil, err
	}
	if err := m.peers.Listen(ctx); err != nil {
		return nil, retry(err)
	}
	m.peers.SetPeers(addrs)
	m.ctx, m.cancel = context.WithCancel(ctx)
	m.wg.Go(func() {
		if err := m.peers.Run(m.ctx); err != nil && m.ctx.Err() == nil {
			d.fail(err)
		}
	})
	d.setMesh(m)
	return m, nil
}

// hangUp ends a network that has come up too early: the seal is lost, or this sled's own evidence does not pass.
func (d *Daemon) hangUp() {
	m := d.getMesh()
	if m == nil {
		return
	}
	d.setMesh(nil)
	m.stop()
}

func (d *Daemon) getMesh() *mesh { d.mu.RLock(); defer d.mu.RUnlock(); return d.mesh }

func (d *Daemon) setMesh(m *mesh) { d.mu.Lock(); defer d.mu.Unlock(); d.mesh = m }

// makeProver makes what speaks for this sled's TPM, if there is nothing yet. It says nothing before the ledger is open.
func (d *Daemon) makeProver() error {
	set := d.Set()
	rec, ok := set.Find(d.identity())
	if !ok {
		return reason.New(CodeForeignBoard, hintReenroll, "vault: the enrolment set has no record of sled %s", d.identity())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.prover != nil {
		return nil
	}
	a := &attestor{tpm: d.tpm, record: rec, logPath: d.cfg.TPM.EventLog, counter: d.counterOf(rec)}
	p, err := rot.NewProver(rot.ProverConfig{Attestor: a, Baseboard: d.id, Facts: d.facts, CommandTimeout: d.cfg.TPM.CommandTimeout.std()})
	if err != nil {
		return err
	}
	d.prover = p
	return nil
}

// dropProver ends what spoke for a TPM whose seal is lost: it is enrolled with other keys.
func (d *Daemon) dropProver() {
	d.mu.Lock()
	p := d.prover
	d.prover = nil
	d.mu.Unlock()
	if p != nil {
		p.Close()
	}
}

// facts is what evidence says about the state. Without a ledger it says what no counter bears out.
func (d *Daemon) facts() rot.Facts {
	if s := d.getStore(); s != nil {
		return s.Facts()
	}
	return rot.Facts{}
}
