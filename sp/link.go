package sp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/sledvault/sledvault/sp/frame"
)

// Link runs transactions over one port. Its reader takes every byte off the line at once, so that noise while nobody
// asks cannot pile up. One transaction runs at a time; the caller sees to that.
type Link struct {
	port     Port
	timing   Timing
	counters *counters
	seq      uint64

	writing sync.Mutex // held during a write and its deadline
	news    chan struct{}
	lost    chan struct{} // closed when the reader has ended

	mu       sync.Mutex
	deframer *frame.Deframer
	inbox    inbox
	err      error // why the reader ended
}

// inbox is what the reader leaves for the present transaction.
type inbox struct {
	open     bool
	replies  []frame.Reply // at most maxReplies
	broken   int           // frames that were no reply
	version  uint32        // the last other version seen
	versions int           // how many replies had another version
	loud     time.Time     // when the last byte other than 00 arrived
	heard    time.Time     // when the last byte arrived
}

// maxReplies bounds what a flood of well-formed replies can occupy; more are stale by any measure.
const maxReplies = 16

// maxStart keeps the first sequence number far from its end.
const maxStart = 1 << 62

// NewLink takes a port over and starts its reader. The first sequence number is random, so that replies to an earlier
// process cannot match.
func NewLink(port Port, timing Timing, rand io.Reader, c *counters) (*Link, error) {
	var seed [8]byte
	if _, err := io.ReadFull(rand, seed[:]); err != nil {
		return nil, errors.Join(fmt.Errorf("sp: draw first sequence number: %w", err), port.Close())
	}
	l := &Link{
		port: port, timing: timing, counters: c, seq: binary.LittleEndian.Uint64(seed[:]) % maxStart,
		news: make(chan struct{}, 1), lost: make(chan struct{}), deframer: frame.NewDeframer(frame.MaxFrame),
	}
	go l.read()
	return l, nil
}

// Close closes the port and waits for the reader.
func (l *Link) Close() error {
	err := l.port.Close()
	<-l.lost
	return err
}

// Lost returns why the reader has ended, or nil while it runs.
func (l *Link) Lost() error {
	select {
	case <-l.lost:
		return l.err
	default:
		return nil
	}
}

// Wake drops what is on the line and ends whatever an earlier owner left half sent.
func (l *Link) Wake() error {
	if err := l.flush(); err != nil {
		return err
	}
	return l.write(frame.GetStatus, []byte{frame.Terminator})
}

func (l *Link) read() {
	defer close(l.lost)
	buf := make([]byte, 4096)
	for idle := 0; idle < 100; {
		n, err := l.port.Read(buf)
		if n > 0 {
			l.take(buf[:n])
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			l.writing.Lock() // the deadline belongs to a write: wait until it is taken back
			l.writing.Unlock()
		case err != nil:
			l.err = err
			return
		case n == 0:
			idle++
		default:
			idle = 0
		}
	}
	l.err = io.ErrNoProgress
}

// take feeds bytes to the deframer and its frames to the inbox.
func (l *Link) take(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inbox.heard = time.Now()
	for _, b := range p {
		if b != frame.Terminator {
			l.inbox.loud = l.inbox.heard
			break
		}
	}
	zeros := l.deframer.Zeros()
	size := uint64(len(p))
	for {
		rest, f, ok := l.deframer.Next(p)
		if !ok {
			break
		}
		l.frame(f)
		p = rest
	}
	l.counters.add(func(s *Stats) {
		s.BytesIn += size
		s.Zeros += l.deframer.Zeros() - zeros
	})
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// frame judges one frame.
func (l *Link) frame(f frame.Frame) {
	length := uint64(len(f.Bytes) + f.Dropped + 1)
	r, err := frame.DecodeReply(f.Bytes)
	if f.Dropped > 0 {
		err = frame.ErrLong
	}
	wrongVersion, isVersion := errors.AsType[*frame.VersionError](err)
	stored := err == nil && l.inbox.open && len(l.inbox.replies) < maxReplies
	switch {
	case stored:
		l.inbox.replies = append(l.inbox.replies, r)
	case isVersion:
		l.inbox.version, l.inbox.versions = wrongVersion.Have, l.inbox.versions+1
		l.inbox.broken++
	case err != nil:
		l.inbox.broken++
	}
	l.counters.add(func(s *Stats) {
		switch {
		case stored:
			s.Frames++
			return
		case err == nil:
			s.Frames++
			s.StaleReplies++
		case isVersion:
			s.VersionErrors++
		case errors.Is(err, frame.ErrLong):
			s.Overlong++
			s.FramingErrors++
		default:
			s.FramingErrors++
		}
		s.BytesDropped += length
	})
}

// flush forgets everything received so far.
func (l *Link) flush() error {
	if err := l.port.FlushInput(); err != nil {
		return errLost(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	dropped := uint64(l.deframer.Pending())
	l.deframer.Reset()
	l.inbox.replies, l.inbox.broken, l.inbox.versions = nil, 0, 0
	l.counters.add(func(s *Stats) { s.BytesDropped += dropped })
	return nil
}

// write sends bytes within the write deadline.
func (l *Link) write(c frame.Command, p []byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.port.SetDeadline(time.Now().Add(l.timing.Write)); err != nil {
		return errLost(err)
	}
	_, err := l.port.Write(p)
	if clearErr := l.port.SetDeadline(time.Time{}); err == nil {
		err = clearErr
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		l.counters.add(func(s *Stats) { s.StuckWrites++ })
		return errStuck(c, l.timing.Write)
	}
	_ = l.port.Close() // a line that cannot be written is lost for the reader too
	return errLost(err)
}
