package frame

import "bytes"

// Deframer cuts a stream of bytes into frames. It holds at most one frame of bounded length, and how the stream was
// cut into reads makes no difference to what comes out. Use [NewDeframer].
type Deframer struct {
	limit int
	buf   []byte
	over  int // bytes of the present frame that did not fit
	zeros uint64
}

// Frame is what stood between two terminators.
type Frame struct {
	Bytes   []byte // without the terminator; valid until the next call
	Dropped int    // bytes beyond the limit that were thrown away; not zero means the frame was overlong
}

// NewDeframer makes a deframer that keeps at most limit bytes of a frame: [MaxFrame] on a host, [SPBuffer] on a
// service processor.
func NewDeframer(limit int) *Deframer { return &Deframer{limit: limit, buf: make([]byte, 0, limit)} }

// Next consumes p up to the end of the next frame. It returns what is left of p; ok is false if no frame ended in p.
// Empty frames are counted and skipped.
func (d *Deframer) Next(p []byte) (rest []byte, f Frame, ok bool) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, Terminator)
		if end < 0 {
			d.keep(p)
			return nil, Frame{}, false
		}
		d.keep(p[:end])
		p = p[end+1:]
		if len(d.buf) == 0 {
			d.zeros++
			continue
		}
		f = Frame{Bytes: d.buf, Dropped: d.over}
		d.buf, d.over = d.buf[:0], 0
		return p, f, true
	}
	return nil, Frame{}, false
}

func (d *Deframer) keep(p []byte) {
	n := min(len(p), d.limit-len(d.buf))
	d.buf = append(d.buf, p[:n]...)
	d.over += len(p) - n
}

// Pending is the number of bytes of an unfinished frame, dropped ones included.
func (d *Deframer) Pending() int { return len(d.buf) + d.over }

// Zeros counts terminators that ended no frame: idle zeros and the zeros in front of packets.
func (d *Deframer) Zeros() uint64 { return d.zeros }

// Reset throws an unfinished frame away.
func (d *Deframer) Reset() { d.buf, d.over = d.buf[:0], 0 }
