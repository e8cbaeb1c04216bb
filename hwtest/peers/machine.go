//go:build linux

package peers

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/internal/doctor"
	"github.com/sledvault/sledvault/vault/reason"
)

// tangd has no place in any PATH.
const (
	tangd       = "/usr/libexec/tangd"
	tangdKeygen = "/usr/libexec/tangd-keygen"
)

// tools are the programs of the peers, each with its Debian package. Systemd-creds comes with the system or not at all.
var tools = [...]struct{ name, pkg string }{
	{"clevis", "clevis"},
	{"clevis-encrypt-tpm2", "clevis-tpm2"},
	{"jose", "jose"},
	{"curl", "curl"},
	{"tpm2_unseal", "tpm2-tools"},
	{tangd, "tang"},
	{tangdKeygen, "tang"},
}

// Reasons of the bench.
const (
	CodeLacking reason.Code = "bench-lacking" // the peers are not installed
	CodeBuild   reason.Code = "bench-build"   // the programs to measure could not be built
)

// Lacking names the Debian packages that this machine needs for the comparison and does not have.
func Lacking() (packages []string) {
	for _, t := range tools {
		if _, err := doctor.Path(t.name); err != nil && !slices.Contains(packages, t.pkg) {
			packages = append(packages, t.pkg)
		}
	}
	return packages
}

// Check returns an error that names what is missing.
func Check() error {
	if lack := Lacking(); len(lack) > 0 {
		return reason.New(CodeLacking, "add --install, as root", "peers: this machine lacks %s", strings.Join(lack, ", "))
	}
	return doctor.Check(doctor.ForDemo)
}

// Install installs the Debian packages that are missing. Progress goes to w.
func Install(ctx context.Context, w io.Writer) error {
	if err := doctor.Install(ctx, w); err != nil {
		return err
	}
	lack := Lacking()
	if len(lack) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return reason.New(CodeLacking, "run the command once as root", "peers: installing packages needs root")
	}
	for _, args := range [][]string{{"update"}, append([]string{"install", "-y", "--no-install-recommends"}, lack...)} {
		_, _ = fmt.Fprintln(w, "apt-get", strings.Join(args, " "))
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return reason.Wrap(err, CodeLacking, "run the command by hand and look at its output",
				"peers: apt-get %s: %.500s", args[0], bytes.TrimSpace(out))
		}
	}
	return Check()
}

// Machine is where and when the figures were made.
type Machine struct {
	CPU        string   `json:"cpu"`
	Processors int      `json:"processors"`
	Kernel     string   `json:"kernel"`
	Go         string   `json:"go"`
	Commit     string   `json:"commit"`
	Packages   []string `json:"packages"` // of the peers, with versions
	LoadBefore string   `json:"load_before"`
	LoadAfter  string   `json:"load_after"`
}

func look(ctx context.Context) Machine {
	m := Machine{CPU: cpu(), Processors: runtime.NumCPU(), Go: runtime.Version(), Commit: "unknown", LoadBefore: load()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output(); err == nil {
		m.Commit = strings.TrimSpace(string(out))
	}
	args := []string{"--show", "--showformat=${Package} ${Version}\n", "clevis", "tang", "tpm2-tools", "systemd", "swtpm", "cryptsetup-bin"}
	out, _ := exec.CommandContext(ctx, "dpkg-query", args...).Output() // what is not a Debian package has no line
	m.Packages = strings.Split(strings.TrimSpace(string(out)), "\n")
	return m
}

func cpu() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// load is the load average of the last minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

func sizes(paths ...string) (out []Binary) {
	for _, p := range paths {
		if fi, err := os.Stat(p); err == nil {
			out = append(out, Binary{filepath.Base(p), fi.Size()})
		}
	}
	return out
}

// resident reads how much memory a process has, in KiB: all of it, and what is not backed by files.
func resident(pid int) (all, anon int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("peers: memory of a daemon: %w", err)
	}
	for in := bufio.NewScanner(bytes.NewReader(b)); in.Scan(); {
		f := strings.Fields(in.Text())
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64) // other lines hold other things
		switch f[0] {
		case "VmRSS:":
			all = n
		case "RssAnon:":
			anon = n
		}
	}
	return all, anon, nil
}
