// Package tpmtest gives tests a TPM: a swtpm of their own that can be power-cycled and killed, a tap on its bus that
// knows what must never pass there, an interposer that alters what passes, and the contract suite that every TPM and
// transport must meet.
package tpmtest

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/hwtest/sim/swtpm"
	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/tpm"
)

// TPM is a swtpm with a tap on its bus. It implements go-tpm's transport.TPM.
type TPM struct {
	tb   testing.TB
	pair *swtpm.Pair

	mu      sync.Mutex
	secrets [][]byte
	leaks   []string
	onCmd   func([]byte) []byte
	onRsp   func(cmd, rsp []byte) []byte
	whole   Interceptor
	sent    int
}

// New starts a TPM that ends with the test. At the end, the test fails if a registered secret was seen on the bus.
func New(tb testing.TB) *TPM {
	tb.Helper()
	rig.Need(tb, "swtpm")
	pair, err := swtpm.StartPair(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	t := &TPM{tb: tb, pair: pair}
	tb.Cleanup(func() {
		if err := pair.Close(); err != nil {
			tb.Errorf("close: %v", err)
		}
		for _, l := range t.Leaks() {
			tb.Errorf("secret on the TPM bus: %s", l)
		}
	})
	return t
}

// Open opens the TPM over the tap, as raw: whatever leaks into its three slots shows.
func (t *TPM) Open() *tpm.TPM {
	t.tb.Helper()
	opened, err := tpm.New(t, true)
	if err != nil {
		t.tb.Fatal(err)
	}
	return opened
}

// Interceptor stands between host and TPM. It gets each command and a way to pass frames on, and makes the answer: it may
// alter, drop, repeat, replay and invent.
type Interceptor func(cmd []byte, pass func([]byte) ([]byte, error)) ([]byte, error)

// Send runs one command through tap and interposer.
func (t *TPM) Send(cmd []byte) ([]byte, error) {
	t.mu.Lock()
	onCmd, onRsp, whole := t.onCmd, t.onRsp, t.whole
	t.mu.Unlock()
	t.look("command", cmd)
	if whole != nil {
		return whole(bytes.Clone(cmd), t.pass)
	}
	passed := cmd
	if onCmd != nil {
		passed = onCmd(bytes.Clone(cmd))
	}
	rsp, err := t.pass(passed)
	if err == nil && onRsp != nil {
		rsp = onRsp(bytes.Clone(cmd), bytes.Clone(rsp))
	}
	return rsp, err
}

// pass is the bus at the TPM's end.
func (t *TPM) pass(cmd []byte) ([]byte, error) {
	t.mu.Lock()
	t.sent++
	t.mu.Unlock()
	rsp, err := t.pair.Send(cmd)
	if err != nil {
		return nil, err
	}
	t.look("answer", rsp)
	return rsp, nil
}

// SetDeadline bounds the commands that follow.
func (t *TPM) SetDeadline(d time.Time) error { return t.pair.SetDeadline(d) }

// Commands is how many commands have reached the TPM.
func (t *TPM) Commands() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sent
}

// Interpose puts functions on the bus that may alter what passes; nil lets it pass. The second also sees the command as
// the host sent it.
func (t *TPM) Interpose(cmd func([]byte) []byte, rsp func(cmd, rsp []byte) []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onCmd, t.onRsp = cmd, rsp
}

// Intercept puts an interceptor on the bus, in place of the functions of [TPM.Interpose]; nil removes it.
func (t *TPM) Intercept(f Interceptor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.whole = f
}

// PowerCycle cuts the power and starts the TPM up again.
func (t *TPM) PowerCycle() {
	t.tb.Helper()
	if err := t.pair.PowerCycle(); err != nil {
		t.tb.Fatal(err)
	}
}

// Kill ends the TPM at once.
func (t *TPM) Kill() {
	t.tb.Helper()
	if err := t.pair.Kill(); err != nil {
		t.tb.Fatal(err)
	}
}

// Restart starts the TPM again on the same state.
func (t *TPM) Restart() {
	t.tb.Helper()
	if err := t.pair.Restart(); err != nil {
		t.tb.Fatal(err)
	}
}

// Loaded lists the transient objects and sessions in the TPM, past the package under test.
func (t *TPM) Loaded() (handles []tpm2.TPMHandle) {
	t.tb.Helper()
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(t.pair)
		if err != nil {
			t.tb.Fatal(err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			t.tb.Fatal(err)
		}
		handles = append(handles, list.Handle...)
	}
	return handles
}
