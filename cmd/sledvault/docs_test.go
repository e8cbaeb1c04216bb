package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/vault"
)

// top is the root of the source tree.
const top = "../.."

// planned are commands and flags that documents and hints name already. Each must still be missing: this list only
// shrinks. A group alone stands for a command that shows the whole device.
var planned = []string{
	"rack enroll --replace",
	"seal authorize", "seal predict", "tpm",
}

// ours is the command line, with the flags that are otherwise added when it runs.
func ours() *cobra.Command {
	root := (&app{}).root()
	root.InitDefaultVersionFlag()
	root.InitDefaultHelpFlag()
	return root
}

// documents returns every document: name → text.
func documents(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/adr/*.md", "vault/quorum/*.md"} {
		files, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out[strings.TrimPrefix(filepath.ToSlash(file), top+"/")] = string(b)
		}
	}
	return out
}

var (
	block = regexp.MustCompile("(?ms)^ *```[^\n]*\n(.*?)^ *```$")
	span  = regexp.MustCompile("`(sledvault [^`\n]+)`")
)

// check reports what is wrong with a command line. Arguments count only where a whole line was given.
func check(line string, whole bool) string {
	line, _, _ = strings.Cut(line, " #")
	line, _, _ = strings.Cut(line, " | ")
	words := slices.DeleteFunc(strings.Fields(line)[1:], func(w string) bool { return strings.Trim(w, "[]….") == "" })
	c, rest, err := ours().Find(words)
	if err != nil {
		return err.Error()
	}
	if err := c.ParseFlags(rest); err != nil {
		return err.Error()
	}
	args := c.Flags().Args()
	if c.HasSubCommands() && len(args) > 0 && !isPlanned(words) {
		return "no command " + c.CommandPath() + " " + args[0]
	}
	if whole {
		if err := c.ValidateArgs(args); err != nil {
			return err.Error()
		}
	}
	return ""
}

func isPlanned(words []string) bool {
	return slices.ContainsFunc(planned, func(p string) bool { return strings.HasPrefix(strings.Join(words, " ")+" ", p+" ") })
}

// TestDocsCommands: every command line of ours in a document is one that the program understands.
func TestDocsCommands(t *testing.T) {
	t.Parallel()
	n := 0
	for name, text := range documents(t) {
		for _, b := range block.FindAllStringSubmatch(text, -1) {
			for line := range strings.Lines(b[1]) {
				for part := range strings.SplitSeq(strings.TrimSpace(line), "&&") {
					part = strings.Replace(strings.TrimSpace(part), "go run ./cmd/sledvault", "sledvault", 1)
					if !strings.HasPrefix(part, "sledvault ") || strings.Contains(part, "private key") {
						continue
					}
					n++
					if wrong := check(part, true); wrong != "" {
						t.Errorf("%s: %q: %s", name, part, wrong)
					}
				}
			}
		}
		for _, m := range span.FindAllStringSubmatch(block.ReplaceAllString(text, ""), -1) {
			n++
			if wrong := check(m[1], false); wrong != "" {
				t.Errorf("%s: `%s`: %s", name, m[1], wrong)
			}
		}
	}
	if n < 20 {
		t.Errorf("found %d command lines, want more", n)
	}
}

// lists are commands that do something by themselves and hold others besides.
var lists = []string{"sledvault disks"}

// wrongHint says what is wrong with the commands that a text names.
func wrongHint(text string) string {
	for rest := range strings.SplitSeq(text, "sledvault ") {
		words := strings.Fields(strings.NewReplacer(",", " , ", ":", " : ", ";", " ; ", ")", " ) ", "`", " ` ").Replace(rest))
		c := ours()
		for len(words) > 0 {
			i := slices.IndexFunc(c.Commands(), func(s *cobra.Command) bool { return s.Name() == words[0] })
			if i < 0 {
				break
			}
			c, words = c.Commands()[i], words[1:]
		}
		if len(words) == 0 && strings.HasSuffix(text, " ") {
			continue // goes on at run time
		}
		if c.HasParent() && c.HasSubCommands() && !slices.Contains(lists, c.CommandPath()) && !isPlanned(append([]string{c.Name()}, words...)) {
			return c.CommandPath() + " is no command by itself: " + strconv.Quote(text)
		}
		for _, w := range words {
			flag, ok := strings.CutPrefix(strings.TrimRight(w, "*."), "--")
			if !ok || !c.HasParent() {
				break
			}
			if c.Flag(flag) == nil && c.InheritedFlags().Lookup(flag) == nil && !isPlanned([]string{c.Parent().Name(), c.Name(), w}) {
				return c.CommandPath() + " has no flag --" + flag + ": " + strconv.Quote(text)
			}
		}
	}
	return ""
}

// TestDocsHints: every command that a text of the program names exists, hints above all.
func TestDocsHints(t *testing.T) {
	t.Parallel()
	wrong := map[string]string{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != top && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(fset, p, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING && strings.Contains(l.Value, "sledvault ") {
				if text, err := strconv.Unquote(l.Value); err == nil {
					if w := wrongHint(text); w != "" {
						wrong[w] = fset.Position(l.Pos()).String()
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range slices.Sorted(maps.Keys(wrong)) {
		t.Errorf("%s: %s", strings.TrimPrefix(wrong[w], top+"/"), w)
	}
}

// TestDocsPlanned: what is planned is not there yet.
func TestDocsPlanned(t *testing.T) {
	t.Parallel()
	for _, p := range planned {
		words := strings.Fields(p)
		c, rest, err := ours().Find(words)
		if err == nil && c.ParseFlags(rest) == nil && len(c.Flags().Args()) == 0 && !c.HasSubCommands() {
			t.Errorf("sledvault %s exists now: take it out of the list of planned commands", p)
		}
	}
}

// TestDocsConfiguration: the configuration in README.md is one that the daemon takes.
func TestDocsConfiguration(t *testing.T) {
	t.Parallel()
	m := regexp.MustCompile("(?ms)^ *```toml\n(.*?)^ *```$").FindStringSubmatch(documents(t)["README.md"])
	if m == nil {
		t.Fatal("README.md shows no configuration")
	}
	file := filepath.Join(t.TempDir(), "sledvaultd.toml")
	if err := os.WriteFile(file, []byte(strings.Replace(m[1], "sha256:…", "sha256:"+strings.Repeat("0", 64), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.LoadConfig(file); err != nil {
		t.Error(err)
	}
}
