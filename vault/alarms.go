package vault

import (
	"context"
	"slices"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// keepAlarm has an alarm outlast this life of the daemon: whoever causes one may cause a restart too. It is kept beside
// the ledger, at the cost of no counter step; that it cannot be is counted, the alarm still stands in this life's status.
func (d *Daemon) keepAlarm(s *store, a quorum.Alarm) {
	kept := ledger.Alarm{
		Code: reason.Code(a.Kind), Epoch: uint64(a.Epoch), Peer: peerName(a.From), Text: a.Text,
		BootMS: d.sinceBoot(),
	}
	err := s.observe(context.Background(), func(o *ledger.Observed) {
		if !slices.ContainsFunc(o.Alarms, kept.Same) {
			o.AddAlarm(kept)
		}
	})
	if err != nil {
		d.reasons.CountError(ledger.CodeObserved, "", err)
	}
}

// alarms lists those of the node and, after them, those of earlier lives that nobody has cleared.
func alarms(st quorum.Status, kept []ledger.Alarm) []api.Alarm {
	out := []api.Alarm{}
	for _, a := range st.Alarms {
		v := api.Alarm{Kind: string(a.Kind), Epoch: a.Epoch, Text: a.Text}
		if from := a.From; !from.IsZero() {
			v.From = &from
		}
		out = append(out, v)
		kept = slices.DeleteFunc(slices.Clone(kept), ledger.Alarm{
			Code: reason.Code(a.Kind), Epoch: uint64(a.Epoch), Peer: peerName(a.From), Text: a.Text,
		}.Same)
	}
	for _, k := range kept {
		v := api.Alarm{Kind: string(k.Code), Epoch: ident.Epoch(k.Epoch), Text: k.Text, Earlier: true}
		if from, err := ident.ParseBaseboard(k.Peer); err == nil {
			v.From = &from
		}
		out = append(out, v)
	}
	return out
}

// ClearAlarms forgets every alarm, of this life and of earlier ones, after an operator has looked at them. The counts stay.
func (d *Daemon) ClearAlarms(ctx context.Context, who api.Caller) error {
	s, drv := d.getStore(), d.getDriver()
	if s == nil || drv == nil {
		return d.notStarted()
	}
	if err := s.observe(ctx, func(o *ledger.Observed) { o.Alarms = nil }); err != nil {
		return err
	}
	drv.tell(quorum.ClearAlarms{})
	d.log.Info("alarms cleared", "uid", who.UID, "pid", who.PID)
	return nil
}
