package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sledvault/sledvault/vault/reason"
)

// Session is one caller's turn with the TPM. It implements go-tpm's transport.TPM, so go-tpm commands run on it; it
// remembers what they load. A raw TPM holds three objects and three sessions, so callers flush early what they need no
// more; the rest goes when [TPM.Do] ends. A Session is not safe for concurrent use and is dead after Do.
type Session struct {
	t      *TPM
	ctx    context.Context // here because go-tpm's Send has no context parameter
	loaded []tpm2.TPMHandle
	keys   [keyKinds]Key
	reader tpm2.Session // see Kept; nil until needed
	salt   tpm2.TPMHandle
	ended  bool
}

// Send runs one command and returns its answer. It repeats while the TPM answers that it is busy. Repeating is safe
// also if that answer is forged: authorisations of our own sessions hold for one execution only.
func (s *Session) Send(cmd []byte) ([]byte, error) {
	if s.ended {
		return nil, errClosed()
	}
	until := time.Now().Add(s.t.timeout)
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		rsp, err := s.once(cmd)
		if err != nil {
			return nil, err
		}
		if !busy(rsp) {
			s.track(cmd, rsp)
			return rsp, nil
		}
		if time.Now().Add(wait).After(until) {
			return nil, reason.Later(CodeBusy, "the TPM is occupied: retry", "tpm: still busy after %v", s.t.timeout)
		}
		if err := pause(s.ctx, wait); err != nil {
			return nil, err
		}
	}
}

func (s *Session) once(cmd []byte) ([]byte, error) {
	if err := s.ctx.Err(); err != nil {
		e := reason.Wrap(err, CodeTimeout, "", "tpm: caller gave up")
		e.Remedy = reason.Retry
		return nil, e
	}
	if s.t.bus == nil {
		return nil, reason.Later(CodeBroken, hintBroken, "tpm: connection lost")
	}
	if d, ok := s.t.bus.(interface{ SetDeadline(time.Time) error }); ok {
		limit, _ := s.ctx.Deadline()
		if err := d.SetDeadline(limit); err != nil {
			return nil, err
		}
	}
	rsp, err := s.t.bus.Send(cmd)
	if err != nil {
		s.lose(err)
		return nil, err
	}
	if len(rsp) < headerSize || len(rsp) > maxFrame || int(binary.BigEndian.Uint32(rsp[2:6])) != len(rsp) {
		return nil, reason.New(CodeAnswer, hintAnswer, "tpm: answer of %d bytes is no frame", len(rsp))
	}
	return rsp, nil
}

// lose notes that the bus failed. A connection that can be opened anew is dropped, unless it only has to deliver a late
// answer and nobody else could flush what lies behind it.
func (s *Session) lose(err error) {
	s.t.lost, s.t.dirty = true, s.t.raw
	if s.t.dial == nil || (s.t.raw && reason.CodeOf(err) == CodeTimeout) {
		return
	}
	if c, ok := s.t.bus.(transport.TPMCloser); ok {
		_ = c.Close() // whatever is wrong with it, a new one starts afresh
	}
	s.t.bus = nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		e := reason.Wrap(ctx.Err(), CodeBusy, "the TPM is occupied: retry", "tpm: busy")
		e.Remedy = reason.Retry
		return e
	}
}

// busy tells the three warnings that ask for the same command again.
func busy(rsp []byte) bool {
	switch tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:10])) {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting:
		return true
	}
	return false
}

// run executes one command. A malformed answer gives an error, never a panic: go-tpm's reflection is not trusted here.
func run[R any](s *Session, op string, cmd interface {
	Execute(t transport.TPM, sess ...tpm2.Session) (*R, error)
}, sess ...tpm2.Session,
) (rsp *R, err error) {
	defer func() {
		if p := recover(); p != nil {
			rsp, err = nil, reason.New(CodeAnswer, hintAnswer, "tpm: %s: answer refused: %.200v", op, p)
		}
	}()
	rsp, err = cmd.Execute(s, sess...)
	if err != nil {
		return nil, fail(op, err)
	}
	return rsp, nil
}

// track keeps the list of what is loaded.
func (s *Session) track(cmd, rsp []byte) {
	if len(cmd) < headerSize || binary.BigEndian.Uint32(rsp[6:10]) != 0 {
		return
	}
	cc := tpm2.TPMCC(binary.BigEndian.Uint32(cmd[6:10]))
	switch cc {
	case tpm2.TPMCCCreatePrimary, tpm2.TPMCCLoad, tpm2.TPMCCLoadExternal, tpm2.TPMCCCreateLoaded, tpm2.TPMCCContextLoad,
		tpm2.TPMCCStartAuthSession, tpm2.TPMCCHMACStart, tpm2.TPMCCHashSequenceStart:
		if len(rsp) >= 14 {
			s.loaded = append(s.loaded, tpm2.TPMHandle(binary.BigEndian.Uint32(rsp[10:14])))
		}
	case tpm2.TPMCCFlushContext:
		if len(cmd) >= 14 {
			s.forget(tpm2.TPMHandle(binary.BigEndian.Uint32(cmd[10:14])))
		}
	}
	for _, h := range endedSessions(cc, cmd) {
		s.forget(h)
	}
}

func (s *Session) forget(h tpm2.TPMHandle) {
	s.loaded = slices.DeleteFunc(s.loaded, func(l tpm2.TPMHandle) bool { return l == h })
	for i := range s.keys {
		if s.keys[i].Handle == h {
			s.keys[i] = Key{}
		}
	}
}

// handleCount is how many handles precede the authorisation area of a command. Sessions of commands that are not listed
// are flushed at the end, which costs one command more.
func handleCount(cc tpm2.TPMCC) (int, bool) {
	switch cc {
	case tpm2.TPMCCPCRRead, tpm2.TPMCCGetRandom, tpm2.TPMCCGetCapability:
		return 0, true
	case tpm2.TPMCCUnseal, tpm2.TPMCCCreate, tpm2.TPMCCCreatePrimary, tpm2.TPMCCLoad, tpm2.TPMCCQuote, tpm2.TPMCCNVDefineSpace,
		tpm2.TPMCCPCRExtend, tpm2.TPMCCReadPublic, tpm2.TPMCCNVReadPublic, tpm2.TPMCCVerifySignature,
		ccHierarchyChangeAuth, ccLockReset, ccLockParameters, ccClearControl:
		return 1, true
	case tpm2.TPMCCNVRead, tpm2.TPMCCNVWrite, tpm2.TPMCCNVIncrement, tpm2.TPMCCNVUndefineSpace, tpm2.TPMCCCertify,
		tpm2.TPMCCActivateCredential, tpm2.TPMCCPolicySecret:
		return 2, true
	case tpm2.TPMCCNVCertify, tpm2.TPMCCPolicyNV:
		return 3, true
	}
	return 0, false
}

// endedSessions returns the sessions of a command that succeeded which the TPM flushed with it.
func endedSessions(cc tpm2.TPMCC, cmd []byte) (ended []tpm2.TPMHandle) {
	n, ok := handleCount(cc)
	at := headerSize + 4*n
	if !ok || binary.BigEndian.Uint16(cmd) != uint16(tpm2.TPMSTSessions) || len(cmd) < at+4 {
		return nil
	}
	area := cmd[at+4:]
	if size := int(binary.BigEndian.Uint32(cmd[at:])); size < len(area) {
		area = area[:size]
	}
	for len(area) >= 6 { // handle u32, nonce 2B, attributes u8, HMAC 2B
		h := tpm2.TPMHandle(binary.BigEndian.Uint32(area))
		at := 6 + int(binary.BigEndian.Uint16(area[4:]))
		if len(area) < at+3 {
			return ended
		}
		const continueSession = 1
		if area[at]&continueSession == 0 && h != tpm2.TPMRSPW {
			ended = append(ended, h)
		}
		at += 3 + int(binary.BigEndian.Uint16(area[at+1:]))
		area = area[min(at, len(area)):]
	}
	return ended
}

// Flush unloads one object or session before the end of Do. Persistent objects stay.
func (s *Session) Flush(h tpm2.TPMHandle) error {
	if h>>24 == persistentFirst>>24 {
		return nil
	}
	_, err := run(s, "flush", tpm2.FlushContext{FlushHandle: h})
	s.forget(h)
	return err
}

// begin clears what an earlier turn or an earlier life left behind.
func (s *Session) begin() error {
	if !s.t.dirty {
		return nil
	}
	if err := s.sweep(); err != nil {
		if !errors.Is(err, tpm2.TPMRCInitialize) || !s.t.opening {
			return err
		}
		// A software TPM after a power cycle has no firmware that would start it.
		if err := s.Startup(); err != nil {
			return err
		}
	}
	s.t.dirty = false
	return nil
}

// end flushes everything that was loaded. After a failure more may be loaded than was seen, so a raw TPM is swept. If the
// bus has failed, flushing would only wait: the next turn does it.
func (s *Session) end(clean bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), s.t.timeout/4)
	defer cancel()
	s.ctx = ctx
	for _, h := range slices.Backward(slices.Clone(s.loaded)) {
		if s.t.lost {
			break
		}
		clean = s.Flush(h) == nil && clean
	}
	if !clean {
		s.t.found = [keyKinds]Key{}
	}
	if !clean && s.t.raw && !s.t.lost {
		s.t.dirty = s.sweep() != nil
	}
	s.ended = true
}

// First handles of the ranges that TPM2_GetCapability lists.
const (
	transientFirst  = 0x80000000
	loadedFirst     = 0x02000000
	savedFirst      = 0x03000000
	persistentFirst = 0x81000000
)

// sweep flushes all transient objects and sessions, whoever loaded them.
func (s *Session) sweep() error {
	for _, first := range []uint32{transientFirst, loadedFirst, savedFirst} {
		handles, err := s.list(first)
		if err != nil {
			return err
		}
		for _, h := range handles {
			if err := s.Flush(h); err != nil {
				return fmt.Errorf("tpm: flush leftover 0x%08x: %w", uint32(h), err)
			}
		}
	}
	return nil
}

// list returns the handles in use from the given one upward. Not authenticated.
func (s *Session) list(first uint32) ([]tpm2.TPMHandle, error) {
	rsp, err := run(s, "list handles", tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64})
	if err != nil {
		return nil, err
	}
	l, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fail("list handles", err)
	}
	return l.Handle, nil
}

// Leftovers returns what is loaded in the TPM at the moment: transient objects and sessions. For tests and rigs.
func (s *Session) Leftovers() (handles []tpm2.TPMHandle, err error) {
	for _, first := range []uint32{transientFirst, loadedFirst, savedFirst} {
		l, err := s.list(first)
		if err != nil {
			return nil, err
		}
		handles = append(handles, l...)
	}
	return handles, nil
}

// Startup issues TPM2_Startup(CLEAR), as firmware does. A TPM that has been started up already stays as it is.
func (s *Session) Startup() error {
	_, err := run(s, "startup", tpm2.Startup{StartupType: tpm2.TPMSUClear})
	if errors.Is(err, tpm2.TPMRCInitialize) {
		return nil
	}
	return err
}
