package tpm_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/hwtest/sim/swtpm"
	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
	"github.com/sledvault/sledvault/vault/reason"
)

func startUnix(t *testing.T) (*swtpm.Daemon, swtpm.Config) {
	t.Helper()
	rig.Need(t, "swtpm")
	dir := t.TempDir()
	cfg := swtpm.Config{Dir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "tpm")}
	d, err := swtpm.StartUnix(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Kill() })
	return d, cfg
}

func openUnix(t *testing.T, d *swtpm.Daemon, timeout time.Duration) *tpm.TPM {
	t.Helper()
	dut, err := tpm.Open(t.Context(), tpm.Config{Device: d.Device(), CommandTimeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dut.Close() })
	return dut
}

func makeSRK(s *tpm.Session) error { _, err := s.SRK(nil); return err }

// TestUnixContract runs the contract suite over a unix socket, one client after the other on one TPM.
func TestUnixContract(t *testing.T) {
	t.Parallel()
	d, _ := startUnix(t)
	tpmtest.Run(t, func(tb testing.TB) *tpm.TPM {
		tb.Helper()
		dut, err := tpm.Open(tb.Context(), tpm.Config{Device: d.Device()})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = dut.Close() })
		return dut
	})
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
}

// TestKilledClient: what a killed client left loaded, filling every slot, is flushed by the next one.
func TestKilledClient(t *testing.T) {
	t.Parallel()
	d, _ := startUnix(t)
	raw, err := net.Dial("unix", strings.TrimPrefix(d.Device(), "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	conn := tpm.NewConn(raw, 0)
	for range 3 {
		srk, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(conn)
		if err != nil {
			t.Fatal(err)
		}
		pub, err := srk.OutPublic.Contents()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := tpm2.HMACSession(conn, tpm2.TPMAlgSHA256, 32, tpm2.Salted(srk.ObjectHandle, *pub)); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.Close()
	tpmtest.Do(t, openUnix(t, d, 0), makeSRK)
}

// TestUnixRestart: a software TPM that dies is an error, and one that comes back is used again.
func TestUnixRestart(t *testing.T) {
	t.Parallel()
	d, cfg := startUnix(t)
	dut := openUnix(t, d, 0)
	key, sign := tpmtest.NewKey(t)
	var c tpm.Counter
	var value uint64
	tpmtest.Do(t, dut, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		if c, err = s.DefineCounter(srk, tpmtest.CounterIndex, key); err != nil {
			return err
		}
		if value, err = s.ReadCounter(srk, c); err != nil {
			return err
		}
		value, err = s.Increment(srk, c, value, sign)
		return err
	})
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []reason.Code{tpm.CodeBroken, tpm.CodeOpen} {
		err := dut.Do(t.Context(), makeSRK)
		if reason.CodeOf(err) != want || reason.RemedyOf(err) != reason.Retry || reason.HintOf(err) == "" {
			t.Errorf("have %v (%s), want %s", err, reason.CodeOf(err), want)
		}
	}
	again, err := swtpm.StartUnix(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Kill() })
	tpmtest.Do(t, dut, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		v, err := s.ReadCounter(srk, c)
		if v != value {
			t.Errorf("counter after kill: have %d, want %d", v, value)
		}
		return err
	})
}

// TestUnixPowerCycle: a TPM reset under a running daemon stays an error for it; a fresh Open starts the TPM up.
func TestUnixPowerCycle(t *testing.T) {
	t.Parallel()
	d, _ := startUnix(t)
	dut := openUnix(t, d, 0)
	if err := d.PowerCycle(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := dut.Do(t.Context(), makeSRK); reason.CodeOf(err) != tpm.CodeReset {
			t.Errorf("have %v, want %s", err, tpm.CodeReset)
		}
	}
	if err := dut.Close(); err != nil {
		t.Fatal(err)
	}
	tpmtest.Do(t, openUnix(t, d, 0), makeSRK)
}

// TestUnixSecondClient: swtpm serves one client; the second is told so in time instead of hanging.
func TestUnixSecondClient(t *testing.T) {
	t.Parallel()
	d, _ := startUnix(t)
	dut := openUnix(t, d, 0)
	_, err := tpm.Open(t.Context(), tpm.Config{Device: d.Device(), CommandTimeout: 100 * time.Millisecond})
	if !errors.Is(err, tpm.ErrTimeout) || reason.HintOf(err) == "" {
		t.Errorf("have %v, want a timeout", err)
	}
	tpmtest.Do(t, dut, makeSRK)
}

// TestHungTPM: a TPM that hangs costs one timeout, then calls fail fast, and it is used again when it answers.
func TestHungTPM(t *testing.T) {
	t.Parallel()
	d, _ := startUnix(t)
	dut := openUnix(t, d, 300*time.Millisecond)
	stop, resume := d.Freeze, d.Thaw
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := dut.Do(t.Context(), makeSRK); !errors.Is(err, tpm.ErrTimeout) {
			t.Errorf("have %v, want a timeout", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := dut.Do(ctx, makeSRK); err == nil {
		t.Error("a frozen TPM answered")
	}
	if err := resume(); err != nil {
		t.Fatal(err)
	}
	tpmtest.Do(t, dut, makeSRK)
	tpmtest.NothingLoaded(t, dut)
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	for device, want := range map[string]reason.Code{
		"":                                  tpm.CodeUsage,
		"tpmrm0":                            tpm.CodeUsage,
		"unix:relative":                     tpm.CodeUsage,
		"/nonexistent/tpmrm0":               tpm.CodeOpen,
		"unix:/nonexistent/socket":          tpm.CodeOpen,
		"unix:/" + strings.Repeat("x", 300): tpm.CodeOpen,
	} {
		_, err := tpm.Open(t.Context(), tpm.Config{Device: device})
		if reason.CodeOf(err) != want {
			t.Errorf("%.40q: have %v, want %s", device, err, want)
		}
	}
}
