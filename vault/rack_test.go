package vault_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/disk"
	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	simsp "github.com/sledvault/sledvault/hwtest/sim/sp"
	"github.com/sledvault/sledvault/hwtest/sim/swtpm"
	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/rack/controller"
)

// testRack is a rack of daemons inside the test process, each with a real software TPM, a service processor on a
// pseudo-terminal and loopback addresses of its own.
type testRack struct {
	t     *testing.T
	dir   string
	net   string // "127.x.y."
	sleds []*testSled
	fp    string

	recovery []byte // the recovery key's text
}

type testSled struct {
	rack   *testRack
	name   string
	dir    string
	cfg    vault.Config
	tpm    *swtpm.Daemon
	sp     *simsp.Line
	serial string
	logs   *logBuffer

	options func(vault.Options) vault.Options // of the next start; may be nil

	cancel context.CancelFunc
	done   chan error
}

// logBuffer collects a daemon's log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const diskSize = 40 << 20

func newRack(t *testing.T, n int) *testRack {
	t.Helper()
	rig.Need(t, "swtpm", "cryptsetup")
	dir, err := os.MkdirTemp("", "sv") // short: unix sockets have short names
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &testRack{t: t, dir: dir, net: fmt.Sprintf("127.%d.%d.", 64+rand.IntN(64), 1+rand.IntN(250))}
	fp, recovery, err := controller.NewRack(filepath.Join(dir, "rack"), "test")
	must(t, err)
	r.fp, r.recovery = fp, recovery
	var peers []string
	for i := range n {
		peers = append(peers, fmt.Sprintf("%s%d:12349", r.net, i+1))
	}
	for i := range n {
		r.sleds = append(r.sleds, r.newSled(i, peers))
	}
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *testRack) newSled(i int, peers []string) *testSled {
	t := r.t
	t.Helper()
	s := &testSled{rack: r, name: fmt.Sprintf("sled-%d", i+1), serial: fmt.Sprintf("SIM%04d", i+1), logs: &logBuffer{}}
	s.dir = filepath.Join(r.dir, s.name)
	for _, d := range []string{"a", "b", "tpm"} {
		must(t, os.MkdirAll(filepath.Join(s.dir, d), 0o700))
	}
	var err error
	s.tpm, err = swtpm.StartUnix(t.Context(), swtpm.Config{
		Dir: filepath.Join(s.dir, "tpm"), Socket: filepath.Join(s.dir, "tpm.sock"),
		Control: filepath.Join(s.dir, "tpm.ctl"), LogPath: filepath.Join(s.dir, "tpm.log"),
	})
	must(t, err)
	t.Cleanup(func() { _ = s.tpm.Kill() })
	s.measure(firmware.Options{})
	s.sp, err = simsp.OnPty(simsp.Config{Model: "913-0000019", Revision: 6, Serial: s.serial})
	must(t, err)
	t.Cleanup(func() { _ = s.sp.Close() })
	c := vault.DefaultConfig()
	c.State.Copies = []string{filepath.Join(s.dir, "a"), filepath.Join(s.dir, "b")}
	c.TPM.Device, c.TPM.EventLog = s.tpm.Device(), filepath.Join(s.dir, "event.log")
	c.SP.Port = s.sp.Path()
	c.Peer.Listen, c.Peer.Peers = peers[i], peers
	c.Underlay.Listen = fmt.Sprintf("%s%d:12350", r.net, i+1)
	c.API.Socket = filepath.Join(s.dir, "api.sock")
	c.Claim.Fingerprint = r.fp
	c.Relax.SoftwareTPM = true
	path := filepath.Join(s.dir, "data0")
	must(t, disk.MakePattern(path, diskSize, uint64(i)))
	c.Disks = []vault.DiskConfig{{ID: "data0", Backend: "luks2", Path: path, Vendor: "1b96", Model: "SIM-DISK", Serial: s.serial}}
	must(t, c.Validate())
	s.cfg = c
	return s
}

// measure boots the simulated firmware.
func (s *testSled) measure(o firmware.Options) {
	t := s.rack.t
	t.Helper()
	dev, err := tpm.Open(t.Context(), tpm.Config{Device: s.tpm.Device()})
	must(t, err)
	defer func() { must(t, dev.Close()) }()
	var log []byte
	must(t, dev.Do(t.Context(), func(ses *tpm.Session) (err error) {
		log, err = firmware.Boot(o, ses.ExtendPCR)
		return err
	}))
	must(t, os.WriteFile(filepath.Join(s.dir, "event.log"), log, 0o600))
}

// start runs the daemon.
func (s *testSled) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan error, 1)
	log := slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o := vault.Options{Version: "test", Start: time.Now(), Log: log}
	if s.options != nil {
		o = s.options(o)
	}
	go func() { s.done <- vault.Run(ctx, s.cfg, o) }()
	s.rack.t.Cleanup(func() { s.stop() })
}

// stop ends the daemon.
func (s *testSled) stop() {
	if s.cancel == nil {
		return
	}
	s.cancel()
	if err := <-s.done; err != nil {
		s.rack.t.Errorf("%s: %v\n%s", s.name, err, s.logs)
	}
	s.cancel = nil
}

// powerCycle stops the daemon, cuts the TPM's power and boots the firmware.
func (s *testSled) powerCycle(o firmware.Options) {
	t := s.rack.t
	t.Helper()
	s.stop()
	must(t, s.tpm.PowerCycle())
	s.measure(o)
	s.start()
}

func (s *testSled) local() *client.Local { return client.NewLocal(s.cfg.API.Socket) }

// await polls a status until it satisfies f: a state that the sled reaches by itself.
func (s *testSled) await(what string, f func(*testSled) bool) {
	t := s.rack.t
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f(s) {
		if time.Now().After(deadline) {
			st, err := s.local().StatusJSON(t.Context())
			t.Fatalf("%s never reached %s: %s %v\n%s", s.name, what, st, err, s.logs)
		}
		<-tick.C
	}
}

func (s *testSled) state() string {
	st, err := s.local().Status(s.rack.t.Context())
	if err != nil {
		return err.Error()
	}
	return string(st.State)
}

func (r *testRack) controller() *controller.Controller {
	r.t.Helper()
	c, err := controller.Open(filepath.Join(r.dir, "rack", controller.RackFile), func(e controller.Event) { r.t.Log(e.Sled, e.Text) })
	must(r.t, err)
	r.t.Cleanup(c.Close)
	return c
}

// enroll writes the rack file from what the sleds say, and enrolls them.
func (r *testRack) enroll() {
	t := r.t
	t.Helper()
	var b strings.Builder
	b.WriteString("name = \"test\"\n")
	for _, s := range r.sleds {
		s.await("unclaimed", func(s *testSled) bool { return s.state() == "unclaimed" })
		ek, err := s.local().TPM(t.Context())
		must(t, err)
		fmt.Fprintf(&b, "[[sled]]\nname = %q\npart = \"913-0000019\"\nserial = %q\nunderlay = %q\nek_name = %q\n", s.name, s.serial, s.cfg.Underlay.Listen, ek.EKName)
	}
	must(t, os.WriteFile(filepath.Join(r.dir, "rack", controller.RackFile), []byte(b.String()), 0o600))
	_, err := r.controller().Enroll(t.Context())
	must(t, err)
}

func (r *testRack) init() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	if _, err := r.controller().Init(ctx); err != nil {
		for _, s := range r.sleds {
			r.t.Logf("%s\n%s", s.name, s.logs)
		}
		r.t.Fatal(err)
	}
}
