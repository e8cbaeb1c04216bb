// Package simsp is a service processor in software, for tests and for the demo.
//
// It owns the far end of the serial line: it judges requests by the rules of docs/sp-wire.md §5, answers them with the
// same codec that the host uses, and spoils its own answers on request, seeded and reproducible. It refuses nothing a
// real service processor would accept. It needs no test framework.
//
// Read next: faults.go for what can go wrong, line.go for the pseudo-terminal.
package simsp

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/sledvault/sledvault/sp/frame"
)

// Config describes one simulated service processor. The zero value is a healthy one without identity.
type Config struct {
	Model    string // part number, at most 51 bytes
	Serial   string // at most 51 bytes
	Revision uint32

	IdleZeros bool   // send one 00 every 200 ms while idle, as Gimlet does
	Seed      uint64 // of everything random
	Faults    Faults

	// Extend answers commands that the simulator does not know; nil or false means unknown command.
	Extend func(frame.Request) (kind frame.ReplyKind, body []byte, ok bool)
}

// Timing of the line.
const (
	idlePeriod = 200 * time.Millisecond // between idle zeros
	noiseLoss  = 100 * time.Millisecond // noise that the host does not take within this time is lost
	noiseLost  = time.Millisecond       // the same, once some was lost and nothing has got through since
	retryRead  = 50 * time.Millisecond  // after a line without host; never a busy loop
	outQueue   = 64                     // packets and pieces of noise waiting for the line
	noisePiece = 1024                   // bytes of noise per entry of the queue
)

// SP is a simulated service processor. Serve may run once at a time; the other methods are safe at any time.
type SP struct {
	cfg      Config
	identity []byte
	out      chan unit

	mu       sync.Mutex
	rng      *rand.Rand
	serving  context.Context // of the present Serve, nil without
	status   uint64
	replies  int            // packets sent so far, the fault filter's clock
	failures int            // DecodeFailures still to be sent instead of an answer
	restarts int            // requests until the simulated crash
	seen     map[string]int // requests by name, and "bad" frames
}

// unit is one thing to put on the line.
type unit struct {
	bytes []byte
	noise bool
	wait  time.Duration // before sending
}

// New makes a simulated service processor. Model or serial beyond 51 bytes are cut.
func New(cfg Config) *SP {
	model, serial := cfg.Model[:min(len(cfg.Model), frame.TextLen)], cfg.Serial[:min(len(cfg.Serial), frame.TextLen)]
	id, _ := frame.NewIdentity(model, cfg.Revision, serial)
	s := &SP{
		cfg: cfg, identity: id.Append(nil), out: make(chan unit, outQueue), rng: rand.New(rand.NewPCG(cfg.Seed, 0x5350)),
		status: frame.StatusRestarted, failures: cfg.Faults.DecodeFailures, restarts: cfg.Faults.RestartAt, seen: map[string]int{},
	}
	switch grow := cfg.Faults.IdentityGrowth; {
	case grow > 0:
		s.identity = append(s.identity, make([]byte, grow)...)
	case grow < 0:
		s.identity = s.identity[:max(0, len(s.identity)+grow)]
	}
	return s
}

// Seen returns how many requests of a name arrived ("GetIdentity"); "bad" counts frames that were refused.
func (s *SP) Seen(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[name]
}

// SetIdentity changes the identity, as a swapped board would. Text beyond 51 bytes is refused.
func (s *SP) SetIdentity(model string, revision uint32, serial string) error {
	id, err := frame.NewIdentity(model, revision, serial)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.identity = id.Append(nil)
	return nil
}

// Restart sets the restarted bit, as a crash of the firmware's task does.
func (s *SP) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status |= frame.StatusRestarted
}

// Inject puts bytes on the line as noise towards the host. It waits while the line is busy and gives up when nobody
// serves it; what the host does not take in time is lost, as on a real line.
func (s *SP) Inject(p []byte) {
	s.mu.Lock()
	ctx := s.serving
	s.mu.Unlock()
	if ctx == nil {
		return
	}
	for len(p) > 0 {
		n := min(len(p), noisePiece)
		if !s.put(ctx, unit{bytes: append([]byte(nil), p[:n]...), noise: true}) {
			return
		}
		p = p[n:]
	}
}

func (s *SP) put(ctx context.Context, u unit) bool {
	select {
	case s.out <- u:
		return true
	case <-ctx.Done():
		return false
	}
}

// judge turns one frame into what goes on the line, or nothing.
func (s *SP) judge(f []byte) []unit {
	req, why := frame.JudgeRequest(f)
	s.mu.Lock()
	defer s.mu.Unlock()
	if why != frame.Accepted {
		s.seen["bad"]++
		return s.wrap(failure(why))
	}
	s.seen[req.Command.String()]++
	if s.failures > 0 {
		s.failures--
		return s.wrap(failure(s.cfg.Faults.DecodeReason))
	}
	reply, ok := s.answer(req)
	if !ok || s.cfg.Faults.Mode == Mute {
		return nil
	}
	if s.restarts > 0 {
		if s.restarts--; s.restarts == 0 {
			return s.crash(reply)
		}
	}
	return s.wrap(reply)
}

func failure(why frame.Reason) frame.Reply {
	return frame.Reply{Version: frame.Version, Seq: frame.FailureSeq, Kind: frame.DecodeFailure, Body: []byte{byte(why)}}
}

// crash cuts a reply in the middle, forgets the request and sets the restarted bit.
func (s *SP) crash(r frame.Reply) []unit {
	s.status |= frame.StatusRestarted
	wire := s.encode(r)
	return []unit{{bytes: wire[:len(wire)/2]}}
}

// encode gives the packet with the 00 in front of it.
func (s *SP) encode(r frame.Reply) []byte {
	if s.cfg.Faults.Version != 0 {
		r.Version = s.cfg.Faults.Version
	}
	wire, err := frame.AppendReply([]byte{frame.Terminator}, r)
	if err != nil { // an answer of Extend that fits no packet
		wire, _ = frame.AppendReply([]byte{frame.Terminator}, failure(frame.BadLength))
	}
	return wire
}

// answer is the firmware's command table (sp-wire.md §4). ok is false for requests that are never answered.
func (s *SP) answer(req frame.Request) (r frame.Reply, ok bool) {
	r = frame.Reply{Version: frame.Version, Seq: req.Seq | frame.ReplyBit}
	if slices.Contains(s.cfg.Faults.Unknown, req.Command) {
		return failure(frame.BadDeserialize), true
	}
	switch req.Command {
	case frame.Unused:
		r.Kind, r.Body = frame.DecodeFailure, []byte{byte(frame.BadDeserialize)}
	case frame.RequestReboot, frame.RequestPowerOff:
		return r, false
	case frame.GetIdentity:
		r.Kind, r.Body = frame.IdentityReply, s.identity
	case frame.GetStatus:
		r.Kind, r.Body = frame.StatusReply, frame.Status{Status: s.status}.Append(nil)
	case frame.AckSpStart:
		if !s.cfg.Faults.NeverAcks {
			s.status &^= frame.StatusRestarted
		}
		r.Kind = frame.Ack
	case frame.HostBootFailure, frame.HostPanic, frame.RotAddHostMeasurements, frame.BootStage:
		r.Kind = frame.Ack
	case frame.GetBootStorageUnit:
		r.Kind, r.Body = frame.BootStorageUnitReply, []byte{'A'}
	case frame.GetMacAddresses:
		r.Kind, r.Body = frame.MacAddressesReply, make([]byte, 9)
	case frame.GetAlert:
		r.Kind, r.Body = frame.AlertReply, []byte{0}
	case frame.KeyLookup:
		r.Kind, r.Body = frame.KeyLookupResult, lookup(req.Body)
	default:
		return s.extended(req, r), true
	}
	return r, true
}

func (s *SP) extended(req frame.Request, r frame.Reply) frame.Reply {
	if s.cfg.Extend != nil {
		if kind, body, ok := s.cfg.Extend(req); ok {
			r.Kind, r.Body = kind, body
			return r
		}
	}
	return failure(frame.BadDeserialize)
}

func lookup(body []byte) []byte {
	l, err := frame.ParseLookup(body)
	if err != nil {
		return []byte{byte(frame.KeyInvalid)}
	}
	value := ""
	switch l.Key {
	case frame.KeyPing:
		value = frame.Pong
	case frame.KeyInventorySize:
		value = "\x00\x00\x00\x00\x00\x00\x00\x00"
	case frame.KeyInstallinatorImageID, frame.KeyEtcSystem, frame.KeyDtraceConf:
		return []byte{byte(frame.KeyNoValue)}
	default:
		return []byte{byte(frame.KeyInvalid)}
	}
	if len(value) > int(l.MaxLen) {
		return []byte{byte(frame.KeyTooLong)}
	}
	return append([]byte{byte(frame.KeyOK)}, value...)
}
