package peer

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// conn is one established connection: a reader, a writer, and the queue between Send and the writer.
type conn struct {
	id       ConnID
	att      *Attested
	addr     netip.AddrPort
	dialed   bool
	since    time.Time
	replaced atomic.Bool     // by a newer connection of the same peer
	lastMsg  atomic.Int64    // nanoseconds after since
	ctx      context.Context // ends with the connection
	end      context.CancelCauseFunc

	frames chan frame
	bytes  atomic.Int64 // in frames and in the writer's hand

	forgiven bool // the writer's: the refusals of the address are forgotten

	fresh   sync.Mutex // evidence of one connection is chained: one at a time
	pending sync.Mutex
	asked   []time.Time // fresh evidence that was not answered yet
}

// frame is one encoded message on its way. It may hold secret bytes and is wiped after it was written.
type frame struct {
	b    []byte
	last error // not nil: end the connection with it after writing
}

// serve owns a connection until it ends.
func (m *Manager) serve(ctx context.Context, att *Attested, addr netip.AddrPort, dialed bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = att.Close() })
	defer stop()
	m.mu.Lock()
	m.lastID++
	c := &conn{
		id: m.lastID, att: att, addr: addr, dialed: dialed, since: time.Now(), ctx: ctx, end: cancel,
		frames: make(chan frame, m.cfg.Limits.QueueFrames),
	}
	m.mu.Unlock()
	if err := m.queue.reserve(ctx); err != nil {
		_ = att.Close()
		return
	}
	if err := m.install(c); err != nil {
		m.queue.release()
		_ = att.Close()
		m.refuse(ctx, addr, err)
		return
	}
	if att.Adopted {
		m.Redial()
	}
	var writer sync.WaitGroup
	writer.Go(func() { cancel(m.writeLoop(ctx, c)) })
	cancel(m.readLoop(ctx, c))
	cause := context.Cause(ctx)
	_ = att.Close()
	writer.Wait()
	m.ended(c, cause) // first, so that whoever hears of the end finds the reason
	m.remove(c, cause)
	c.discard()
}

// ended counts why a connection ended. Ordinary ends are no refusal.
func (m *Manager) ended(c *conn, cause error) {
	switch code := reason.CodeOf(cause); code {
	case "", CodeReplaced, CodeRemoved:
	case CodeEnded, CodeInactive, CodeWrite:
		_ = m.count(c.att.Peer.String(), cause)
	default:
		_ = m.count(c.att.Peer.String(), cause)
		m.keep(c.addr, c.att.Peer, cause)
	}
}

// probe sends a ping now, unless something is on its way anyway.
func (c *conn) probe() {
	b, err := wire.AppendFrame(nil, wire.Ping{})
	if err != nil || len(c.frames) > 0 {
		return
	}
	c.bytes.Add(int64(len(b)))
	select {
	case c.frames <- frame{b: b}:
	default:
		c.bytes.Add(-int64(len(b)))
	}
}

// discard wipes frames that were never written.
func (c *conn) discard() {
	for {
		select {
		case f := <-c.frames:
			clear(f.b)
		default:
			return
		}
	}
}

// readBuffer holds most messages; larger ones are read into memory of their own.
const readBuffer = 4096

// readLoop reads messages until something ends the connection, and says what.
func (m *Manager) readLoop(ctx context.Context, c *conn) error {
	buf := make([]byte, readBuffer)
	defer clear(buf)
	for {
		if err := c.att.SetReadDeadline(time.Now().Add(m.cfg.Limits.Inactivity)); err != nil {
			return c.ended(err)
		}
		payload, err := wire.ReadFrame(c.att, buf)
		if err != nil {
			return c.readError(err, m.cfg.Limits.Inactivity)
		}
		msg, err := wire.Decode(m.cfg.Alloc, payload)
		clear(payload)
		if err != nil {
			return reason.Wrap(err, reason.CodeOf(err), hintWire, "peer: message from %s refused", c.att.Peer)
		}
		c.lastMsg.Store(int64(time.Since(c.since)))
		if err := m.receive(ctx, c, msg); err != nil {
			wire.Destroy(msg)
			return err
		}
	}
}

func (c *conn) ended(err error) error {
	e := reason.Wrap(err, CodeEnded, hintInactive, "peer: connection to %s ended", c.att.Peer)
	e.Remedy = reason.Retry
	return e
}

func (c *conn) readError(err error, limit time.Duration) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return reason.Later(CodeInactive, hintInactive, "peer: no complete message from %s for %v", c.att.Peer, limit)
	case errors.Is(err, io.EOF) || reason.CodeOf(err) == "":
		return c.ended(err)
	}
	return reason.Wrap(err, reason.CodeOf(err), hintWire, "peer: message from %s refused", c.att.Peer)
}

// receive handles what concerns the connection itself and passes everything else to the driver.
func (m *Manager) receive(ctx context.Context, c *conn, msg wire.Msg) error {
	if wire.Ours(msg) && !c.capable() {
		return reason.New(CodeCapability, hintCapability, "peer: %s sent %T without having announced %s", c.att.Peer, msg, quorum.CapabilityAuthority)
	}
	switch msg := msg.(type) {
	case wire.Ping:
		return nil
	case wire.Evidence:
		return m.reappraise(ctx, c, msg)
	case wire.EvidenceResult:
		return c.answered(msg)
	}
	if err := m.queue.reserve(ctx); err != nil {
		return err
	}
	m.queue.push(item{Message{c.att.Peer, c.id, msg}, c})
	return nil
}

func (c *conn) capable() bool { return slices.Contains(c.att.Capabilities, quorum.CapabilityAuthority) }

// writeLoop writes frames and pings. The first ping goes out at once: a peer that only reacts would be cut off.
func (m *Manager) writeLoop(ctx context.Context, c *conn) error {
	ping, err := wire.AppendFrame(nil, wire.Ping{})
	if err != nil {
		return err
	}
	tick := time.NewTicker(m.cfg.Limits.Ping)
	defer tick.Stop()
	next := frame{b: slices.Clone(ping)}
	c.bytes.Add(int64(len(ping)))
	for {
		if err := m.write(c, next.b); err != nil {
			return err
		}
		if next.last != nil {
			return next.last
		}
		select {
		case next = <-c.frames:
		case <-tick.C:
			m.forgive(c) // it lasted
			if err := c.overdue(m.cfg.Limits.EvidenceWait); err != nil {
				return err
			}
			next = frame{b: slices.Clone(ping)}
			c.bytes.Add(int64(len(ping)))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// write puts one frame on the connection and wipes its bytes.
func (m *Manager) write(c *conn, b []byte) error {
	defer clear(b)
	defer c.bytes.Add(-int64(len(b)))
	if err := c.att.SetWriteDeadline(time.Now().Add(m.cfg.Limits.Write)); err != nil {
		return c.ended(err)
	}
	if _, err := c.att.Write(b); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return reason.Later(CodeWrite, hintInactive, "peer: %s did not take a message within %v", c.att.Peer, m.cfg.Limits.Write)
		}
		return c.ended(err)
	}
	return nil
}

// Send gives a message to the connection of a peer. It never blocks. The message is written, or the connection ends; the
// error says only that there is no connection ([CodeNotConnected]), that its queue was full and it was closed
// ([CodeQueueFull]), that the peer would not know the message ([CodeCapability]), or that it cannot be encoded. The message
// stays the caller's: it is encoded before Send returns.
func (m *Manager) Send(to ident.Baseboard, msg wire.Msg) error {
	_, err := m.SendAll(to, msg)
	return err
}

// SendAll is [Manager.Send] for messages that must go out on one connection, in this order. It tells which connection that
// is. If one is refused the later ones are not sent.
func (m *Manager) SendAll(to ident.Baseboard, msgs ...wire.Msg) (ConnID, error) {
	m.mu.Lock()
	c := m.established[to]
	m.mu.Unlock()
	if c == nil {
		return 0, m.count(to.String(), reason.Later(CodeNotConnected, hintConnect, "peer: send to %s: not connected", to))
	}
	for _, msg := range msgs {
		if err := m.enqueue(c, msg, nil); err != nil {
			return c.id, m.count(to.String(), err)
		}
	}
	return c.id, nil
}

// enqueue encodes a message and puts it into the queue; last is the cause to end the connection with afterwards.
func (m *Manager) enqueue(c *conn, msg wire.Msg, last error) error {
	if wire.Ours(msg) && !c.capable() {
		return reason.New(CodeCapability, hintCapability, "peer: send to %s: it did not announce %s", c.att.Peer, quorum.CapabilityAuthority)
	}
	if c.att.Removed && !forRemoved(msg) {
		return reason.New(CodeRemovedSled, hintRemovedSled, "peer: send to %s: it was removed from the rack", c.att.Peer)
	}
	b, err := wire.AppendFrame(nil, msg)
	if err != nil {
		return err
	}
	if n := c.bytes.Add(int64(len(b))); n <= int64(m.cfg.Limits.QueueBytes) {
		select {
		case c.frames <- frame{b, last}:
			return nil
		default:
		}
	}
	clear(b)
	err = reason.Later(CodeQueueFull, hintInactive, "peer: send to %s: %d frames wait; the connection is closed", c.att.Peer, len(c.frames))
	c.end(err)
	return err
}

// forRemoved reports whether a message may go to a sled that was removed: only what proves the removal.
func forRemoved(msg wire.Msg) bool {
	switch msg := msg.(type) {
	case wire.EvidenceResult:
		return true
	case wire.TQ:
		switch msg.Kind.(type) {
		case quorum.CommitProof, quorum.ExpungedNotice:
			return true
		}
	}
	return false
}

// Drop ends the connection to a peer, for example because a newer enrolment set no longer allows it. The cause goes into
// Down and is counted.
func (m *Manager) Drop(peer ident.Baseboard, cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.established[peer]; c != nil {
		c.end(cause)
	}
}

// Refresh sends fresh evidence on every connection, after our counter moved. It waits until the evidence is made and
// queued or ctx ends; peers answer later, and one that refuses or does not answer loses its connection.
func (m *Manager) Refresh(ctx context.Context) {
	m.mu.Lock()
	m.gen++
	var conns []*conn
	for _, c := range m.established {
		if c.refreshable() {
			conns = append(conns, c)
		}
	}
	m.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { m.refreshOrEnd(ctx, c) })
	}
	wg.Wait()
}

func (c *conn) refreshable() bool { return c.att.Fresh != nil && c.capable() && !c.att.Removed }

// refreshOrEnd sends fresh evidence. Evidence that was made but not sent breaks the chain of nonces, and a peer that
// holds old evidence may not be served: so the connection ends if anything fails.
func (m *Manager) refreshOrEnd(ctx context.Context, c *conn) {
	if err := m.refresh(ctx, c); err != nil {
		c.end(err)
	}
}

func (m *Manager) refresh(ctx context.Context, c *conn) error {
	c.fresh.Lock()
	defer c.fresh.Unlock()
	ev, err := c.att.Fresh(ctx)
	if err != nil {
		return reason.Wrap(err, CodeFresh, reason.HintOf(err), "peer: fresh evidence for %s", c.att.Peer)
	}
	c.pending.Lock()
	c.asked = append(c.asked, time.Now())
	c.pending.Unlock()
	return m.enqueue(c, wire.Evidence{Evidence: ev}, nil)
}

// reappraise judges fresh evidence, tells the peer, and ends the connection if it does not stand.
func (m *Manager) reappraise(ctx context.Context, c *conn, msg wire.Evidence) error {
	if c.att.Reappraise == nil {
		return reason.New(CodeUnexpected, hintWire, "peer: %s sent fresh evidence where none is expected", c.att.Peer)
	}
	err := c.att.Reappraise(msg.Evidence)
	result := wire.EvidenceResult{Accepted: err == nil, Reason: string(reason.CodeOf(err))}
	if err != nil {
		err = reason.Wrap(err, reason.CodeOf(err), reason.HintOf(err), "peer: fresh evidence of %s refused", c.att.Peer)
		return m.farewell(ctx, c, result, err)
	}
	return m.enqueue(c, result, nil)
}

// farewell sends a last message and waits until the writer has ended the connection with the given cause.
func (m *Manager) farewell(ctx context.Context, c *conn, msg wire.Msg, cause error) error {
	if err := m.enqueue(c, msg, cause); err != nil {
		return cause
	}
	<-ctx.Done()
	return cause
}

// answered takes the peer's verdict on our fresh evidence.
func (c *conn) answered(r wire.EvidenceResult) error {
	c.pending.Lock()
	defer c.pending.Unlock()
	if len(c.asked) == 0 {
		return reason.New(CodeUnexpected, hintWire, "peer: %s answered evidence that was not sent", c.att.Peer)
	}
	c.asked = c.asked[1:]
	if !r.Accepted {
		cause := &channel.Refusal{By: c.att.Peer.String(), Code: reason.Code(r.Reason)}
		return reason.Wrap(cause, CodeRefused, hintRefused, "peer: fresh evidence")
	}
	return nil
}

// overdue reports fresh evidence that was not answered in time.
func (c *conn) overdue(limit time.Duration) error {
	c.pending.Lock()
	defer c.pending.Unlock()
	if len(c.asked) > 0 && time.Since(c.asked[0]) > limit {
		return reason.Later(CodeUnanswered, hintInactive, "peer: %s did not answer fresh evidence within %v", c.att.Peer, limit)
	}
	return nil
}
