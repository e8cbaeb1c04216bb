package vault

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/sledvault/sledvault/vault/api"
)

const (
	inUsePause = 20 * time.Millisecond
	inUseMax   = 2 * time.Second
)

// listenUnderlay opens the underlay's listener. An address may stay in use for a moment after the daemon before ended: a
// command that was starting then has a copy of every descriptor until it runs.
func (d *Daemon) listenUnderlay(ctx context.Context) (*api.Underlay, error) {
	cfg := api.UnderlayConfig{Listen: d.cfg.Underlay.Listen, Certificate: d.tls.Certificate(), Node: d, Reasons: d.reasons}
	for begin := time.Now(); ; {
		u, err := api.ListenUnderlay(cfg)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Since(begin) > inUseMax {
			return u, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(inUsePause):
		}
	}
}
