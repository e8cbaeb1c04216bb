package vault

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sledvault/sledvault/internal/landlock"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
)

// Reasons of hardening.
const (
	CodeHarden reason.Code = "harden" // a measure that protects the process did not take
)

// confine takes away every file that the daemon and its cryptsetup have no business with. It holds for the whole process
// and for good, so only a program that is nothing but the daemon asks for it. What did not take is shown in status.
func (d *Daemon) confine(wanted bool) {
	if !wanted {
		d.confined = []api.Hardening{{Name: "landlock", Detail: "not asked for"}}
		return
	}
	mapper := d.disks.backend.CanMap()
	_ = os.MkdirAll(filepath.Dir(d.cfg.API.Socket), 0o755) //nolint:gosec // as the API makes it; a rule needs its folder; who needs the folder reports the error
	if mapper {
		_ = os.Mkdir("/run/cryptsetup", 0o700) // cryptsetup's locks; it would make it itself
	}
	rules := confinement(d.cfg, mapper)
	res, err := landlock.Restrict(rules)
	h := api.Hardening{Name: "landlock", OK: err == nil, Detail: fmt.Sprintf("ABI %d", res.ABI)}
	if err != nil {
		h.Detail = err.Error()
		d.reasons.CountError(CodeHarden, "", err)
		d.log.Warn("files are not confined", "err", err)
	}
	if absent := missing(d.cfg, res.Skipped); absent != "" {
		h.Detail += "; closed until the daemon is restarted, as it was not there: " + absent
		d.reasons.Count(CodeHarden, "", "closed until the daemon is restarted, as it was not there: "+absent)
		d.log.Warn("not there at the start: restart the daemon when it is", "path", absent)
	}
	if err == nil && slices.ContainsFunc(rules, func(r landlock.Rule) bool { return r.Path == "/dev" }) {
		h.Detail += "; all of /dev is open"
	}
	d.confined = []api.Hardening{h, d.fixPrivileges()}
}

// fixPrivileges is part of a restriction that took, and worth having without.
func (d *Daemon) fixPrivileges() api.Hardening {
	h := api.Hardening{Name: "no-new-privileges"}
	err := landlock.NoNewPrivileges()
	if err == nil {
		h.OK, err = landlock.Privileges()
	}
	if err != nil {
		h.Detail = err.Error()
	}
	return h
}

// missing lists the state folders that are not there and so got no rule.
func missing(c Config, skipped []string) string {
	var out []string
	for _, n := range c.State.Copies {
		if slices.Contains(skipped, n) {
			out = append(out, n)
		}
	}
	return strings.Join(out, ", ")
}

// confinement lists what the daemon and the cryptsetup that it runs need, and nothing else (threat-model.md §4).
//
// With device-mapper the plain devices appear while we run, and a disk that was pulled comes back as another file: then
// /dev stays open. That gives away little: who may use device-mapper reaches every block device through it. It stays open,
// too, while a device is still to come: early in the boot of a machine its nodes appear one after another.
func confinement(c Config, mapper bool) []landlock.Rule {
	const (
		read    = landlock.Read
		run     = landlock.Read | landlock.Execute
		change  = landlock.Read | landlock.Write
		own     = landlock.Read | landlock.Write | landlock.Make
		devices = landlock.Read | landlock.Write | landlock.Device
	)
	var rules []landlock.Rule
	allow := func(a landlock.Access, paths ...string) {
		for _, p := range paths {
			rules = append(rules, landlock.Rule{Path: p, Access: a})
		}
	}
	allow(own, c.State.Copies...)
	allow(own, filepath.Dir(c.API.Socket), os.TempDir()) // an encryption in place keeps its new header in the second
	allow(devices, present(c.SP.Port))
	if socket, ok := strings.CutPrefix(c.TPM.Device, "unix:"); ok {
		allow(read, filepath.Dir(socket))
	} else {
		allow(devices, present(c.TPM.Device))
	}
	allow(read, present(c.TPM.EventLog))
	for _, l := range c.LRTQ.Ledgers {
		allow(read, present(l))
	}
	for _, k := range c.Disks {
		allow(devices, present(k.Path))
	}
	if mapper {
		allow(devices, "/dev")
		allow(own, "/dev/mapper", "/run/cryptsetup")
		allow(read, "/run/udev")
	}
	// Programs and libraries, what their start reads, and what the kernel tells.
	allow(run, "/usr", "/bin", "/sbin", "/lib", "/lib64")
	allow(read, "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/ssl", "/etc/gcrypt", "/etc/crypto-policies", "/etc/localtime", "/proc", "/sys")
	allow(change, "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
	return rules
}

// present is the path itself, or while it is not there the folder where it will be: /dev for a device, whose links lead
// to other folders of it.
func present(path string) string {
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if strings.HasPrefix(path, "/dev/") {
		return "/dev"
	}
	if dir := filepath.Dir(path); dir != "/" {
		return dir
	}
	return path
}
