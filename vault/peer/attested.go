package peer

import (
	"context"
	"net"

	"github.com/sledvault/sledvault/rot/channel"
)

// Attest is the [Channel] over rot/channel.
func Attest(c *channel.Config) Channel { return attest{c} }

type attest struct{ c *channel.Config }

func (a attest) Dial(ctx context.Context, raw net.Conn) (*Attested, error) {
	return attested(a.c.Dial(ctx, raw))
}

func (a attest) Accept(ctx context.Context, raw net.Conn) (*Attested, error) {
	return attested(a.c.Accept(ctx, raw))
}

func attested(c *channel.Conn, err error) (*Attested, error) {
	if err != nil {
		return nil, err
	}
	return &Attested{
		Conn: c, Peer: c.Peer, Capabilities: c.Capabilities, Verdict: c.Verdict, Removed: c.Removed, Adopted: c.Adopted,
		Fresh: c.FreshEvidence, Reappraise: c.Reappraise, Latest: c.Latest,
	}, nil
}
