package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// LRTQConfig says what the sled takes over from the older scheme (lrtq.md), and whether it still speaks it.
type LRTQConfig struct {
	// Ledgers are the copies of bootstore-fsm-state.json. They are read once, while the sled knows no configuration of the
	// trust quorum; none, or none that is there, means that the sled never had the older scheme.
	Ledgers []string `toml:"ledgers"`
}

// Reasons of taking over from the older scheme.
const (
	CodeLRTQLedger  reason.Code = "lrtq-ledger"         // a ledger of the older scheme is there and cannot be used
	CodeLRTQDiffers reason.Code = "lrtq-ledger-differs" // the copies of the older scheme's ledger hold different packages
	CodeLRTQRack    reason.Code = "lrtq-other-rack"     // the package of the older scheme belongs to another rack
	CodeLRTQTaken   reason.Code = "lrtq-taken-over"     // the package of the older scheme is in the sealed state now
)

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
