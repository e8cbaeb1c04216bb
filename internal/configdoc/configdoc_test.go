package configdoc_test

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"github.com/sledvault/sledvault/internal/configdoc"
	"github.com/sledvault/sledvault/vault"
)

var update = flag.Bool("update", false, "rewrite packaging/sledvaultd.toml")

const example = "../../packaging/sledvaultd.toml"

// keysOf lists the keys that the daemon reads, as "table.key".
func keysOf(t reflect.Type, prefix string, out map[string]reflect.Type) {
	for f := range t.Fields() {
		name := prefix + f.Tag.Get("toml")
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			keysOf(inner, name+".", out)
			continue
		}
		out[name] = f.Type
	}
}

// TestEveryKey holds the description against the type that the daemon reads, both ways.
func TestEveryKey(t *testing.T) {
	t.Parallel()
	want := map[string]reflect.Type{}
	keysOf(reflect.TypeFor[vault.Config](), "", want)
	for _, tab := range configdoc.Tables() {
		if tab.Text == "" || !strings.HasSuffix(tab.Text, ".") {
			t.Errorf("%s: wants a sentence", tab.Name)
		}
		for _, k := range tab.Keys {
			name := tab.Name + "." + k.Name
			if want[name] == nil {
				t.Errorf("%s is described and does not exist", name)
			}
			delete(want, name)
			if !strings.HasSuffix(k.Text, ".") || k.Default == "" && k.Example == "" {
				t.Errorf("%s: wants a sentence, and a default or an example", name)
			}
		}
	}
	for name := range want {
		t.Errorf("%s exists and is not described", name)
	}
}

// TestDefaults: the documented defaults are the daemon's.
func TestDefaults(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for _, tab := range configdoc.Tables() {
		if tab.List {
			continue
		}
		b.WriteString(tab.Head() + "\n")
		for _, k := range tab.Keys {
			if k.Default != "" {
				b.WriteString(k.Name + " = " + k.Default + "\n")
			}
		}
	}
	var have vault.Config
	if _, err := toml.Decode(b.String(), &have); err != nil {
		t.Fatal(err)
	}
	if len(have.Peer.Peers) == 0 {
		have.Peer.Peers = nil
	}
	if want := vault.DefaultConfig(); !reflect.DeepEqual(have, want) {
		t.Errorf("have %+v, want %+v", have, want)
	}
}

// TestExample: the packaged example says what the description says, and the daemon accepts it: as it is, and with every
// commented key switched on.
func TestExample(t *testing.T) {
	t.Parallel()
	want := configdoc.Example()
	if *update {
		if err := os.WriteFile(example, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(example)
	if err != nil || string(have) != want {
		t.Fatalf("%s is not up to date (%v); go test ./internal/configdoc -update rewrites it", example, err)
	}
	if _, err := vault.LoadConfig(example); err != nil {
		t.Error(err)
	}
	var all strings.Builder
	for l := range strings.Lines(want) {
		if rest, ok := strings.CutPrefix(l, "# "); ok && (strings.HasPrefix(rest, "[") || strings.Contains(rest, " = ")) {
			l = rest
		}
		all.WriteString(l)
	}
	path := filepath.Join(t.TempDir(), "all.toml")
	if err := os.WriteFile(path, []byte(all.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := vault.LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.API.Roles) != 1 || len(c.Disks) != 1 || len(c.Peer.Peers) != 3 {
		t.Errorf("have %+v", c)
	}
}

// TestManPage: every key is on it.
func TestManPage(t *testing.T) {
	t.Parallel()
	page := strings.ReplaceAll(configdoc.ManPage(), `\`, "")
	for _, tab := range configdoc.Tables() {
		if !strings.Contains(page, "### "+tab.Head()+"\n") {
			t.Errorf("%s is missing", tab.Head())
		}
		for _, k := range tab.Keys {
			if !strings.Contains(page, "**"+k.Name+"**") {
				t.Errorf("%s.%s is missing", tab.Name, k.Name)
			}
		}
	}
}
