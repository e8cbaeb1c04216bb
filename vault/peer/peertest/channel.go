package peertest

import (
	"context"
	"io"
	"net"
	"slices"
	"time"

	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// Channel stands in for the attested channel: both ends tell their names and believe each other.
type Channel struct {
	Self         ident.Baseboard
	Capabilities []string // nil means authority/1
	// Refuse, if set, is asked about each peer; an error refuses it and tells it the code.
	Refuse func(ident.Baseboard) error
	// Edit, if set, may change what comes of a handshake.
	Edit func(*peer.Attested)
}

// Dial implements the channel of vault/peer.
func (c *Channel) Dial(ctx context.Context, raw net.Conn) (*peer.Attested, error) {
	return c.shake(ctx, raw, true)
}

// Accept implements the channel of vault/peer.
func (c *Channel) Accept(ctx context.Context, raw net.Conn) (*peer.Attested, error) {
	return c.shake(ctx, raw, false)
}

func (c *Channel) shake(ctx context.Context, raw net.Conn, first bool) (*peer.Attested, error) {
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	theirs, err := c.swap(raw, c.Self.String(), first)
	if err != nil {
		return nil, err
	}
	id, err := ident.ParseBaseboard(theirs)
	if err != nil {
		return nil, err
	}
	var refusal error
	if c.Refuse != nil {
		refusal = c.Refuse(id)
	}
	said, err := c.swap(raw, string(reason.CodeOf(refusal)), first)
	switch {
	case refusal != nil:
		return nil, refusal
	case err != nil:
		return nil, err
	case said != "":
		return nil, reason.Wrap(&channel.Refusal{By: theirs, Code: reason.Code(said)}, channel.CodeRefused, "look there", "fake channel")
	}
	caps := c.Capabilities
	if caps == nil {
		caps = []string{quorum.CapabilityAuthority}
	}
	att := &peer.Attested{Conn: raw, Peer: id, Capabilities: slices.Clone(caps)}
	if c.Edit != nil {
		c.Edit(att)
	}
	return att, nil
}

// swap exchanges one short text; the dialer speaks first.
func (c *Channel) swap(raw net.Conn, mine string, first bool) (theirs string, err error) {
	if first {
		if _, err = raw.Write(append([]byte{byte(len(mine))}, mine...)); err != nil {
			return "", err
		}
	}
	var n [1]byte
	if _, err = io.ReadFull(raw, n[:]); err != nil {
		return "", err
	}
	b := make([]byte, n[0])
	if _, err = io.ReadFull(raw, b); err != nil {
		return "", err
	}
	if !first {
		_, err = raw.Write(append([]byte{byte(len(mine))}, mine...))
	}
	return string(b), err
}
