package vault

import (
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/wire"
)

// WithDaemon hands a test the daemon that starts.
func WithDaemon(o Options, f func(*Daemon)) Options {
	o.started = f
	return o
}

// Forge sends messages as a member that was taken over would: past the node, over this sled's own proved connection.
func (d *Daemon) Forge(to ident.Baseboard, kinds ...quorum.MessageKind) error {
	d.mu.RLock()
	m, set := d.peers, d.set
	d.mu.RUnlock()
	for _, k := range kinds {
		if err := m.Send(to, wire.TQ{Message: quorum.Message{RackID: set.Rack, Kind: k}}); err != nil {
			return err
		}
	}
	return nil
}

// ForgeMessages is [Daemon.Forge] for any message.
func (d *Daemon) ForgeMessages(to ident.Baseboard, msgs ...wire.Msg) error {
	d.mu.RLock()
	m := d.peers
	d.mu.RUnlock()
	_, err := m.SendAll(to, msgs...)
	return err
}
