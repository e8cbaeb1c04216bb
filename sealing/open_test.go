package sealing

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/tpm/tpmtest"
	"github.com/sledvault/sledvault/vault/ident"
)

func TestEnrolAndOpen(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	u := s.enrol()
	c := s.counter(u)
	approvals := s.approve(u, c+1)
	if got := s.increment(u); got != c+1 {
		t.Fatalf("counter %d, want %d", got, c+1)
	}
	for _, boot := range []string{"same boot", "next boot"} {
		if boot == "next boot" {
			s.reboot("one")
		}
		again, err := s.open(u.Blob(), approvals)
		if err != nil {
			t.Fatalf("%s: %v", boot, err)
		}
		if !again.Key().Equal(u.Key()) || !again.seed.Equal(u.seed) {
			t.Errorf("%s: another secret", boot)
		}
		if err := again.TestUnseal(t.Context(), u.Blob(), approvals); err != nil {
			t.Errorf("%s: test: %v", boot, err)
		}
	}
	tpmtest.NothingLoaded(t, s.dut)
	if v, err := ReadCounter(t.Context(), s.p, s.pins); err != nil || v != c+1 {
		t.Errorf("counter %d, %v, want %d", v, err, c+1)
	}
	if err := CheckPins(t.Context(), s.p, s.pins); err != nil {
		t.Error(err)
	}
}

// The state at the opening stays approved although the sled goes on measuring, and so does the state of the moment, for
// a restart of the daemon.
func TestLateMeasurements(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	first, err := Look(t.Context(), s.p, nil)
	measured := first.PCRs
	if err != nil {
		t.Fatal(err)
	}
	s.p.Measured = measured
	s.extend(11, "ready")
	u := s.enrol()
	approvals := s.approve(u, s.counter(u))
	if len(approvals) != 2 {
		t.Fatalf("%d approvals, want 2: boot and now", len(approvals))
	}
	if _, err := s.open(u.Blob(), approvals); err != nil {
		t.Errorf("restart: %v", err)
	}
	s.reboot("one")
	fresh, err := s.open(u.Blob(), approvals)
	if err != nil {
		t.Fatalf("next boot: %v", err)
	}
	fresh.p.OncePerBoot = true
	s.extend(11, "ready")
	if a := s.approve(fresh, s.counter(u)); len(a) != 1 {
		t.Errorf("%d approvals, want 1 when only the boot counts", len(a))
	}
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	u := s.enrol()
	c := s.counter(u)
	old, _ := u.State()
	// What the next version will measure is known from its image; here it is tried out.
	s.reboot("two")
	next, err := State(t.Context(), s.p)
	if err != nil {
		t.Fatal(err)
	}
	s.reboot("one")
	if u, err = s.open(u.Blob(), s.approve(u, c)); err != nil {
		t.Fatal(err)
	}
	if err := u.Stage(next); err != nil {
		t.Fatal(err)
	}
	approvals := s.approve(u, c)
	for _, version := range []string{"one", "two", "one", "two"} {
		s.reboot(version)
		v, err := s.open(u.Blob(), approvals)
		if err != nil {
			t.Fatalf("boot into %s: %v", version, err)
		}
		boot, staged := v.State()
		if version == "one" && (!maps.Equal(boot, old) || !maps.Equal(staged, next)) {
			t.Error("the staged state is forgotten after a boot of the old version")
		}
		if version == "two" && (!maps.Equal(boot, next) || staged != nil) {
			t.Error("the new version is not the state at the opening")
		}
		u = v
	}
	// The first save of the new version commits it: the old one is not signed again.
	approvals2 := s.approve(u, c+1)
	s.increment(u)
	s.reboot("one")
	if _, err := s.open(u.Blob(), append(approvals2, approvals...)); !errors.Is(err, ErrPCR) {
		t.Errorf("old version after the commit: %v", err)
	}
	s.reboot("two")
	if _, err := s.open(u.Blob(), approvals2); err != nil {
		t.Errorf("new version after the commit: %v", err)
	}
}

// A changed selection of PCRs takes over with the next saves, without a new seal.
func TestNewSelection(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	u := s.enrol()
	c := s.counter(u)
	approvals := s.approve(u, c)
	s.p.PCRs = []int{0, 4, 7}
	s.extend(4, "loader")
	for _, want := range [][]int{{0, 2, 7, 11, 12, 14}, {0, 4, 7}, {0, 4, 7}} {
		v, err := s.open(u.Blob(), approvals)
		if err != nil {
			t.Fatal(err)
		}
		boot, _ := v.State()
		if len(boot) != len(want) {
			t.Errorf("opened by PCRs %v, want %v", slices.Sorted(maps.Keys(boot)), want)
		}
		approvals = s.approve(v, c)
	}
	if len(approvals) != 1 {
		t.Errorf("%d approvals, want 1: the old selection is gone", len(approvals))
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	u := s.enrol()
	c := s.counter(u)
	approvals := s.approve(u, c)
	blob := u.Blob()
	other := s.pins
	other.CounterName = bytes.Clone(other.CounterName)
	other.CounterName[33] ^= 1
	for _, tt := range []struct {
		name string
		open func() (*Unsealed, error)
		want error
	}{
		{"another rack", func() (*Unsealed, error) {
			return Open(t.Context(), s.p, s.pins, ident.RackID{1}, blob, approvals)
		}, ErrBlob},
		{"another sled", func() (*Unsealed, error) {
			p := s.p
			p.Baseboard.Serial = "OTHER"
			return Open(t.Context(), p, s.pins, testRack, blob, approvals)
		}, ErrBlob},
		{"another counter", func() (*Unsealed, error) { return Open(t.Context(), s.p, other, testRack, blob, approvals) }, ErrBlob},
		{"no approval", func() (*Unsealed, error) { return s.open(blob, nil) }, ErrApproval},
		{"cut blob", func() (*Unsealed, error) { return s.open(blob[:len(blob)-1], approvals) }, ErrBlob},
		{"flipped approval", func() (*Unsealed, error) {
			a := bytes.Clone(approvals[0])
			a[len(a)-1] ^= 1
			return s.open(blob, []Approval{a})
		}, ErrApproval},
		{"approval of another sequence", func() (*Unsealed, error) {
			a := bytes.Clone(approvals[0])
			a[len(approvalMagic)+2+1+7]++
			return s.open(blob, []Approval{a})
		}, ErrApproval},
		{"no auth value", func() (*Unsealed, error) {
			p := s.p
			p.AuthDirs = [2]string{t.TempDir(), t.TempDir()}
			return Open(t.Context(), p, s.pins, testRack, blob, approvals)
		}, ErrAuth},
	} {
		if _, err := tt.open(); !errors.Is(err, tt.want) {
			t.Errorf("%s: have %v, want %v", tt.name, err, tt.want)
		}
	}
	if _, err := s.open(blob, approvals); err != nil {
		t.Fatal(err)
	}
	s.extend(7, "another key")
	if _, err := s.open(blob, approvals); !errors.Is(err, ErrPCR) {
		t.Errorf("changed PCR: %v", err)
	}
	tpmtest.NothingLoaded(t, s.dut)
}

func TestUnmeasured(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	s.bus.PowerCycle()
	s.p.TPM = s.bus.Open()
	if _, err := Begin(t.Context(), s.p); !errors.Is(err, ErrUnmeasured) {
		t.Errorf("sealed to nothing: %v", err)
	}
	ones := [32]byte(bytes.Repeat([]byte{0xff}, 32))
	if err := measured(map[int][32]byte{3: ones}); !errors.Is(err, ErrUnmeasured) {
		t.Errorf("ones: %v", err)
	}
	if err := measured(map[int][32]byte{3: {1}, 12: {}}); err != nil {
		t.Errorf("an empty PCR above the firmware's: %v", err)
	}
}

func TestAuthCopies(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	u := s.enrol()
	approvals := s.approve(u, s.counter(u))
	path := filepath.Join(s.p.AuthDirs[0], AuthFile)
	for _, damage := range []func() error{
		func() error { return os.Remove(path) },
		func() error { return os.WriteFile(path, []byte("short"), 0o600) },
		func() error { return os.WriteFile(path, bytes.Repeat([]byte{7}, 32), 0o600) },
		func() error { return os.Chmod(path, 0o644) },
		func() error {
			return errors.Join(os.Remove(path), os.Symlink(filepath.Join(s.p.AuthDirs[1], AuthFile), path))
		},
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.open(u.Blob(), approvals); err != nil {
			t.Fatal(err)
		}
		a, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(s.p.AuthDirs[1], AuthFile))
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("not repaired: %v", err)
		}
		if info, err := os.Lstat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
}

func TestClaim(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	read := func() *Claim {
		t.Helper()
		c, err := ReadClaim(t.Context(), s.p)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := read(); c != nil {
		t.Errorf("claim %+v on a new TPM", c)
	}
	u := s.enrol()
	if c := read(); c == nil || *c != s.claim() {
		t.Errorf("claim %+v, want %+v", c, s.claim())
	}
	next := s.claim()
	next.SetGeneration++
	if err := u.WriteClaim(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if c := read(); c == nil || *c != next {
		t.Errorf("claim %+v, want %+v", c, next)
	}
	approvals := s.approve(u, s.counter(u))
	// Lost seal: enrolled again, with the claim index of the life before.
	u2 := s.enrol()
	if c := read(); c == nil || *c != s.claim() {
		t.Errorf("claim %+v, want %+v", c, s.claim())
	}
	if _, err := s.open(u.Blob(), approvals); !errors.Is(err, ErrBlob) {
		t.Errorf("blob of the life before: %v", err)
	}
	if err := Reset(t.Context(), s.p); err != nil {
		t.Fatal(err)
	}
	if c := read(); c != nil {
		t.Errorf("claim %+v after reset", c)
	}
	if _, err := s.open(u2.Blob(), s.approveOld(u2)); err == nil {
		t.Error("opened after reset")
	}
	if err := u2.WriteClaim(t.Context(), next); err != nil { // a TPM that lost its index gets it again
		t.Fatal(err)
	}
	if c := read(); c == nil || *c != next {
		t.Errorf("claim %+v, want %+v", c, next)
	}
}

// approveOld approves without the counter being there.
func (s *sled) approveOld(u *Unsealed) []Approval { return s.approve(u, 1000) }

// maxCommands is what opening a seal may cost, maxStart what a start of the daemon may that has a ticket: on a TPM behind a
// bus every command is a wait.
const (
	maxCommands = 17
	maxStart    = 21
)

func TestCommands(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	u := s.enrol()
	approvals := s.approve(u, s.counter(u))
	s.dut = s.bus.Open()
	s.p.TPM = s.dut
	first, err := Look(t.Context(), s.p, nil)
	if err != nil || first.Claim == nil || *first.Claim != s.claim() || !bytes.Equal(first.SRKName, s.pins.SRKName) || first.PCRs != nil {
		t.Fatalf("have %+v, %v", first, err)
	}
	before := s.bus.Commands()
	v, err := s.open(u.Blob(), approvals)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.bus.Commands() - before; n > maxCommands {
		t.Errorf("opening took %d commands, want at most %d", n, maxCommands)
	}
	if have, want := v.Opened(), s.counter(v); have != want {
		t.Errorf("counter at the opening: have %d, want %d", have, want)
	}
	// A start: claim and seal in one turn, and tickets beside the approvals.
	approvals = v.WithTickets(t.Context(), approvals)
	s.dut = s.bus.Open()
	s.p.TPM = s.dut
	before = s.bus.Commands()
	if err := s.dut.Turn(t.Context(), func(ctx context.Context) error {
		if _, err := Look(ctx, s.p, s.pins.SRKName); err != nil {
			return err
		}
		_, err := Open(ctx, s.p, s.pins, testRack, u.Blob(), approvals)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if n := s.bus.Commands() - before; n > maxStart {
		t.Errorf("a start took %d commands, want at most %d", n, maxStart)
	}
	tpmtest.NothingLoaded(t, s.dut)
}

// A ticket spares the TPM the check of the approval's signature. It is worth something only to the TPM that made it, for
// this approval; whatever is wrong with it, the signature is checked.
func TestTickets(t *testing.T) {
	t.Parallel()
	s := newSled(t)
	u := s.enrol()
	plain := s.approve(u, s.counter(u))
	ticketed := u.WithTickets(t.Context(), plain)
	other := u.WithTickets(t.Context(), s.approve(u, s.counter(u)+1))
	if ok, err := u.Approves(t.Context(), s.counter(u), ticketed); !ok || err != nil {
		t.Errorf("approved already: have %v, %v", ok, err)
	}
	info := func(a Approval) *ApprovalInfo {
		i, err := DecodeApproval(a)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	if info(plain[0]).Ticket != nil || len(info(ticketed[0]).Ticket) == 0 {
		t.Fatal("want a ticket beside the signature")
	}
	with := func(ticket []byte) []Approval {
		i := info(plain[0])
		i.Ticket = ticket
		return []Approval{i.encode()}
	}
	flipped := bytes.Clone(info(ticketed[0]).Ticket)
	flipped[3] ^= 1
	for _, c := range []struct {
		name      string
		approvals []Approval
		verified  int
	}{
		{"none", plain, 1},
		{"good", ticketed, 0},
		{"flipped", with(flipped), 1},
		{"cut", with(flipped[:1]), 1},
		{"of another approval", with(info(other[0]).Ticket), 1},
	} {
		for _, boot := range []string{"same boot", "next boot"} {
			if boot == "next boot" {
				s.reboot("one")
			}
			verified := 0
			s.bus.Interpose(func(cmd []byte) []byte {
				if tpmtest.Is(cmd, tpm2.TPMCCVerifySignature) {
					verified++
				}
				return cmd
			}, nil)
			v, err := s.open(u.Blob(), c.approvals)
			if err != nil || !v.Key().Equal(u.Key()) {
				t.Fatalf("%s, %s: %v", c.name, boot, err)
			}
			if verified != c.verified {
				t.Errorf("%s, %s: %d signatures checked, want %d", c.name, boot, verified, c.verified)
			}
			s.bus.Interpose(nil, nil)
			tpmtest.NothingLoaded(t, s.dut)
		}
	}
	for _, n := range []int{0, maxTicket + 1} { // lengths that no ticket has
		a := append(bytes.Clone(plain[0]), 0, byte(n))
		if _, err := DecodeApproval(append(a, make([]byte, n)...)); !errors.Is(err, ErrApproval) {
			t.Errorf("ticket of %d bytes: %v", n, err)
		}
	}
	s.extend(7, "evil") // a ticket says nothing about the state
	if _, err := s.open(u.Blob(), ticketed); !errors.Is(err, ErrPCR) {
		t.Errorf("another state: %v", err)
	}
	if ok, _ := u.Approves(t.Context(), s.counter(u), ticketed); ok {
		t.Error("another state is approved already")
	}
}
