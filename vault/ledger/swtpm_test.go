package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/sealing"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
	"github.com/sledvault/sledvault/vault/secret"
)

var _ Sealer = (*sealing.Unsealed)(nil)

// sealed is the real thing: package sealing over a swtpm.
type sealed struct {
	tb    testing.TB
	bus   *tpmtest.TPM
	p     sealing.Params
	pins  sealing.Pins
	begun *sealing.Unsealed
}

func newSealed(tb testing.TB) *sealed {
	tb.Helper()
	s := &sealed{tb: tb, bus: tpmtest.New(tb)}
	s.p = sealing.Params{
		TPM: s.bus.Open(), Alloc: secret.Heap{}, Rand: rand.Reader, Baseboard: testID, AuthDirs: [2]string{tb.TempDir(), tb.TempDir()},
	}
	s.firmware()
	s.enrol()
	return s
}

// enrol enrols the sled, anew if it was before.
func (s *sealed) enrol() {
	s.tb.Helper()
	tb, ctx := s.tb, context.Background()
	e, err := sealing.Begin(ctx, s.p)
	if err != nil {
		tb.Fatal(err)
	}
	d, err := e.Describe(ctx, [32]byte{})
	if err != nil {
		tb.Fatal(err)
	}
	s.pins = sealing.Pins{SRKName: d.SRKName, EKName: d.EKName, AKName: d.AKName, CounterName: d.CounterName}
	if s.begun, err = e.Finish(ctx, testRack, sealing.Claim{Rack: testRack}); err != nil {
		tb.Fatal(err)
	}
}

func (s *sealed) firmware() {
	s.tb.Helper()
	for _, n := range sealing.DefaultPCRs() {
		tpmtest.Do(s.tb, s.p.TPM, func(t *tpm.Session) error { return t.ExtendPCR(n, sha256.Sum256([]byte("firmware"))) })
	}
}

func (s *sealed) first() Sealer { return s.begun }

func (s *sealed) unseal(ctx context.Context, blob []byte, approvals [][]byte) (Sealer, error) {
	u, err := sealing.Open(ctx, s.p, s.pins, testRack, blob, approvals)
	if err != nil {
		return nil, err
	}
	if err := u.Key().Use(func(b []byte) error { s.bus.Register(b); return nil }); err != nil {
		return nil, err
	}
	return u, nil
}

func (s *sealed) value() uint64 {
	s.tb.Helper()
	v, err := sealing.ReadCounter(context.Background(), s.p, s.pins)
	if err != nil {
		s.tb.Fatal(err)
	}
	return v
}

// reboot cuts the sled's power.
func (s *sealed) reboot() {
	s.tb.Helper()
	s.bus.PowerCycle()
	s.p.TPM = s.bus.Open()
	s.firmware()
}

func newSealedNode(tb testing.TB) (*node, *sealed) {
	tb.Helper()
	n := newNode(tb).onDisks()
	s := newSealed(tb)
	n.life = s
	return n, s
}

func TestKilledAnywhereSwtpm(t *testing.T) {
	t.Parallel()
	n, _ := newSealedNode(t)
	killEverywhere(t, n, true)
}

// The TPM loses its power with the rest: after each step of a save, then again while it counts.
func TestPowerCutSwtpm(t *testing.T) {
	t.Parallel()
	n, s := newSealedNode(t)
	l := n.create(1)
	last := uint64(1)
	for steps := 0; ; steps += 2 {
		done, _ := n.cutSave(l, last+1, steps)
		s.reboot()
		l, last = n.either(last, last+1, done)
		if done {
			break
		}
	}
	for _, when := range []string{"before", "after"} {
		dead := errors.New("no power")
		s.bus.Intercept(func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error) {
			if !tpmtest.Is(cmd, tpm2.TPMCCNVIncrement) {
				return pass(cmd)
			}
			if when == "after" { // the TPM has counted, nobody hears of it
				_, _ = pass(cmd)
			}
			return nil, dead
		})
		err := l.Save(t.Context(), state(last+1))
		s.bus.Intercept(nil)
		if when == "before" && !errors.Is(err, ErrSave) {
			t.Fatalf("cut before the increment: %v", err)
		}
		n.powerCut(l)
		s.reboot()
		l, last = n.either(last, last+1, err == nil)
	}
	tpmtest.NothingLoaded(t, s.p.TPM)
}

// A sled whose whole state folders were set back meets the counter in the policy itself.
func TestRollbackSwtpm(t *testing.T) {
	t.Parallel()
	n, s := newSealedNode(t)
	l := n.create(1)
	old := n.snapshot()
	save(t, l, 2)
	n.powerCut(l)
	fresh := n.snapshot()
	n.restore(old)
	if _, _, _, err := n.open(); !errors.Is(err, ErrLostSeal) {
		t.Errorf("old images: %v", err)
	}
	n.restore(fresh)
	s.reboot()
	n.either(2, 2, true)
}

// The key is renewed, and the power fails after each step.
func TestRekeySwtpm(t *testing.T) {
	t.Parallel()
	n, s := newSealedNode(t)
	l := n.create(1)
	last := uint64(1)
	for steps := 0; ; steps++ {
		old := bytes.Clone(l.sealer.Blob())
		fresh, err := l.sealer.(*sealing.Unsealed).Rekey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var seen []string
		l.cfg.Steps = cutAfter(steps, &seen)
		err = l.Rekey(t.Context(), fresh, state(last+1))
		done := err == nil
		if err != nil && !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		n.powerCut(l)
		s.reboot()
		l, last = n.either(last, last+1, done)
		if done {
			if bytes.Equal(l.sealer.Blob(), old) {
				t.Error("still under the old key")
			}
			break
		}
	}
	tpmtest.NothingLoaded(t, s.p.TPM)
}

func BenchmarkProtectedSave(b *testing.B) {
	n := newNode(b)
	s := newSealed(b)
	n.life = s
	l := n.create(1)
	for b.Loop() {
		save(b, l, 2)
	}
}

func BenchmarkStart(b *testing.B) {
	n := newNode(b)
	n.life = newSealed(b)
	l := n.create(1)
	for b.Loop() {
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		l, _ = n.mustOpen(1)
	}
}

func BenchmarkSaveObserved(b *testing.B) {
	l := newNode(b).create(1)
	for b.Loop() {
		if err := l.SaveObserved(b.Context(), Observed{}); err != nil {
			b.Fatal(err)
		}
	}
}

// An enrolment that is cut off anywhere leaves a sled that either has its first state or can be enrolled again.
func TestKilledWhileEnrolling(t *testing.T) {
	t.Parallel()
	s := newSealed(t)
	for steps := 0; ; steps++ {
		n := newNode(t)
		n.life = s
		var seen []string
		n.cfg.Steps = cutAfter(steps, &seen)
		l, err := Create(t.Context(), n.cfg, s.begun, state(1))
		n.cfg.Steps = nil
		if err == nil {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			n.mustOpen(1)
			return
		}
		if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		l, st, _, err := n.open()
		switch {
		case err == nil && value(st) == 1:
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		case errors.Is(err, ErrAbsent):
		default:
			t.Fatalf("cut after %v: %v", seen, err)
		}
		if err := MoveAside(n.cfg.Dirs); err != nil {
			t.Fatal(err)
		}
		s.enrol()
	}
}
