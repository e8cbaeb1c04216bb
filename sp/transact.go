package sp

import (
	"context"
	"time"

	"github.com/sledvault/sledvault/sp/frame"
)

// enough is how many equal refusals are believed rather than blamed on noise.
const enough = 3

// exactly demands a body length.
func exactly(n int) func(frame.ReplyKind, []byte) error {
	return func(k frame.ReplyKind, body []byte) error { return frame.CheckLength(k, body, n) }
}

// anyLength accepts every body.
func anyLength(frame.ReplyKind, []byte) error { return nil }

// transaction is one request and what has been learnt while waiting for its reply.
type transaction struct {
	command frame.Command
	seq     uint64
	want    frame.ReplyKind
	check   func(frame.ReplyKind, []byte) error

	refused  frame.Reason // the last DecodeFailure's reason
	repeats  int          // how often it came in a row
	versions int          // replies of another version
	version  uint32
	spoilt   bool // this attempt met something broken and is to be repeated once the line is quiet
}

// Call sends a request and returns the body of its reply (sp-wire.md §6). It resends a bounded number of times, and
// ends with the context. Errors carry codes of errors.go.
func (l *Link) Call(ctx context.Context, c frame.Command, body []byte, want frame.ReplyKind, check func(frame.ReplyKind, []byte) error) ([]byte, error) {
	t := &transaction{command: c, seq: l.next(), want: want, check: check}
	// The 00 in front ends what an earlier life of the host left half sent.
	packet, err := frame.AppendRequest([]byte{frame.Terminator}, frame.Request{Version: frame.Version, Seq: t.seq, Command: c, Body: body})
	if err != nil {
		return nil, err
	}
	before := l.counters.get()
	l.counters.add(func(s *Stats) { s.Transactions++ })
	l.openInbox(true)
	defer l.openInbox(false)
	window, settle := l.timing.FirstWindow, l.timing.Settle
	attempt := 1
	for ; ; attempt++ {
		if err := l.flush(); err != nil {
			return nil, err
		}
		if err := l.write(c, packet); err != nil {
			return nil, err
		}
		body, done, err := l.listen(ctx, t, window, settle)
		if done || err != nil {
			return body, err
		}
		if ctx.Err() != nil || attempt == l.timing.Attempts {
			return nil, errNoReply(ctx, c, attempt, l.counters.get().since(before))
		}
		l.counters.add(func(s *Stats) { s.Resends++ })
		window, settle = min(2*window, l.timing.MaxWindow), min(2*settle, l.timing.MaxSettle)
	}
}

// next gives the sequence number of a new request: bit 63 is never set.
func (l *Link) next() uint64 {
	l.seq++
	if l.seq >= frame.ReplyBit {
		l.seq = 1
	}
	return l.seq
}

func (l *Link) openInbox(open bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inbox.open = open
	late := uint64(len(l.inbox.replies))
	l.inbox.replies = nil
	l.counters.add(func(s *Stats) { s.StaleReplies += late })
}

// listen waits for the reply to one send. Neither done nor an error means: send again.
//
// A broken frame does not end the attempt at once. Its remains may still be arriving, and the reply may follow right
// behind; only when the line has been quiet for the settling time is a resend worth it.
func (l *Link) listen(ctx context.Context, t *transaction, window, settle time.Duration) (body []byte, done bool, err error) {
	start := time.Now()
	end, lastSent := start.Add(window), start
	t.spoilt = false
	timer := time.NewTimer(window)
	defer timer.Stop()
	for {
		heard, loud := l.collect(t, &body, &done, &err)
		if done || err != nil {
			return body, done, err
		}
		now := time.Now()
		wake := end
		if t.spoilt {
			quiet := latest(loud, start).Add(settle)
			if !now.Before(quiet) {
				return nil, false, nil
			}
			wake = earliest(wake, quiet)
		}
		if !now.Before(end) || ctx.Err() != nil {
			return nil, false, nil
		}
		alive := latest(heard, lastSent).Add(l.timing.KeepAlive)
		if !now.Before(alive) {
			if err := l.write(t.command, []byte{frame.Terminator}); err != nil {
				return nil, false, err
			}
			l.counters.add(func(s *Stats) { s.KeepAlives++ })
			lastSent = now
			continue
		}
		timer.Reset(earliest(wake, alive).Sub(now))
		select {
		case <-l.news:
		case <-timer.C:
		case <-ctx.Done():
		case <-l.lost:
			return nil, false, errLost(l.err)
		}
	}
}

// collect empties the inbox into the transaction.
func (l *Link) collect(t *transaction, body *[]byte, done *bool, err *error) (heard, loud time.Time) {
	l.mu.Lock()
	replies, broken, versions, version := l.inbox.replies, l.inbox.broken, l.inbox.versions, l.inbox.version
	heard, loud = l.inbox.heard, l.inbox.loud
	l.inbox.replies, l.inbox.broken, l.inbox.versions = nil, 0, 0
	l.mu.Unlock()
	t.spoilt = t.spoilt || broken > 0
	if t.versions += versions; versions > 0 {
		t.version = version
	}
	for _, r := range replies {
		if *body, *done, *err = l.reply(t, r); *done || *err != nil {
			return heard, loud
		}
	}
	if t.versions >= enough {
		*err = errVersion(t.command, t.version)
	}
	return heard, loud
}

// reply judges a well-formed reply.
func (l *Link) reply(t *transaction, r frame.Reply) (body []byte, done bool, err error) {
	mine := r.Seq == t.seq|frame.ReplyBit
	switch {
	case r.Kind == frame.DecodeFailure && (mine || r.Seq == frame.FailureSeq):
		return nil, false, l.refusal(t, r)
	case !mine: // an old reply; sending again would make the two sides lag for ever
		l.counters.add(func(s *Stats) { s.StaleReplies++; s.BytesDropped += uint64(frame.MinMessage + len(r.Body)) })
		return nil, false, nil
	case r.Kind != t.want:
		l.counters.add(func(s *Stats) { s.WrongReplies++ })
		t.spoilt = true
		return nil, false, nil
	}
	if err := t.check(r.Kind, r.Body); err != nil {
		return nil, false, errLength(t.command, err)
	}
	return r.Body, true, nil
}

// refusal counts a DecodeFailure. One may be due to noise; several equal ones are an answer.
func (l *Link) refusal(t *transaction, r frame.Reply) error {
	l.counters.add(func(s *Stats) { s.DecodeFailures++ })
	t.spoilt = true
	var why frame.Reason
	if len(r.Body) > 0 {
		why = frame.Reason(r.Body[0])
	}
	if why != t.refused {
		t.refused, t.repeats = why, 0
	}
	if t.repeats++; t.repeats < enough {
		return nil
	}
	switch why {
	case frame.BadDeserialize:
		return errUnsupported(t.command)
	case frame.BadVersion:
		return errVersion(t.command, 0)
	default: // noise, ours or theirs: the command is sent again
		return nil
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
