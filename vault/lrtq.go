package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/lrtqnet"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// LRTQConfig says what the sled takes over from the older scheme (lrtq.md), and whether it still speaks it.
type LRTQConfig struct {
	// Ledgers are the copies of bootstore-fsm-state.json. They are read once, while the sled knows no configuration of the
	// trust quorum; none, or none that is there, means that the sled never had the older scheme.
	Ledgers []string `toml:"ledgers"`
	// Serve has the sled speak the older scheme with the others until its first commit of the trust quorum. Nobody proves
	// anything there: see threat-model.md §4.
	Serve  bool     `toml:"serve"`
	Listen string   `toml:"listen"` // "[ip]:port", IPv6; usually port 12347
	Peers  []string `toml:"peers"`  // "[ip]:port" of every sled; the own address may be among them
}

// Reasons of taking over from the older scheme.
const (
	CodeLRTQLedger  reason.Code = "lrtq-ledger"         // a ledger of the older scheme is there and cannot be used
	CodeLRTQDiffers reason.Code = "lrtq-ledger-differs" // the copies of the older scheme's ledger hold different packages
	CodeLRTQRack    reason.Code = "lrtq-other-rack"     // the package of the older scheme belongs to another rack
	CodeLRTQTaken   reason.Code = "lrtq-taken-over"     // the package of the older scheme is in the sealed state now
)

// CodeLRTQServing says that the older scheme is served: shares are given to whoever asks.
const CodeLRTQServing reason.Code = "lrtq-serving"

const maxLRTQLedgers = 8

func (c *LRTQConfig) validate() error {
	if len(c.Ledgers) > maxLRTQLedgers {
		return fmt.Errorf("[lrtq] ledgers: have %d, want at most %d", len(c.Ledgers), maxLRTQLedgers)
	}
	for _, p := range c.Ledgers {
		if !filepath.IsAbs(p) {
			return fmt.Errorf("[lrtq] ledgers must be absolute paths: have %.120q", p)
		}
	}
	if !c.Serve {
		return nil
	}
	listen, err := netip.ParseAddrPort(c.Listen)
	if err != nil || !listen.Addr().Is6() || listen.Addr().Is4In6() || listen.Addr().IsUnspecified() || listen.Addr().Zone() != "" {
		return fmt.Errorf("[lrtq] listen must be [ip]:port with an IPv6 address of this sled: have %.60q", c.Listen)
	}
	peers, err := parseAddrs(c.Peers)
	switch {
	case err != nil:
		return fmt.Errorf("[lrtq] %w", err)
	case len(peers) == 0:
		return errors.New("[lrtq] peers must name the other sleds: nobody else is let in")
	}
	return nil
}

// takeOver puts the sled's package of the older scheme into the sealed state, once: a sled that knows a configuration, or
// has its package already, never looks at those files again. An absent file is no error; one that is there must be right.
func (d *Daemon) takeOver(ctx context.Context) error {
	st := d.getStore()
	q := st.snapshot().Quorum
	if q.LRTQ != nil || len(q.Configs) > 0 || len(d.cfg.LRTQ.Ledgers) == 0 {
		return nil
	}
	p, err := d.readLRTQ()
	if err != nil || p == nil {
		return err
	}
	if rack, _ := d.rack(); p.RackID != rack {
		p.Destroy()
		return reason.New(CodeLRTQRack, "make the rack's folder with the id of the old rack: sledvault rack new --rack-id "+p.RackID.String(),
			"vault: the older scheme's package is of rack %s, the enrolment set of rack %s", p.RackID, rack)
	}
	q = q.Clone()
	q.LRTQ = p
	if err := st.updateQuorum(ctx, q); err != nil {
		return err
	}
	d.reasons.Count(CodeLRTQTaken, "", fmt.Sprintf("share %d, threshold %d", p.Share.X, p.Threshold))
	d.log.Info("package of the older scheme taken over", "rack_id", p.RackID, "threshold", p.Threshold)
	return nil
}

// readLRTQ reads all copies and returns the package of the newest, nil if there is none. A copy that cannot be read is
// counted and does no harm as long as another one can: a package never changes.
func (d *Daemon) readLRTQ() (*lrtq.Package, error) {
	var best *wire.LRTQLedger
	var failed error
	for _, path := range d.cfg.LRTQ.Ledgers {
		l, err := d.readLRTQLedger(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			failed = reason.Wrap(err, CodeLRTQLedger, "sledvault ledger show "+path+" says what is wrong; restore it from the other copy, or take its path out of [lrtq] ledgers",
				"vault: the older scheme's ledger %s", path)
			d.reasons.CountError(CodeLRTQLedger, "", failed)
			continue
		}
		if best != nil && !samePackage(*best, l) {
			best.Destroy()
			l.Destroy()
			return nil, reason.New(CodeLRTQDiffers, "keep only the right copy in [lrtq] ledgers", "vault: %s holds another package than the copy before", path)
		}
		switch {
		case best == nil:
			best = &l
		case l.Generation > best.Generation:
			best.Destroy()
			best = &l
		default:
			l.Destroy()
		}
	}
	if best == nil {
		return nil, failed
	}
	common, ok := best.State.Common()
	if !ok {
		d.log.Info("the older scheme's ledger holds no package", "phase", best.State.Phase)
		return nil, nil
	}
	return &common, nil
}

// samePackage compares what two copies would have us take over. A copy without a package is an older one.
func samePackage(a, b wire.LRTQLedger) bool {
	p, ok := a.State.Common()
	q, ok2 := b.State.Common()
	return !ok || !ok2 || p.Equal(q)
}

func (d *Daemon) readLRTQLedger(path string) (l wire.LRTQLedger, err error) {
	f, err := os.Open(path)
	if err != nil {
		return l, err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return l, err
	}
	b := make([]byte, min(fi.Size(), wire.MaxReferenceLedger+1)) // in one place, so that it can be wiped
	defer clear(b)
	if _, err := io.ReadFull(f, b); err != nil {
		return l, err
	}
	return wire.DecodeLRTQLedger(d.alloc, b)
}

// lrtqPause is how long the sled waits before it tries to serve the older scheme again, or to open its disks by it.
const lrtqPause = 2 * time.Second

// lrtqServer is the running server of the older scheme, nil if it is not served.
func (d *Daemon) lrtqServer() *lrtqnet.Server { d.mu.RLock(); defer d.mu.RUnlock(); return d.oldScheme }

func (d *Daemon) setLRTQServer(s *lrtqnet.Server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.oldScheme = s
	d.changes.bump()
}

// serveLRTQ speaks the older scheme, if the operator asked for it, until ctx ends or the trust quorum commits for the
// first time. A sled whose address cannot be opened boots without.
func (d *Daemon) serveLRTQ(ctx context.Context) {
	if !d.cfg.LRTQ.Serve {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { d.endLRTQ(ctx, cancel) })
	for ctx.Err() == nil && d.getStore().snapshot().Quorum.LRTQOnly() {
		if err := d.runLRTQ(ctx); err != nil && ctx.Err() == nil {
			d.reasons.CountError(CodeLRTQServing, "", err)
			d.log.Error("the older scheme is not served", "err", err, "hint", reason.HintOf(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(lrtqPause):
		}
	}
}

// endLRTQ calls end when the trust quorum has committed, or removed this sled.
func (d *Daemon) endLRTQ(ctx context.Context, end func()) {
	for {
		st, _, changed := d.getDriver().Status()
		if len(st.Commits) > 0 || st.Expunged != nil {
			end()
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (d *Daemon) runLRTQ(ctx context.Context) error {
	common, err := d.getStore().snapshot().Quorum.LRTQ.Clone(d.alloc)
	if err != nil {
		return err
	}
	listen, _ := netip.ParseAddrPort(d.cfg.LRTQ.Listen) // the configuration was checked
	peers, _ := parseAddrs(d.cfg.LRTQ.Peers)
	s, err := lrtqnet.New(lrtqnet.Config{
		ID: d.lrtqBoard(), Listen: listen, Peers: peers, Package: common,
		Alloc: d.alloc, Rand: d.rand, Reasons: d.reasons, Log: d.log,
	})
	if err != nil {
		return err
	}
	if err := s.Listen(ctx); err != nil {
		common.Destroy()
		return err
	}
	d.reasons.Count(CodeLRTQServing, "", "on "+listen.String()+", until the first commit of the trust quorum")
	d.log.Warn("SERVING the older scheme: whoever connects from a configured address is given this sled's share of it", "listen", listen)
	d.setLRTQServer(s)
	defer d.setLRTQServer(nil)
	opening, stop := context.WithCancel(ctx)
	opened := make(chan struct{})
	go func() { defer close(opened); d.openByLRTQ(opening) }()
	err = s.Run(ctx)
	stop()
	<-opened
	d.log.Info("the older scheme is not served any more")
	return err
}

// lrtqBoard is who this sled is in the older scheme.
func (d *Daemon) lrtqBoard() lrtq.Board {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return lrtq.Board{Kind: lrtq.Gimlet, Identifier: d.id.Serial, Model: d.id.Part, Revision: d.revision}
}

// openByLRTQ opens disks of epoch 1 with the older scheme's secret, before the rack is upgraded.
func (d *Daemon) openByLRTQ(ctx context.Context) {
	for ctx.Err() == nil {
		st := d.getStore()
		if len(d.disks.orphans(ctx, st))+len(d.disks.locked(st)) > 0 {
			if err := d.disks.open(ctx); err != nil && ctx.Err() == nil {
				d.reasons.CountError(api.CodeInternal, "", err)
				d.log.Warn("disks of epoch 1", "err", err, "hint", reason.HintOf(err))
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(lrtqPause):
		}
	}
}
