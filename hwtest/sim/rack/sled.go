//go:build linux

package simrack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/hwtest/sim/disk"
	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	simsp "github.com/sledvault/sledvault/hwtest/sim/sp"
	"github.com/sledvault/sledvault/hwtest/sim/swtpm"
	"github.com/sledvault/sledvault/internal/doctor"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/ident"
)

// part is the part number of every simulated sled.
const part = "913-0000019"

// Sled is one simulated sled. Its paths and addresses do not change while the rack lives.
type Sled struct {
	Name           string
	Board          ident.Baseboard
	Dir            string
	Config         string
	State          [2]string
	Log            string // of the daemon
	Trace          string // what the daemon marks for whoever traces its system calls
	API            string // unix socket
	Peer, Underlay string // "ip:port"
	TPMSocket      string
	TPMDir         string
	TPMLog         string
	EventLog       string
	Disks          []Disk

	rack    *Rack
	host    int    // last byte of the address
	temp    string // folder for temporary files of the daemon
	tpm     *swtpm.Daemon
	sp      *simsp.Line
	orders  chan order
	entry   string        // its table in the rack file; "" before it was asked for
	ended   chan struct{} // closed when its supervisor has ended; nil before the first start
	pid     atomic.Int64  // of the daemon, 0 while none runs
	change  changes       // of pid
	started atomic.Uint64 // how many daemons this sled has seen
}

// Disk is one disk of a sled.
type Disk struct {
	ID, Path              string
	Vendor, Model, Serial string
	Mapping               string

	seed uint64
	size int64
}

// newSled says where everything of a sled lies. Nothing is made yet.
func (r *Rack) newSled(name string, host int, serial string) *Sled {
	dir := filepath.Join(r.Dir, name)
	in := func(p string) string { return filepath.Join(dir, p) }
	id := "data0"
	return &Sled{
		Name: name, Board: ident.Baseboard{Part: part, Serial: serial}, Dir: dir, Config: in("sledvaultd.toml"),
		State: [2]string{in("state-a"), in("state-b")}, Log: in("log"), Trace: in("trace"), API: in("api.sock"),
		Peer: r.addr(host, peerPort), Underlay: r.addr(host, underlayPort),
		TPMSocket: in("tpm.sock"), TPMDir: in("tpm"), TPMLog: in("tpm.log"), EventLog: in("eventlog"),
		Disks: []Disk{{
			ID: id, Path: in(id + ".img"), Vendor: "SLEDVAULT", Model: "SIM-1", Serial: "S" + serial + "-0",
			Mapping: filepath.Base(r.Dir) + "-" + name + "-" + id, seed: uint64(host), size: r.o.DiskSize,
		}},
		rack: r, host: host, temp: in("tmp"), orders: make(chan order),
	}
}

// build makes the folders, starts TPM and service processor, and lets the firmware boot.
func (s *Sled) build(ctx context.Context) error {
	for _, d := range []string{s.Dir, s.State[0], s.State[1], s.TPMDir, s.temp} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("simrack: make folder: %w", err)
		}
	}
	if err := os.WriteFile(s.Trace, nil, 0o600); err != nil {
		return fmt.Errorf("simrack: make the trace: %w", err)
	}
	var err error
	if s.sp, err = simsp.OnPty(simsp.Config{Model: s.Board.Part, Serial: s.Board.Serial, Revision: 7, IdleZeros: true}); err != nil {
		return err
	}
	if s.tpm, err = swtpm.StartUnix(ctx, swtpm.Config{Dir: s.TPMDir, Socket: s.TPMSocket, LogPath: s.TPMLog}); err != nil {
		return err
	}
	return s.measure(firmware.Options{})
}

// measure is what the firmware does before the operating system runs: it starts the TPM up, extends the registers and
// leaves the log. Its connection is gone before the daemon comes: the TPM serves one client.
func (s *Sled) measure(o firmware.Options) error {
	c, err := net.DialTimeout("unix", s.TPMSocket, patience)
	if err != nil {
		return fmt.Errorf("simrack: firmware: %w", err)
	}
	bus := tpm.NewConn(c, patience)
	defer func() { _ = bus.Close() }()
	if err := swtpm.Startup(bus); err != nil {
		return fmt.Errorf("simrack: firmware: start the TPM up: %w", err)
	}
	log, err := firmware.Boot(o, func(pcr int, digest [32]byte) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
		}.Execute(bus)
		return err
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.EventLog, log, 0o600); err != nil {
		return fmt.Errorf("simrack: firmware: write the event log: %w", err)
	}
	return nil
}

// makeDisks writes the patterns.
func (s *Sled) makeDisks() error {
	for _, d := range s.Disks {
		if err := disk.MakePattern(d.Path, d.size, d.seed); err != nil {
			return err
		}
	}
	return nil
}

// configure writes the daemon's configuration.
func (s *Sled) configure(peers []string) error {
	q := strconv.Quote // no value here needs more of TOML's quoting than Go's
	list := make([]string, len(peers))
	for i, p := range peers {
		list[i] = q(p)
	}
	var b strings.Builder
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	line("# %s of a simulated rack\n[state]\ncopies = [%s, %s]\n", s.Name, q(s.State[0]), q(s.State[1]))
	line("[tpm]\ndevice = %s\nevent_log = %s\n", q("unix:"+s.TPMSocket), q(s.EventLog))
	line("[sp]\nport = %s\n", q(s.sp.Path()))
	line("[peer]\nlisten = %s\npeers = [%s]\n", q(s.Peer), strings.Join(list, ", "))
	line("[underlay]\nlisten = %s\n\n[api]\nsocket = %s\n", q(s.Underlay), q(s.API))
	line("[claim]\nfingerprint = %s\n\n[log]\nlevel = %s\ntrace_marker = %s\n", q(s.rack.fingerprint), q(s.rack.o.LogLevel), q(s.Trace))
	if d := s.rack.o.Deadline; d != 0 {
		line("[unlock]\ndeadline = %s\n", q(d.String()))
	}
	line("[relax]\nsoftware-tpm = true")
	for _, d := range s.Disks {
		line("\n[[disk]]\nid = %s\nbackend = \"luks2\"\npath = %s\nvendor = %s\nmodel = %s\nserial = %s\nmapping = %s",
			q(d.ID), q(d.Path), q(d.Vendor), q(d.Model), q(d.Serial), q(d.Mapping))
	}
	if err := os.WriteFile(s.Config, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("simrack: write configuration: %w", err)
	}
	return nil
}

// Argv starts the sled's daemon.
func (s *Sled) Argv() []string { return []string{s.rack.o.Daemon, "--config", s.Config} }

// Client calls the sled's local API.
func (s *Sled) Client() *client.Local { return client.NewLocal(s.API) }

// Pid is the daemon's process id, 0 while none runs.
func (s *Sled) Pid() int { return int(s.pid.Load()) }

// TPMPid is the process id of the sled's TPM.
func (s *Sled) TPMPid() int { return s.tpm.Pid() }

// LogTail is the end of the daemon's log, at most n bytes, from the beginning of a line.
func (s *Sled) LogTail(n int64) string {
	f, err := os.Open(s.Log)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, 2)
	if err != nil {
		return ""
	}
	at := max(0, size-n)
	b := make([]byte, size-at)
	if _, err := f.ReadAt(b, at); err != nil {
		return ""
	}
	if at > 0 {
		_, rest, _ := strings.Cut(string(b), "\n")
		return rest
	}
	return string(b)
}

// unmap removes device-mapper's mappings, as a power cut does. Where there is no device-mapper there are none.
func (s *Sled) unmap() error {
	var errs []error
	for _, d := range s.Disks {
		if _, err := os.Stat("/dev/mapper/" + d.Mapping); err != nil {
			continue
		}
		bin, err := doctor.Path("cryptsetup")
		if err == nil {
			err = exec.Command(bin, "close", d.Mapping).Run()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("simrack: close %s: %w", d.Mapping, err))
		}
	}
	return errors.Join(errs...)
}

// dismantle ends the hardware. The supervisor must have ended.
func (s *Sled) dismantle() error {
	errs := []error{s.unmap()}
	if s.sp != nil {
		errs = append(errs, s.sp.Close())
	}
	if s.tpm != nil {
		errs = append(errs, s.tpm.Kill())
	}
	return errors.Join(errs...)
}
