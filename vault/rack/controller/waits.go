package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
)

// Wait says for whom the change under way waits, and why as far as the sled itself says.
type Wait struct {
	Sled string `json:"sled"`
	Why  string `json:"why"`
}

// waits explains every acknowledgement that is missing.
func (c *Controller) waits(ch *rack.Change, reports []Report) []Wait {
	out := []Wait{}
	if ch == nil {
		return out
	}
	coordinator := c.report(reports, ch.Coordinator)
	for _, m := range ch.Missing() {
		w := Wait{Sled: c.label(m), Why: sledWhy(c.report(reports, m))}
		if r := c.report(reports, m); r != nil && r.Status == nil && ch.Phase == rack.Decided {
			w.Why += "; " + c.wayTo(m, reports)
		}
		switch {
		case w.Why != "":
		case ch.Phase == rack.Decided:
			w.Why = "has not been told; run the command again that began the change"
		case coordinator == nil || coordinator.Status == nil:
			w.Why = fmt.Sprintf("coordinator %s cannot be reached; run the command again for another one", c.label(ch.Coordinator))
		case coordinator.Status.Quorum == nil || coordinator.Status.Quorum.Coordinating != ch.Epoch:
			w.Why = fmt.Sprintf("coordinator %s does not coordinate epoch %d; run the command again", c.label(ch.Coordinator), ch.Epoch)
		default:
			w.Why = "has not acknowledged its share to coordinator " + c.label(ch.Coordinator)
		}
		out = append(out, w)
	}
	return out
}

// wayTo says through whom a sled that does not answer can be told of a decision.
func (c *Controller) wayTo(b ident.Baseboard, reports []Report) string {
	for i := range reports {
		if connects(&reports[i], b) {
			return reports[i].Sled.Label() + " is connected to it and can pass the decision on: run the command again that began the change"
		}
	}
	return "no other sled that answers is connected to it"
}

func (c *Controller) report(reports []Report, b ident.Baseboard) *Report {
	i := slices.IndexFunc(reports, func(r Report) bool { return r.Sled.Baseboard() == b })
	if i < 0 {
		return nil
	}
	return &reports[i]
}

// explain tells, while the coordinator waits, why members have not prepared, as soon as that has taken unusually long.
func (r *run) explain(ctx context.Context, ch *rack.Change) {
	tick := time.NewTicker(patience)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.mu.Lock()
		missing := ch.Missing()
		r.mu.Unlock()
		var wg sync.WaitGroup
		for _, m := range missing {
			if s, ok := r.c.file.Find(m); ok {
				wg.Go(func() {
					report := r.c.reportOf(ctx, s)
					if why := sledWhy(&report); why != "" && ctx.Err() == nil {
						r.c.waitingFor(m, errors.New(why))
					}
				})
			}
		}
		wg.Wait()
	}
}

// sledWhy is what keeps a sled from taking part; "" if it seems able to.
func sledWhy(r *Report) string {
	switch {
	case r == nil:
		return "is not in the rack file"
	case r.Status == nil:
		return r.Error.Text
	case r.Status.State == api.StateLostSeal:
		return "lost its seal; see sledvault rack enroll --again " + r.Sled.Label()
	case r.Status.State == api.StateExpunged:
		return "was removed from the rack"
	case r.Status.Quorum == nil:
		return "is still starting, at step " + r.Status.Boot.Step
	case r.Status.Quorum.Collecting != nil:
		q := r.Status.Quorum.Collecting
		return fmt.Sprintf("collects shares of epoch %d: have %d, want %d", q.Epoch, q.Have, q.Want)
	}
	return ""
}
