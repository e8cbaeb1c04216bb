// Package doctor finds out what this machine lacks, and knows the command that mends it.
package doctor

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/vault/reason"
)

// Need says for what something is needed.
type Need string

// What things are needed for.
const (
	ForDemo     Need = "demo and tests" // missing: --install mends it
	ForDisks    Need = "mapped disks"   // missing: keys are proved, nothing is mapped
	ForSled     Need = "a real sled"    // missing: only software devices work here
	ForHardened Need = "a hardened daemon"
)

// Finding is one thing that was looked at.
type Finding struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	For     Need   `json:"for"`
	Found   string `json:"found"`
	Remedy  string `json:"remedy,omitempty"` // the command that mends it
	Package string `json:"-"`                // Debian package that --install installs
}

// tools are programs, each with its Debian package.
var tools = [...]struct{ name, pkg string }{
	{"swtpm", "swtpm"}, {"cryptsetup", "cryptsetup-bin"},
}

// Path finds a program, also in the folders that an ordinary user's PATH leaves out.
func Path(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/local/sbin/"} {
		if p, err := exec.LookPath(dir + name); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("doctor: %s: %w", name, exec.ErrNotFound)
}

// Examine looks at this machine.
func Examine() []Finding {
	var out []Finding
	for _, t := range tools {
		f := Finding{Name: t.name, For: ForDemo, Package: t.pkg, Remedy: "apt-get install --no-install-recommends " + t.pkg}
		if p, err := Path(t.name); err == nil {
			f.OK, f.Found, f.Remedy = true, p, ""
		} else {
			f.Found = "absent"
		}
		out = append(out, f)
	}
	out = append(out, device("device-mapper", "/dev/mapper/control", ForDisks, "modprobe dm-crypt"),
		device("TPM", "/dev/tpmrm0", ForSled, "enable the TPM in the firmware; let the daemon's user open /dev/tpmrm0 (group tss)"),
		serialLine(), memlock())
	return out
}

// serialLine looks for any serial device that this user can open: which one leads to the service processor is in the
// daemon's configuration.
func serialLine() Finding {
	f := Finding{Name: "serial line", For: ForSled}
	var last error
	for _, pattern := range []string{"/dev/ttyS*", "/dev/ttyUSB*", "/dev/ttyACM*", "/dev/ttyAMA*"} {
		names, _ := filepath.Glob(pattern) // the patterns are good
		for _, name := range names {
			fd, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
			if err != nil {
				last = err
				continue
			}
			_ = fd.Close()
			f.OK, f.Found = true, name
			return f
		}
	}
	f.Found, f.Remedy = "absent", "connect the service processor's line; let the daemon's user open it (group dialout)"
	if last != nil {
		f.Found = last.Error()
	}
	return f
}

func device(name, path string, need Need, remedy string) Finding {
	f := Finding{Name: name, For: need, Found: path}
	fd, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		f.Found, f.Remedy = err.Error(), remedy
		return f
	}
	_ = fd.Close()
	f.OK = true
	return f
}

// memlockWanted is enough for all the pages of secrets that a daemon uses.
const memlockWanted = 1 << 20

const memlockRemedy = "ulimit -l 1024, or LimitMEMLOCK=infinity in the unit"

func memlock() Finding {
	f := Finding{Name: "lockable memory", For: ForHardened}
	var rl unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &rl); err != nil {
		f.Found, f.Remedy = err.Error(), memlockRemedy
		return f
	}
	if f.Found = fmt.Sprintf("%d bytes", rl.Cur); rl.Cur == unix.RLIM_INFINITY {
		f.Found = "unlimited"
	}
	if f.OK = rl.Cur >= memlockWanted; !f.OK {
		f.Remedy = memlockRemedy
	}
	return f
}

// Lacking lists the findings that stand in the way of a need.
func Lacking(fs []Finding, need Need) []Finding {
	return slices.DeleteFunc(slices.Clone(fs), func(f Finding) bool { return f.OK || f.For != need })
}

// CodeLacking marks a machine that lacks something.
const CodeLacking reason.Code = "doctor-lacking"

// Check returns an error that names what the need lacks, with the command that mends it.
func Check(need Need) error { return lacks(Examine(), need) }

func lacks(fs []Finding, need Need) error {
	lack := Lacking(fs, need)
	if len(lack) == 0 {
		return nil
	}
	names := make([]string, len(lack))
	for i, f := range lack {
		names[i] = f.Name
	}
	return reason.New(CodeLacking, "sledvault doctor --install, as root", "doctor: this machine lacks %s for %s", strings.Join(names, ", "), need)
}

// Install installs the packages that the demo and the tests lack. Progress goes to w.
func Install(ctx context.Context, w io.Writer) error {
	lack := Lacking(Examine(), ForDemo)
	if len(lack) == 0 {
		return nil
	}
	if err := install(ctx, w, lack, os.Geteuid(), aptGet); err != nil {
		return err
	}
	return Check(ForDemo)
}

// aptGet runs apt-get and returns what it printed.
func aptGet(ctx context.Context, args []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	return cmd.CombinedOutput()
}

func install(ctx context.Context, w io.Writer, lack []Finding, uid int, run func(context.Context, []string) ([]byte, error)) error {
	if uid != 0 {
		return reason.New(CodeLacking, "run the command once as root: go run ./cmd/sledvault doctor --install",
			"doctor: installing packages needs root")
	}
	args := []string{"install", "-y", "--no-install-recommends"}
	for _, f := range lack {
		args = append(args, f.Package)
	}
	for _, a := range [][]string{{"update"}, args} {
		_, _ = fmt.Fprintln(w, "apt-get", strings.Join(a, " "))
		if out, err := run(ctx, a); err != nil {
			return reason.Wrap(err, CodeLacking, "run the command by hand and look at its output",
				"doctor: apt-get %s: %.500s", a[0], strings.TrimSpace(string(out)))
		}
	}
	return nil
}
