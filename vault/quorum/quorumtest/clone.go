package quorumtest

import (
	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

// CloneMessage copies a message with its secrets.
func CloneMessage(m quorum.Message) quorum.Message {
	clone := func(s gfss.Share) gfss.Share {
		if d, err := s.Clone(secret.Heap{}); err == nil {
			return d
		}
		return gfss.Share{X: s.X}
	}
	switch k := m.Kind.(type) {
	case quorum.Prepare:
		k.Share = clone(k.Share)
		m.Kind = k
	case quorum.ShareReply:
		k.Share = clone(k.Share)
		m.Kind = k
	case quorum.LRTQShare:
		k.Share = clone(k.Share)
		m.Kind = k
	}
	return m
}

func destroy(k quorum.MessageKind) {
	switch k := k.(type) {
	case quorum.Prepare:
		k.Share.Destroy()
	case quorum.ShareReply:
		k.Share.Destroy()
	case quorum.LRTQShare:
		k.Share.Destroy()
	}
}
