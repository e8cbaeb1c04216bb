package replay

import (
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// is reports whether a message of ours is the recorded one, but for what is random in every run: digests, values of
// shares, salts and ciphertext. The number of a share, the number of members and the length of older secrets are not
// random, so they are compared, which the reference does not do.
func (l letter) is(e DeliverEnvelope) bool {
	m := e.Message
	if l.from != e.From || l.message.RackID != m.RackID || quorum.KindOf(l.message.Kind) != m.Kind {
		return false
	}
	epoch, x, c := content(l.message.Kind)
	if epoch != m.Epoch || x != m.X || (c == nil) != (m.Config == nil) {
		return false
	}
	return c == nil || sameConfig(c, m.Config)
}

// content is what a message carries: an epoch, the number of a share, a configuration.
func content(k quorum.MessageKind) (e ident.Epoch, x byte, c *quorum.Configuration) {
	switch k := k.(type) {
	case quorum.Prepare:
		return k.Config.Epoch, k.Share.X, k.Config
	case quorum.CommitAdvance:
		return k.Config.Epoch, 0, k.Config
	case quorum.PrepareAck:
		return k.Epoch, 0, nil
	case quorum.GetShare:
		return k.Epoch, 0, nil
	case quorum.ShareReply:
		return k.Epoch, k.Share.X, nil
	case quorum.ExpungedNotice:
		return k.Epoch, 0, nil
	case quorum.NoSuchShare:
		return k.Epoch, 0, nil
	}
	return 0, 0, nil
}

func sameConfig(a *quorum.Configuration, b *Config) bool {
	return a.RackID == b.RackID && a.Epoch == b.Epoch && a.Coordinator == b.Coordinator && a.Threshold == b.Threshold &&
		slices.EqualFunc(a.Members, b.Members, func(m quorum.Member, id ident.Baseboard) bool { return m.ID == id }) &&
		(a.EncryptedSecrets == nil) == (b.OldSecrets == nil) &&
		(b.OldSecrets == nil || len(a.EncryptedSecrets.Data) == *b.OldSecrets)
}

// summary is a message of ours without what is random.
func summary(m quorum.Message) Message {
	out := Message{RackID: m.RackID, Kind: quorum.KindOf(m.Kind)}
	var c *quorum.Configuration
	if out.Epoch, out.X, c = content(m.Kind); c != nil {
		out.Config = configView(c)
	}
	return out
}

func configView(c *quorum.Configuration) *Config {
	out := &Config{RackID: c.RackID, Epoch: c.Epoch, Coordinator: c.Coordinator, Threshold: c.Threshold}
	for _, m := range c.Members {
		out.Members = append(out.Members, m.ID)
	}
	if c.EncryptedSecrets != nil {
		n := len(c.EncryptedSecrets.Data)
		out.OldSecrets = &n
	}
	return out
}
