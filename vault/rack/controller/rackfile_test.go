package controller_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/reason"
)

func TestRackFile(t *testing.T) {
	t.Parallel()
	ek := func(c string) string { return "000b" + strings.Repeat(c, 64) }
	sled := func(name, serial, addr, ek string) string {
		return "[[sled]]\nname = \"" + name + "\"\npart = \"p\"\nserial = \"" + serial + "\"\nunderlay = \"" + addr + "\"\nek_name = \"" + ek + "\"\n"
	}
	a, b, c := sled("a", "1", "127.0.0.1:1", ek("0")), sled("b", "2", "127.0.0.1:2", ek("1")), sled("c", "3", "[fd00::1]:3", ek("a"))
	for name, f := range map[string]struct{ text, want string }{
		"good":             {"name = \"left\"\n" + a + b + c, ""},
		"own threshold":    {"name = \"left\"\nthreshold = 2\n" + a + b + c, ""},
		"no sleds yet":     {"name = \"left\"\n", ""},
		"no name":          {a, "name must be"},
		"odd name":         {"name = \"a\\nb\"\n", "name must be"},
		"long name":        {"name = \"" + strings.Repeat("x", 65) + "\"\n", "name must be"},
		"not TOML":         {"name", "rack file: "},
		"unknown key":      {"name = \"left\"\nsize = 3\n", `unknown key "size"`},
		"threshold of one": {"name = \"left\"\nthreshold = 1\n" + a + b + c, "threshold must be"},
		"threshold of all": {"name = \"left\"\nthreshold = 3\n" + a + b + c, "threshold must be"},
		"threshold of 255": {"name = \"left\"\nthreshold = 255\n", "threshold must be"},
		"threshold of 256": {"name = \"left\"\nthreshold = 256\n", "rack file: "},
		"same name":        {"name = \"left\"\n" + a + sled("a", "2", "127.0.0.1:2", ek("1")), "share a name"},
		"same board":       {"name = \"left\"\n" + a + sled("b", "1", "127.0.0.1:2", ek("1")), "share a name"},
		"same address":     {"name = \"left\"\n" + a + sled("b", "2", "127.0.0.1:1", ek("1")), "share a name"},
		"same EK":          {"name = \"left\"\n" + c + sled("b", "2", "127.0.0.1:1", ek("A")), "share a name"},
		"bad label":        {"name = \"left\"\n" + sled("\\u001b[2J", "1", "127.0.0.1:1", ek("0")), "sled 1: name must be"},
		"bad board":        {"name = \"left\"\n" + sled("a", "1:2", "127.0.0.1:1", ek("0")), "sled 1: "},
		"host name":        {"name = \"left\"\n" + sled("a", "1", "sled:1", ek("0")), "underlay must be ip:port"},
		"short EK":         {"name = \"left\"\n" + sled("a", "1", "127.0.0.1:1", "000b00"), "ek_name must be"},
		"not hex":          {"name = \"left\"\n" + sled("a", "1", "127.0.0.1:1", ek("g")), "ek_name must be"},
		"huge":             {"name = \"left\"\n" + strings.Repeat("#", 1<<20), "want at most"},
	} {
		path := filepath.Join(t.TempDir(), "rack.toml")
		must(t, os.WriteFile(path, []byte(f.text), 0o600))
		_, err := controller.Load(path)
		switch {
		case f.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case f.want != "" && (reason.CodeOf(err) != controller.CodeRackFile || !strings.Contains(err.Error(), f.want) || reason.HintOf(err) != "correct "+path):
			t.Errorf("%s: have %v, want %q", name, err, f.want)
		}
	}
}

func TestNewRack(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "rack")
	fp, recovery, err := controller.NewRack(dir, "left")
	must(t, err)
	if !strings.HasPrefix(fp, "sha256:") || len(recovery) == 0 {
		t.Errorf("have %q and %d bytes", fp, len(recovery))
	}
	for _, name := range []string{"membership.key", "enrolment.cbor", "rack.toml"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: have mode %v", name, fi.Mode())
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if strings.Contains(string(b), string(recovery)) {
			t.Errorf("%s holds the recovery key", name)
		}
	}
	if _, _, err := controller.NewRack(dir, "left"); err == nil || reason.HintOf(err) == "" {
		t.Errorf("over an existing key: have %v", err)
	}
	c, err := controller.Open(filepath.Join(dir, "rack.toml"), func(controller.Event) {})
	must(t, err)
	c.Close()
	if _, _, err := controller.NewRack(filepath.Join(dir, "2"), "a\"b"); reason.RemedyOf(err) != reason.Usage {
		t.Errorf("odd name: have %v", err)
	}
}
