package sealing

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/secret"
)

var (
	testRack = ident.RackID{0x11, 0x22, 15: 0xff}
	testID   = ident.Baseboard{Part: "913-0000019", Serial: "BRM42220031"}
)

// sled is one simulated sled: a TPM with a tap, and two state folders.
type sled struct {
	tb   testing.TB
	bus  *tpmtest.TPM
	dut  *tpm.TPM
	p    Params
	pins Pins
}

func newSled(tb testing.TB) *sled {
	tb.Helper()
	s := &sled{tb: tb, bus: tpmtest.New(tb)}
	s.dut = s.bus.Open()
	s.p = Params{
		TPM: s.dut, Alloc: secret.Heap{}, Rand: rand.Reader, Baseboard: testID,
		AuthDirs: [2]string{tb.TempDir(), tb.TempDir()},
	}
	s.firmware("one")
	return s
}

// firmware extends the sealing PCRs as a boot of this version would.
func (s *sled) firmware(version string) {
	s.tb.Helper()
	for _, n := range DefaultPCRs() {
		s.extend(n, version)
	}
}

func (s *sled) extend(pcr int, event string) {
	s.tb.Helper()
	tpmtest.Do(s.tb, s.dut, func(t *tpm.Session) error { return t.ExtendPCR(pcr, sha256.Sum256([]byte(event))) })
}

// reboot power-cycles the sled into a firmware version.
func (s *sled) reboot(version string) {
	s.tb.Helper()
	s.bus.PowerCycle()
	s.dut = s.bus.Open()
	s.p.TPM = s.dut
	s.firmware(version)
}

func (s *sled) claim() Claim {
	return Claim{Version: 1, Rack: testRack, KeyDigest: [32]byte{1}, SetGeneration: 7, SetDigest: [32]byte{2}}
}

// enrol runs the sled's half of an enrolment. All its secrets are registered with the tap.
func (s *sled) enrol() *Unsealed {
	s.tb.Helper()
	ctx := context.Background()
	e, err := Begin(ctx, s.p)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.register(e.key.Use)
	s.register(e.seed.Use)
	d, err := e.Describe(ctx, [32]byte{9})
	if err != nil {
		s.tb.Fatal(err)
	}
	u, err := e.Finish(ctx, testRack, s.claim())
	if err != nil {
		s.tb.Fatal(err)
	}
	s.register(u.auth.Use)
	auth, err := claimAuth(secret.Heap{}, u.seed)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.register(auth.Use)
	s.pins = Pins{SRKName: d.SRKName, EKName: d.EKName, AKName: d.AKName, CounterName: d.CounterName}
	s.tb.Cleanup(u.Destroy)
	return u
}

func (s *sled) register(use func(func([]byte) error) error) {
	s.tb.Helper()
	if err := use(func(b []byte) error { s.bus.Register(bytes.Clone(b)); return nil }); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *sled) approve(u *Unsealed, sequence uint64) []Approval {
	s.tb.Helper()
	a, err := u.Approve(context.Background(), sequence)
	if err != nil {
		s.tb.Fatal(err)
	}
	return a
}

func (s *sled) open(blob Blob, approvals []Approval) (*Unsealed, error) {
	u, err := Open(context.Background(), s.p, s.pins, testRack, blob, approvals)
	if err == nil {
		s.tb.Cleanup(u.Destroy)
	}
	return u, err
}

func (s *sled) counter(u *Unsealed) uint64 {
	s.tb.Helper()
	v, err := u.Counter(context.Background())
	if err != nil {
		s.tb.Fatal(err)
	}
	return v
}

func (s *sled) increment(u *Unsealed) uint64 {
	s.tb.Helper()
	v, err := u.Increment(context.Background(), s.counter(u))
	if err != nil {
		s.tb.Fatal(err)
	}
	return v
}
