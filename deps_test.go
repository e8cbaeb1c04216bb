package sledvault_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sledvault/sledvault/"

var update = flag.Bool("update", false, "rewrite golden files")

// lattice says who may import whom: "a < b" means that b, and whatever is above b, may import a. A package of ours that is
// not named may import nothing of ours and be imported by nothing but cmd.
const lattice = `
NONE < vault/ident, vault/reason, vault/secret, internal/lockedmem, internal/landlock;
vault/ident, vault/secret < vault/gfss < vault/keys;
vault/gfss, vault/reason, vault/keys < vault/lrtq < vault/quorum;
vault/reason, vault/keys < vault/quorum;
vault/quorum < vault/wire < rot/enroll;
vault/ident, vault/reason < sp/frame < sp;
vault/ident, vault/reason < rot;
vault/reason < tpm, internal/cli, internal/doctor;
rot, rot/enroll < rot/channel;
tpm, rot, vault/secret, vault/ident < sealing;
vault/wire, sealing < vault/ledger;
vault/wire, rot/channel < vault/peer;
vault/wire < vault/unlock;
vault/wire < vault/lrtqnet;
vault/wire, rot/channel < vault/api < vault/api/client;
vault/quorum < vault/rack;
vault/quorum < vault/quorum/reference < vault/quorum/replay;
vault/rack, vault/api < vault/rack/journal;
vault/rack/journal, vault/api/client, rot/channel, tpm < vault/rack/controller;
internal/lockedmem, internal/landlock, sp, sealing, rot/channel, vault/ledger, vault/peer, vault/lrtqnet, vault/unlock, vault/api < vault;
`

// pure packages touch nothing but their arguments. vault/secret may wipe and redact (runtime, log/slog), and lock,
// since a secret may be destroyed while it is lent.
var (
	pure      = []string{"vault/ident", "vault/secret", "vault/gfss", "vault/keys", "vault/lrtq", "vault/quorum", "vault/rack"}
	impure    = []string{"os", "net", "time", "context", "sync", "log", "log/slog", "crypto/rand", "math/rand", "math/rand/v2", "unsafe", "runtime"}
	exempt    = map[string][]string{"vault/secret": {"log/slog", "runtime", "sync"}}
	daemonTop = "cmd/sledvaultd"
)

type pkg struct {
	ImportPath string
	GoFiles    []string
	Imports    []string
	Deps       []string
	Module     *struct{ Path string }
}

func list(t *testing.T, args ...string) (out []pkg) {
	t.Helper()
	b, err := exec.Command("go", append([]string{"list", "-json=ImportPath,GoFiles,Imports,Deps,Module"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for d := json.NewDecoder(bytes.NewReader(b)); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// allowed turns the lattice into sets: allowed[b] holds every a that b may import.
func allowed(t *testing.T) map[string]map[string]bool {
	t.Helper()
	out := map[string]map[string]bool{}
	for rule := range strings.SplitSeq(lattice, ";") {
		if strings.TrimSpace(rule) == "" {
			continue
		}
		levels := strings.Split(rule, "<")
		for i, l := range levels[:len(levels)-1] {
			for _, above := range names(levels[i+1]) {
				if out[above] == nil {
					out[above] = map[string]bool{}
				}
				for _, below := range names(l) {
					out[above][below] = true
				}
			}
		}
	}
	for changed := true; changed; { // transitive closure
		changed = false
		for _, set := range out {
			for a := range set {
				for b := range out[a] {
					if !set[b] {
						set[b], changed = true, true
					}
				}
			}
		}
	}
	return out
}

func names(s string) (out []string) {
	for n := range strings.SplitSeq(s, ",") {
		if n = strings.TrimSpace(n); n != "NONE" {
			out = append(out, n)
		}
	}
	return out
}

func TestImportLattice(t *testing.T) {
	may := allowed(t)
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module)
		if outside(name) {
			continue
		}
		for _, imp := range p.Imports {
			if dep, ours := strings.CutPrefix(imp, module); ours && !may[name][dep] {
				t.Errorf("%s imports %s, which the lattice does not allow", name, dep)
			}
		}
		if slices.Contains(pure, name) {
			for _, imp := range p.Imports {
				if slices.Contains(impure, imp) && !slices.Contains(exempt[name], imp) {
					t.Errorf("%s is pure and imports %s", name, imp)
				}
			}
		}
	}
}

// outside names what is not part of the product: commands, test doubles, the rig.
func outside(name string) bool {
	return strings.HasPrefix(name, "cmd/") || strings.HasPrefix(name, "hwtest") || strings.HasSuffix(name, "test") || name == "internal/rig"
}

func TestDaemonModules(t *testing.T) {
	d := list(t, "./"+daemonTop)[0]
	modules := map[string]bool{}
	for _, p := range list(t, append([]string{"-deps"}, "./"+daemonTop)...) {
		if p.Module != nil {
			modules[p.Module.Path] = true
		}
	}
	var got strings.Builder
	for _, m := range slices.Sorted(mapKeys(modules)) {
		got.WriteString(m + "\n")
	}
	const golden = "docs/daemon-modules.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the modules in %s changed; if that is meant, run go test -run DaemonModules . -update\nhave\n%swant\n%s", daemonTop, got.String(), want)
	}
	for _, dep := range d.Deps {
		if name, ours := strings.CutPrefix(dep, module); dep == "testing" || ours && (strings.HasPrefix(name, "hwtest") || strings.HasSuffix(name, "test")) {
			t.Errorf("%s depends on %s", daemonTop, dep)
		}
	}
}

// TestLaxRules shows that no daemon can reach the reference's laxer rules: a node obeys them only with an authority that
// has the method BelievesPeers, one package declares such a method, and no daemon contains that package.
func TestLaxRules(t *testing.T) {
	const only = "vault/quorum/reference"
	declares := regexp.MustCompile(`(?m)^func \([^)]*\) BelievesPeers\(`)
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, f := range p.GoFiles {
			src, err := os.ReadFile(filepath.Join(filepath.FromSlash(name), f))
			if err != nil {
				t.Fatal(err)
			}
			if have := declares.Match(src); have != (name == only) {
				t.Errorf("%s/%s declares BelievesPeers: %t", name, f, have)
			}
		}
	}
	for _, p := range list(t, "./cmd/...") {
		if strings.HasSuffix(p.ImportPath, "d") && slices.Contains(p.Deps, module+only) {
			t.Errorf("%s contains %s", p.ImportPath, only)
		}
	}
}

func mapKeys(m map[string]bool) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
