package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const good = `[state]
copies = ["/a", "/b"]
[sp]
port = "/dev/ttyS1"
[peer]
listen = "127.0.0.1:12349"
[underlay]
listen = "127.0.0.1:12350"
[[disk]]
id = "data0"
backend = "luks2"
path = "/dev/null"
vendor = "1b96"
model = "WDC"
serial = "A084A645"
[[api.role]]
name = "observe"
uids = [0]
`

// daemon runs the daemon's command line.
func daemon(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), time.Now(), args, &o, &e)
	return code, o.String(), e.String()
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args []string
		code int
		want string // on stdout for 0, on stderr otherwise
	}{
		"help":       {[]string{"--help"}, 0, "usage: sledvaultd"},
		"short help": {[]string{"-h"}, 0, "Example:"},
		"version":    {[]string{"--version"}, 0, "sledvaultd devel"},
		"nothing":    {nil, 2, "sledvaultd: error: want --config FILE and nothing else"},
		"more":       {[]string{"--config", "x", "y"}, 2, "nothing else"},
		"unknown":    {[]string{"--frobnicate"}, 2, "frobnicate"},
		"no file":    {[]string{"--config", "/nonexistent"}, 1, "sledvaultd: hint: check the path"},
		"folder":     {[]string{"--config", "/"}, 1, "sledvaultd: error: config"},
	} {
		code, out, errs := daemon(t, c.args...)
		have, other := out, errs
		if c.code != 0 {
			have, other = errs, out
		}
		if code != c.code || !strings.Contains(have, c.want) || other != "" {
			t.Errorf("%s: have %d, stdout %q, stderr %q", name, code, out, errs)
		}
	}
}

// TestCheckConfig: every key that can be wrong is refused by its name, with the next step.
func TestCheckConfig(t *testing.T) {
	t.Parallel()
	check := func(text string) (int, string, string) {
		path := filepath.Join(t.TempDir(), "sledvaultd.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return daemon(t, "--config", path, "--check-config")
	}
	if code, out, errs := check(good); code != 0 || !strings.HasSuffix(out, "sledvaultd.toml: ok\n") || errs != "" {
		t.Fatalf("good configuration: have %d %q %q", code, out, errs)
	}
	set := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q in the good configuration", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for want, text := range map[string]string{
		"config: ":                           "not TOML",
		"[state] copies must name two":       set(`["/a", "/b"]`, `["/a"]`),
		"[state] copies must name two diff":  set(`["/a", "/b"]`, `["/a", "/a"]`),
		"[state] copies must be an absolute": set(`"/b"`, `"b"`),
		"[sp] port must be an absolute":      set(`"/dev/ttyS1"`, `"ttyS1"`),
		`unknown key "sp.speed"`:             set(`port =`, "speed = 1\nport ="),
		`unknown key "frobnicate"`:           "frobnicate = 1\n" + good,
		`unknown key "relax.no-evidence`:     good + "[relax]\nno-evidence-at-all = true\n",
		"[peer] listen must be ip:port":      set(`"127.0.0.1:12349"`, `"localhost:12349"`),
		"peer address must be ip:port":       set("[underlay]", "peers = [\"sled:1\"]\n[underlay]"),
		"[underlay] listen must be ip:port":  set(`"127.0.0.1:12350"`, `":12350"`),
		"[[disk]] 1: id must be":             set(`"data0"`, `"../data0"`),
		"[[disk]] data0: backend must be":    set(`"luks2"`, `"none"`),
		"[[disk]] data0: path must be":       set(`"/dev/null"`, `"null"`),
		"[[disk]] data0: mapping must be":    set(`vendor`, "mapping = \"a/b\"\nvendor"),
		"[[disk]] data0: ":                   set(`"WDC"`, `""`),
		`[[disk]] id "data0" appears twice`:  good[:strings.Index(good, "[[api")] + good[strings.Index(good, "[[disk]]"):],
		"[[api.role]] name must be one of":   set(`"observe"`, `"root"`),
		"[tpm] pcrs must be different":       good + "[tpm]\npcrs = [0, 0]\n",
		"[tpm] pcrs must not be empty":       good + "[tpm]\npcrs = []\n",
		"[tpm] counter_index must lie":       good + "[tpm]\ncounter_index = 1\n",
		"[tpm] claim_index must lie":         good + "[tpm]\nclaim_index = 0x01c00000\n",
		"claim_index must differ":            good + "[tpm]\nclaim_index = 0x01805c01\n",
		"[tpm] device must be an absolute":   good + "[tpm]\ndevice = \"tpm0\"\n",
		"[tpm] event_log must be":            good + "[tpm]\nevent_log = \"log\"\n",
		"must be positive":                   good + "[tpm]\ncommand_timeout = \"-1s\"\n",
		"invalid duration":                   good + "[unlock]\ndeadline = \"soon\"\n",
		"[claim] fingerprint":                good + "[claim]\nfingerprint = \"sha256:feed\"\n",
		"[log] level must be":                good + "[log]\nlevel = \"loud\"\n",
		"format text or json":                good + "[log]\nformat = \"xml\"\n",
		"larger than 1 MiB":                  good + strings.Repeat("#", 1<<20),
	} {
		code, out, errs := check(text)
		if code != 1 || out != "" || !strings.Contains(errs, want) || !strings.HasPrefix(errs, "sledvaultd: error: config: ") || !strings.Contains(errs, "\nsledvaultd: hint: ") {
			t.Errorf("%s: have %d %q", want, code, errs)
		}
	}
}

// TestPackaged builds the daemon both ways: one that was built for real sleds refuses each relaxation by its name, also
// those that no version knows; the other has the one that exists.
func TestPackaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	build := func(tags string) string {
		path := filepath.Join(dir, "d-"+tags)
		cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-tags", tags, "-o", path, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build with tags %q: %v: %s", tags, err, out)
		}
		return path
	}
	open, packaged := build(""), build("packaged")
	check := func(daemon, relax string) (string, bool) {
		config := filepath.Join(dir, "config")
		if err := os.WriteFile(config, []byte(good+relax), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), daemon, "--config", config, "--check-config").CombinedOutput()
		return string(out), err == nil
	}
	for _, c := range []struct {
		daemon, relax string
		ok            bool
		want          string
	}{
		{open, "", true, ": ok"},
		{open, "[relax]\nsoftware-tpm = true\n", true, ": ok"},
		{open, "[relax]\nstatic-identity = true\n", false, `unknown key "relax.static-identity"`},
		{packaged, "", true, ": ok"},
		{packaged, "[relax]\nsoftware-tpm = false\n", true, ": ok"},
		{packaged, "[relax]\nsoftware-tpm = true\n", false, "[relax] software-tpm: this program was built for real sleds"},
		{packaged, "[relax]\nstatic-identity = true\n", false, "[relax] static-identity: this program was built"},
		{packaged, "[relax]\nno-evidence = true\nsoftware-tpm = true\n", false, "[relax] software-tpm, no-evidence: this program was built"},
	} {
		out, ok := check(c.daemon, c.relax)
		if ok != c.ok || !strings.Contains(out, c.want) {
			t.Errorf("%s with %q: have %v, %s; want %q", filepath.Base(c.daemon), c.relax, ok, out, c.want)
		}
	}
	for daemon, want := range map[string]bool{open: false, packaged: true} {
		out, err := exec.CommandContext(t.Context(), daemon, "--version").Output()
		if err != nil || strings.Contains(string(out), "packaged") != want {
			t.Errorf("--version: %q, %v", out, err)
		}
	}
}

// TestUnit: the packaged unit starts the daemon the way the man page says, and keeps what the threat model counts on.
func TestUnit(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../packaging/sledvaultd.service")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	for _, want := range []string{
		"Type=notify", "ExecStart=/usr/bin/sledvaultd --config /etc/sledvault/sledvaultd.toml", "LimitMEMLOCK=infinity", "LimitCORE=0",
		"NoNewPrivileges=yes", "ProtectSystem=strict", "DevicePolicy=closed", "WantedBy=sysinit.target", "Restart=on-failure",
	} {
		found := false
		for _, l := range lines {
			found = found || l == want
		}
		if !found {
			t.Errorf("the unit lacks %q", want)
		}
	}
}
