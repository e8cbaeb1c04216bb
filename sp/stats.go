package sp

import "sync"

// Stats counts what a line has seen. All numbers only grow.
type Stats struct {
	BytesIn        uint64 `json:"bytes_in"`
	BytesDropped   uint64 `json:"bytes_dropped"` // of broken, stale and flushed frames
	Zeros          uint64 `json:"zeros"`         // 00 that ended no frame: idle zeros and those in front of packets
	Frames         uint64 `json:"frames"`        // well-formed packets
	FramingErrors  uint64 `json:"framing_errors"`
	Overlong       uint64 `json:"overlong"` // part of the framing errors
	VersionErrors  uint64 `json:"version_errors"`
	DecodeFailures uint64 `json:"decode_failures"` // the service processor could not read us
	StaleReplies   uint64 `json:"stale_replies"`
	WrongReplies   uint64 `json:"wrong_replies"` // our sequence, another command
	Transactions   uint64 `json:"transactions"`
	Resends        uint64 `json:"resends"`
	KeepAlives     uint64 `json:"keep_alives"` // zeros sent while waiting
	StuckWrites    uint64 `json:"stuck_writes"`
	Reopens        uint64 `json:"reopens"`
}

// counters is a Stats that several links of one client share, one after the other.
type counters struct {
	mu sync.Mutex
	s  Stats
}

func (c *counters) get() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.s
}

func (c *counters) add(f func(*Stats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.s)
}

// since gives what was counted after an earlier snapshot, in the fields that tell failures apart.
func (s Stats) since(o Stats) Stats {
	return Stats{
		BytesIn: s.BytesIn - o.BytesIn, Zeros: s.Zeros - o.Zeros, Frames: s.Frames - o.Frames,
		FramingErrors: s.FramingErrors - o.FramingErrors, VersionErrors: s.VersionErrors - o.VersionErrors,
		DecodeFailures: s.DecodeFailures - o.DecodeFailures, StaleReplies: s.StaleReplies - o.StaleReplies,
		WrongReplies: s.WrongReplies - o.WrongReplies,
	}
}
