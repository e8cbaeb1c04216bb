package wire

import (
	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// The parts that several messages share (wire.md §3).

func (w *writer) baseboard(b ident.Baseboard) {
	w.mapOf(2)
	w.key("part_number")
	w.text(b.Part)
	w.key("serial_number")
	w.text(b.Serial)
}

func (r *reader) baseboard() (b ident.Baseboard) {
	r.fields(
		field{name: "part_number", read: func() { b.Part = r.text(ident.MaxField) }},
		field{name: "serial_number", read: func() { b.Serial = r.text(ident.MaxField) }},
	)
	r.checkBaseboard(b)
	return b
}

func (r *reader) checkBaseboard(b ident.Baseboard) {
	if r.err == nil {
		if err := b.Validate(); err != nil {
			r.fail(CodeText, "%v", err)
		}
	}
}

func (w *writer) share(s gfss.Share) {
	w.checkShare(s)
	w.mapOf(2)
	w.key("x_coordinate")
	w.uint(uint64(s.X))
	w.key("y_coordinates")
	w.revealInts(s.Y)
}

func (w *writer) checkShare(s gfss.Share) {
	switch {
	case s.X == 0:
		w.fail(CodeRange, "share x: have 0, want 1 to 255")
	case s.Y.Len() != ShareSize:
		w.fail(CodeLength, "share: have %d bytes, want %d", s.Y.Len(), ShareSize)
	}
}

func (r *reader) share() (s gfss.Share) {
	r.fields(
		field{name: "x_coordinate", read: func() { s.X = r.shareX() }},
		field{name: "y_coordinates", read: func() { s.Y = r.shareY(r.ints) }},
	)
	return s
}

func (r *reader) shareX() byte {
	x := r.uint8()
	if r.err == nil && x == 0 {
		r.fail(CodeRange, "share x: have 0, want 1 to 255")
	}
	return x
}

// shareY reads the bytes of a share straight into its pages. They are destroyed if anything later is refused.
func (r *reader) shareY(read func([]byte)) secret.Share {
	if r.err != nil {
		return secret.Share{}
	}
	s, err := secret.New[secret.ShareKind](r.alloc, ShareSize, func(b []byte) error {
		read(b)
		if r.err != nil {
			return r.err
		}
		return nil
	})
	if err != nil {
		if r.err == nil {
			r.err = reason.Wrap(err, CodeAllocate, "raise the limit of locked memory", "wire: decode: take memory for a share")
		}
		return secret.Share{}
	}
	r.undo = append(r.undo, s.Destroy)
	return s
}

func (w *writer) configuration(c *quorum.Configuration) {
	if c == nil {
		w.fail(CodeEncode, "configuration is absent")
		return
	}
	w.checkMembers(c.Members)
	w.mapOf(6)
	w.key("rack_id")
	w.bytes(c.RackID[:])
	w.key("epoch")
	w.uint(uint64(c.Epoch))
	w.key("coordinator")
	w.baseboard(c.Coordinator)
	w.key("members")
	w.array(len(c.Members))
	for i := range c.Members {
		w.array(2)
		w.baseboard(c.Members[i].ID)
		w.bytes(c.Members[i].ShareDigest[:])
	}
	w.key("threshold")
	w.uint(uint64(c.Threshold))
	w.key("encrypted_rack_secrets")
	w.encryptedSecrets(c.EncryptedSecrets)
}

func (w *writer) checkMembers(ms []quorum.Member) {
	if len(ms) > MaxMembers {
		w.fail(CodeLength, "have %d members, want at most %d", len(ms), MaxMembers)
	}
	for i := 1; i < len(ms); i++ {
		if ms[i-1].ID.Compare(ms[i].ID) >= 0 {
			w.fail(CodeOrder, "members are not ascending at %d", i)
		}
	}
}

func (w *writer) encryptedSecrets(e *keys.EncryptedSecrets) {
	if e == nil {
		w.null()
		return
	}
	w.mapOf(2)
	w.key("salt")
	w.bytes(e.Salt[:])
	w.key("data")
	w.hex(e.Data)
}

func (r *reader) configuration() *quorum.Configuration {
	c := &quorum.Configuration{}
	r.fields(
		field{name: "rack_id", read: func() { c.RackID = r.rackID() }},
		field{name: "epoch", read: func() { c.Epoch = r.epoch() }},
		field{name: "coordinator", read: func() { c.Coordinator = r.baseboard() }},
		field{name: "members", read: func() { c.Members = r.members() }},
		field{name: "threshold", read: func() { c.Threshold = ident.Threshold(r.uint8()) }},
		field{name: "encrypted_rack_secrets", optional: true, read: func() { c.EncryptedSecrets = r.encryptedSecrets() }},
	)
	return c
}

func (r *reader) members() (ms []quorum.Member) {
	r.eachNamed(MaxMembers, func(int) {
		var m quorum.Member
		r.tuple(func() { m.ID = r.baseboard() }, func() { r.fixedOrInts(m.ShareDigest[:]) })
		if n := len(ms); n > 0 {
			r.checkAscending(ms[n-1].ID.Compare(m.ID))
		}
		ms = append(ms, m)
	})
	return ms
}

// checkAscending takes the comparison of an element of a set with the one after it.
func (r *reader) checkAscending(order int) {
	switch {
	case r.err != nil || order < 0:
	case order == 0:
		r.fail(CodeDuplicate, "the same element twice")
	default:
		r.fail(CodeOrder, "elements are not ascending")
	}
}

func (r *reader) encryptedSecrets() *keys.EncryptedSecrets {
	if r.isNull() {
		return nil
	}
	e := &keys.EncryptedSecrets{}
	r.fields(
		field{name: "salt", read: func() { r.fixedOrInts(e.Salt[:]) }},
		field{name: "data", read: func() { e.Data = r.hex() }},
	)
	return e
}
