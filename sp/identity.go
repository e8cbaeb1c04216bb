// Boot path 4/9: after vault/boot.go, before sealing/open.go.

package sp

import (
	"bytes"
	"context"

	"github.com/sledvault/sledvault/sp/frame"
	"github.com/sledvault/sledvault/vault/ident"
)

// Identity is who the service processor says this sled is.
type Identity struct {
	Baseboard ident.Baseboard `json:"baseboard"` // part is the service processor's "model"
	Revision  uint32          `json:"revision"`  // not part of the baseboard's identity
	// Irregular says that a text field had no NUL or more text after it. The identity is usable; somebody should look.
	Irregular bool `json:"irregular,omitempty"`
}

// Identity reads the sled's identity (sp-wire.md §7). It retries within the configured deadline and may be called at
// any time. Errors carry the codes of errors.go.
func (c *Client) Identity(ctx context.Context) (id Identity, err error) {
	err = c.do(ctx, func(ctx context.Context, l *Link) error {
		body, err := l.Call(ctx, frame.GetIdentity, nil, frame.IdentityReply, exactly(frame.IdentityLen))
		if err != nil {
			return err
		}
		id, err = parseIdentity(body)
		return err
	})
	return id, err
}

// Ping asks for the answer "pong". It proves framing, checksum and rate, and has no side effect.
func (c *Client) Ping(ctx context.Context) error {
	return c.do(ctx, func(ctx context.Context, l *Link) error { return ping(ctx, l) })
}

// start is the order of first contact (sp-wire.md §6): drop what is on the line, end what a previous life left half
// sent, prove the line, and acknowledge a restart if that is wanted.
func (c *Client) start(ctx context.Context) error {
	if err := c.link.Wake(); err != nil {
		return err
	}
	if err := ping(ctx, c.link); err != nil || !c.cfg.Status {
		return err
	}
	return acknowledge(ctx, c.link)
}

// pingRoom is the longest value that a ping accepts; "pong" needs four bytes.
const pingRoom = 16

func ping(ctx context.Context, l *Link) error {
	body, err := l.Call(ctx, frame.KeyLookup, frame.Lookup{Key: frame.KeyPing, MaxLen: pingRoom}.Append(nil), frame.KeyLookupResult, anyLength)
	if err != nil {
		return err
	}
	result, value, err := frame.ParseKeyResult(body)
	if err != nil {
		return errLength(frame.KeyLookup, err)
	}
	if result != frame.KeyOK || !bytes.Equal(value, []byte(frame.Pong)) {
		return errPong(result)
	}
	return nil
}

// statusRounds bounds how often a restart is acknowledged before the service processor counts as crashing for ever.
const statusRounds = 4

func acknowledge(ctx context.Context, l *Link) error {
	for range statusRounds {
		body, err := l.Call(ctx, frame.GetStatus, nil, frame.StatusReply, exactly(frame.StatusLen))
		if err != nil {
			return err
		}
		status, err := frame.ParseStatus(body)
		if err != nil {
			return errLength(frame.GetStatus, err)
		}
		if status.Status&frame.StatusRestarted == 0 {
			return nil
		}
		if _, err = l.Call(ctx, frame.AckSpStart, nil, frame.Ack, anyLength); err != nil {
			return err
		}
	}
	return errRestarted()
}

// parseIdentity applies our rules to a body of the right length: nothing empty, nothing that is no name.
func parseIdentity(body []byte) (Identity, error) {
	raw, err := frame.ParseIdentity(body)
	if err != nil {
		return Identity{}, errLength(frame.GetIdentity, err)
	}
	model, modelClean := frame.Text(raw.Model)
	serial, serialClean := frame.Text(raw.Serial)
	board := ident.Baseboard{Part: model, Serial: serial}
	if model == "" || serial == "" {
		return Identity{}, errEmptyIdentity(board)
	}
	if err := board.Validate(); err != nil {
		return Identity{}, errIdentityText(err)
	}
	return Identity{Baseboard: board, Revision: raw.Revision, Irregular: !modelClean || !serialClean}, nil
}
