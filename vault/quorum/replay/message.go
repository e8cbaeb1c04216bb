package replay

import (
	"math"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
)

// This file reads the messages of a log. Of what is random in every run, only the length is looked at.

// kind reads the content of a message.
func (s *scanner) kind(m *Message) {
	if s.peek() == '"' {
		m.Kind = quorum.KindGetLRTQShare
		if b := s.string(); s.err == nil && string(b) != "GetLrtqShare" {
			s.fail(CodeUnknown, hintUnknown, "unknown message %.40q", b)
		}
		return
	}
	names := []string{"GetShare", "Share", "PrepareAck", "Prepare", "CommitAdvance", "Expunged", "LrtqShare"}
	s.variant("message", names, func(i int) {
		switch i {
		case 0:
			m.Kind, m.Epoch = quorum.KindGetShare, s.epoch()
		case 1:
			m.Kind = quorum.KindShare
			s.object([]string{"epoch", "share"}, func(i int) {
				if i == 0 {
					m.Epoch = s.epoch()
				} else {
					m.X = s.share()
				}
			})
		case 2:
			m.Kind, m.Epoch = quorum.KindPrepareAck, s.epoch()
		case 3:
			m.Kind = quorum.KindPrepare
			s.object([]string{"config", "share"}, func(i int) {
				if i == 0 {
					m.Config = s.config()
				} else {
					m.X = s.share()
				}
			})
		case 4:
			m.Kind, m.Config = quorum.KindCommitAdvance, s.config()
		case 5:
			m.Kind, m.Epoch = quorum.KindExpunged, s.epoch()
		case 6:
			m.Kind = quorum.KindLRTQShare
			s.bytes(lrtqShareSize)
		}
	})
	if m.Config != nil {
		m.Epoch = m.Config.Epoch
	}
}

// share reads a share of a rack secret and returns its number only.
func (s *scanner) share() (x byte) {
	s.object([]string{"x_coordinate", "y_coordinates"}, func(i int) {
		if i == 0 {
			x = byte(s.uint(math.MaxUint8))
		} else {
			s.bytes(keys.Size)
		}
	})
	return x
}

func (s *scanner) config() *Config {
	c := &Config{Members: make([]ident.Baseboard, 0, 8)}
	s.object([]string{"rack_id", "epoch", "coordinator", "members", "threshold", "encrypted_rack_secrets"}, func(i int) {
		switch i {
		case 0:
			c.RackID = s.rackID()
		case 1:
			c.Epoch = s.epoch()
		case 2:
			c.Coordinator = s.id()
		case 3:
			s.array(func() { c.Members = append(c.Members, s.member()) })
		case 4:
			c.Threshold = ident.Threshold(s.uint(math.MaxUint8))
		case 5:
			c.OldSecrets = s.oldSecrets()
		}
	})
	return c
}

// member reads the pair of a member and the digest of its share.
func (s *scanner) member() (id ident.Baseboard) {
	n := 0
	s.array(func() {
		switch n {
		case 0:
			id = s.id()
		case 1:
			if have := s.hex(); s.err == nil && have != len(quorum.Digest{}) {
				s.syntax("digest: have %d bytes, want %d", have, len(quorum.Digest{}))
			}
		default:
			s.syntax("more than two elements in a member")
		}
		n++
	})
	if s.err == nil && n != 2 {
		s.syntax("have %d elements in a member, want 2", n)
	}
	return id
}

// oldSecrets reads encrypted older secrets and returns how many bytes they are.
func (s *scanner) oldSecrets() *int {
	if s.null() {
		return nil
	}
	var size int
	s.object([]string{"salt", "data"}, func(i int) {
		have := s.hex()
		if i == 1 {
			size = have
		} else if s.err == nil && have != keys.Size {
			s.syntax("salt: have %d bytes, want %d", have, keys.Size)
		}
	})
	return &size
}
