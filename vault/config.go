// Package vault is the daemon of one sled: the boot order, the goroutine that owns the trust-quorum node, and the wiring
// between the parts below it.
//
// [Run] is the way in. boot.go holds the whole order of a boot, driver.go how messages move, unlock.go how disks open,
// enroll.go how a sled joins a rack. It decides no protocol question (vault/quorum), no policy of sealing (sealing), no
// question of trust between sleds (rot). Read boot-path.md next.
package vault

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/unlock"
)

// Config is the daemon's configuration file. Unknown keys are refused. Every key is documented in sledvaultd(8).
type Config struct {
	State    StateConfig    `toml:"state"`
	TPM      TPMConfig      `toml:"tpm"`
	SP       SPConfig       `toml:"sp"`
	Peer     PeerConfig     `toml:"peer"`
	Underlay UnderlayConfig `toml:"underlay"`
	API      APIConfig      `toml:"api"`
	Claim    ClaimConfig    `toml:"claim"`
	Unlock   UnlockConfig   `toml:"unlock"`
	Disks    []DiskConfig   `toml:"disk"`
	LRTQ     LRTQConfig     `toml:"lrtq"`
	Metrics  MetricsConfig  `toml:"metrics"`
	Log      LogConfig      `toml:"log"`
	Relax    RelaxConfig    `toml:"relax"`
}

// StateConfig says where the sealed state lies.
type StateConfig struct {
	// Copies are two folders on different media. Both hold the same files.
	Copies []string `toml:"copies"`
}

// TPMConfig says which TPM to use and for what.
type TPMConfig struct {
	Device         string   `toml:"device"`          // "/dev/tpmrm0", or "unix:/path" for a software TPM
	CommandTimeout Duration `toml:"command_timeout"` // default 20 s
	PCRs           []int    `toml:"pcrs"`            // sealing PCRs, default 0, 2, 7, 11, 12, 14
	EventLog       string   `toml:"event_log"`       // the firmware's measurement log
	CounterIndex   uint32   `toml:"counter_index"`   // NV index of the rollback counter, default 0x01805c01
	ClaimIndex     uint32   `toml:"claim_index"`     // NV index of the claim, default 0x01805c02
}

// SPConfig says how to reach the service processor.
type SPConfig struct {
	Port     string   `toml:"port"`     // serial device
	Baud     int      `toml:"baud"`     // default 3000000
	Deadline Duration `toml:"deadline"` // for reading the identity, default 30 s
}

// PeerConfig says where the other sleds are.
type PeerConfig struct {
	Listen string   `toml:"listen"` // "ip:port" on the bootstrap network
	Peers  []string `toml:"peers"`  // "ip:port" of every sled; the own address may be among them
}

// UnderlayConfig says where the rack controller reaches this sled.
type UnderlayConfig struct {
	Listen string `toml:"listen"` // "ip:port" on the underlay network
}

// APIConfig configures the local API.
type APIConfig struct {
	Socket string         `toml:"socket"`
	Roles  []api.RoleRule `toml:"role"`
}

// ClaimConfig says who may claim an unclaimed sled.
type ClaimConfig struct {
	Fingerprint string `toml:"fingerprint"` // of the rack's membership key, as sledvault rack new prints it
}

// UnlockConfig bounds how long secrets stay in memory.
type UnlockConfig struct {
	// Deadline is how long the rack secret is kept for disks that do not open; default 2 min.
	Deadline Duration `toml:"deadline"`
}

// DiskConfig is one disk to unlock.
type DiskConfig struct {
	ID      string `toml:"id"`
	Backend string `toml:"backend"` // "luks2"
	Path    string `toml:"path"`
	Vendor  string `toml:"vendor"` // vendor, model and serial enter the key: protocol.md §4
	Model   string `toml:"model"`
	Serial  string `toml:"serial"`
	Mapping string `toml:"mapping"` // device-mapper name, default "sledvault-ID"
}

// LogConfig configures the log on stderr.
type LogConfig struct {
	Level  string `toml:"level"`  // debug, info, warn, error; default info
	Format string `toml:"format"` // text or json; default text
	// TraceMarker is a file that exists, to be told of saves and frames (ledger.md §10); default none.
	TraceMarker string `toml:"trace_marker"`
}

// RelaxConfig holds the named relaxations. Each is visible in the log, in status and in evidence.
type RelaxConfig struct {
	SoftwareTPM bool `toml:"software-tpm"` // accept a TPM that is a program
}

// Names lists the active relaxations, that of the build included.
func (r RelaxConfig) Names() []string {
	out := []string{}
	if r.SoftwareTPM {
		out = append(out, "software-tpm")
	}
	return append(out, builtRelaxed()...)
}

// Duration is a time.Duration in TOML text form ("20s").
type Duration time.Duration

// UnmarshalText reads "20s".
func (d *Duration) UnmarshalText(t []byte) error {
	v, err := time.ParseDuration(string(t))
	if err == nil && v <= 0 {
		err = errors.New("must be positive")
	}
	*d = Duration(v)
	return err
}

// MarshalText writes "20s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

const configHint = "correct the file and run: sledvaultd --check-config --config FILE"

// CodeConfig marks a configuration that cannot be used.
const CodeConfig reason.Code = "config"

// LoadConfig reads and checks a configuration file.
func LoadConfig(path string) (*Config, error) {
	if fi, err := os.Stat(path); err == nil && fi.Size() > 1<<20 {
		return nil, reason.New(CodeConfig, configHint, "config: %s: larger than 1 MiB", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		hint := "check the path"
		if errors.Is(err, fs.ErrPermission) {
			hint = "check the file's permissions"
		}
		return nil, reason.Wrap(err, CodeConfig, hint, "config")
	}
	c := DefaultConfig()
	md, err := toml.Decode(string(b), &c)
	if err != nil {
		return nil, reason.New(CodeConfig, configHint, "config: %s: %.300s", path, err)
	}
	if err := c.checkRelaxed(&md); err != nil {
		return nil, err
	}
	if u := md.Undecoded(); len(u) > 0 {
		return nil, reason.New(CodeConfig, configHint, "config: %s: unknown key %.100q", path, u[0].String())
	}
	if err := c.Validate(); err != nil {
		return nil, reason.Wrap(err, CodeConfig, configHint, "config: %s", path)
	}
	return &c, nil
}

// DefaultConfig is the configuration before a file is read.
func DefaultConfig() Config {
	return Config{
		TPM: TPMConfig{
			Device: "/dev/tpmrm0", CommandTimeout: Duration(20 * time.Second), PCRs: []int{0, 2, 7, 11, 12, 14},
			EventLog: "/sys/kernel/security/tpm0/binary_bios_measurements", CounterIndex: 0x01805c01, ClaimIndex: 0x01805c02,
		},
		SP:     SPConfig{Baud: 3_000_000, Deadline: Duration(30 * time.Second)},
		API:    APIConfig{Socket: "/run/sledvault/api.sock"},
		Unlock: UnlockConfig{Deadline: Duration(2 * time.Minute)},
		LRTQ:   LRTQConfig{Ledgers: []string{}, Peers: []string{}},
		Log:    LogConfig{Level: "info", Format: "text"},
	}
}

// Validate reports the first thing that cannot work.
func (c *Config) Validate() error {
	if err := c.checkRelaxed(nil); err != nil {
		return err
	}
	if len(c.State.Copies) != 2 || c.State.Copies[0] == c.State.Copies[1] {
		return errors.New("[state] copies must name two different folders")
	}
	abs := map[string]string{
		"[state] copies": c.State.Copies[0], "[state] copies ": c.State.Copies[1], "[api] socket": c.API.Socket,
		"[sp] port": c.SP.Port, "[tpm] event_log": c.TPM.EventLog, "[tpm] device": strings.TrimPrefix(c.TPM.Device, "unix:"),
	}
	for _, k := range []string{"[state] copies", "[state] copies ", "[api] socket", "[sp] port", "[tpm] event_log", "[tpm] device"} {
		if !filepath.IsAbs(abs[k]) {
			return fmt.Errorf("%s must be an absolute path: have %.120q", strings.TrimSpace(k), abs[k])
		}
	}
	for i, p := range c.TPM.PCRs {
		if p < 0 || p > 15 || slices.Contains(c.TPM.PCRs[:i], p) {
			return fmt.Errorf("[tpm] pcrs must be different numbers from 0 to 15: have %v", c.TPM.PCRs)
		}
	}
	if len(c.TPM.PCRs) == 0 {
		return errors.New("[tpm] pcrs must not be empty")
	}
	for name, idx := range map[string]uint32{"counter_index": c.TPM.CounterIndex, "claim_index": c.TPM.ClaimIndex} {
		if idx < 0x01800000 || idx > 0x01bfffff {
			return fmt.Errorf("[tpm] %s must lie in the owner range 0x01800000 to 0x01bfffff: have %#x", name, idx)
		}
	}
	if c.TPM.CounterIndex == c.TPM.ClaimIndex {
		return errors.New("[tpm] counter_index and claim_index must differ")
	}
	if _, err := c.peerListen(); err != nil {
		return err
	}
	if _, err := parseAddrs(c.Peer.Peers); err != nil {
		return err
	}
	if _, err := netip.ParseAddrPort(c.Underlay.Listen); err != nil {
		return fmt.Errorf("[underlay] listen must be ip:port: have %.60q", c.Underlay.Listen)
	}
	if l := c.Metrics.Listen; l != "" {
		if _, err := netip.ParseAddrPort(l); err != nil {
			return fmt.Errorf("[metrics] listen must be ip:port: have %.60q", l)
		}
	}
	if fp := c.Claim.Fingerprint; fp != "" {
		if _, err := enroll.ParseFingerprint(fp); err != nil {
			return fmt.Errorf("[claim] fingerprint: %w", err)
		}
	}
	for _, r := range c.API.Roles {
		if !slices.Contains(api.Roles(), r.Role) {
			return fmt.Errorf("[[api.role]] name must be one of %v: have %.40q", api.Roles(), r.Role)
		}
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) || !slices.Contains([]string{"text", "json"}, c.Log.Format) {
		return errors.New("[log] level must be debug, info, warn or error, and format text or json")
	}
	if m := c.Log.TraceMarker; m != "" && !filepath.IsAbs(m) {
		return fmt.Errorf("[log] trace_marker must be an absolute path: have %.120q", m)
	}
	if err := c.LRTQ.validate(); err != nil {
		return err
	}
	return c.validateDisks()
}

func (c *Config) validateDisks() error {
	seen := map[string]bool{}
	for i, d := range c.Disks {
		switch {
		case !validName(d.ID):
			return fmt.Errorf("[[disk]] %d: id must be 1 to 64 letters, digits, dots, hyphens or underscores: have %.80q", i+1, d.ID)
		case seen[d.ID]:
			return fmt.Errorf("[[disk]] id %q appears twice", d.ID)
		case d.Backend != unlock.BackendLUKS2:
			return fmt.Errorf("[[disk]] %s: backend must be %q: have %.40q", d.ID, unlock.BackendLUKS2, d.Backend)
		case !filepath.IsAbs(d.Path):
			return fmt.Errorf("[[disk]] %s: path must be absolute: have %.120q", d.ID, d.Path)
		case d.Mapping != "" && !validName(d.Mapping):
			return fmt.Errorf("[[disk]] %s: mapping must be a plain name: have %.80q", d.ID, d.Mapping)
		}
		if err := d.identity().Validate(); err != nil {
			return fmt.Errorf("[[disk]] %s: %w", d.ID, err)
		}
		seen[d.ID] = true
	}
	return nil
}

// validName accepts names that are safe in paths, arguments and URLs.
func validName(s string) bool {
	return len(s) > 0 && len(s) <= 64 && s[0] != '.' && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
	})
}

func (d DiskConfig) identity() keys.Disk {
	return keys.Disk{Vendor: d.Vendor, Model: d.Model, Serial: d.Serial}
}

func (d DiskConfig) disk() unlock.Disk {
	m := d.Mapping
	if m == "" {
		m = "sledvault-" + d.ID
	}
	return unlock.Disk{ID: d.ID, Backend: d.Backend, Path: d.Path, Identity: d.identity(), Mapping: m}
}

func (c *Config) peerListen() (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(c.Peer.Listen)
	if err != nil {
		return a, fmt.Errorf("[peer] listen must be ip:port: have %.60q", c.Peer.Listen)
	}
	return a, nil
}

func parseAddrs(in []string) ([]netip.AddrPort, error) {
	if len(in) > maxPeers {
		return nil, fmt.Errorf("peers: have %d addresses, want at most %d", len(in), maxPeers)
	}
	out := make([]netip.AddrPort, 0, len(in))
	for _, s := range in {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			return nil, fmt.Errorf("peer address must be ip:port: have %.60q", s)
		}
		out = append(out, a)
	}
	return out, nil
}

// maxPeers bounds the list of peer addresses: a rack has at most 32 sleds, and a swap may show both.
const maxPeers = 256
