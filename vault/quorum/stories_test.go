package quorum_test

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// unseen are codes that no story can show, with the reason.
var unseen = map[string]string{
	"config":                            "a mistake of the caller: TestNewChecksState, TestErrorLeavesStateUntouched",
	"state":                             "shown without its code by damaged-state",
	"configuration-failed":              "needs a machine without randomness: TestExhausted",
	"rack_secret_reconstruction_failed": "shares that passed their checks always combine: only memory can run out",
}

// TestStories: docs/protocol.md §13 lists every story under the rules that it shows; every section about requests and
// messages, and every row of their tables of refusals, has one; every code and every alarm comes up in a story.
func TestStories(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/protocol.md")
	ok(t, err)
	text, table, found := strings.Cut(string(doc), "\n## 13 Stories\n")
	if !found {
		t.Fatal("docs/protocol.md has no section 13")
	}
	stories, all := readStories(t)
	listed, shown := map[string]bool{}, map[string]bool{}
	row := regexp.MustCompile(`^\| §([0-9.]+)(?: row ([0-9]+)(?:–([0-9]+))?)?: [^|]+ \| ([^|]+) \|$`)
	for line := range strings.SplitSeq(table, "\n") {
		m := row.FindStringSubmatch(line)
		if m == nil {
			if strings.HasPrefix(line, "| §") {
				t.Errorf("not understood: %s", line)
			}
			continue
		}
		shown[m[1]] = true
		for i, last := number(m[2]), max(number(m[2]), number(m[3])); i != 0 && i <= last; i++ {
			shown[m[1]+" row "+strconv.Itoa(i)] = true
		}
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(m[4], -1) {
			if listed[name[1]] = true; !slices.Contains(stories, name[1]) && !strings.HasPrefix(name[1], "Test") {
				t.Errorf("§%s names a story %s that does not exist", m[1], name[1])
			}
		}
	}
	for _, s := range stories {
		if !listed[s] {
			t.Errorf("story %s is not listed in docs/protocol.md §13", s)
		}
	}
	for _, rule := range rules(text) {
		if !shown[rule] {
			t.Errorf("§%s: no story", rule)
		}
	}
	source, err := os.ReadFile("reasons.go")
	ok(t, err)
	for _, m := range regexp.MustCompile(`(?:reason\.Code|AlarmKind)\s+= "(?:quorum-)?([^"]+)"`).FindAllStringSubmatch(string(source), -1) {
		if _, excused := unseen[m[1]]; !excused && !regexp.MustCompile(`\b`+m[1]+`\b`).MatchString(all) {
			t.Errorf("no story shows %s", m[1])
		}
	}
}

// readStories lists the stories and joins what they show. Each begins with what it is about.
func readStories(t *testing.T) (names []string, all string) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	ok(t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		ok(t, err)
		name := strings.TrimSuffix(filepath.Base(f), ".txt")
		if !strings.HasPrefix(string(b), "# ") {
			t.Errorf("story %s does not say what it is about", name)
		}
		names = append(names, name)
		for line := range strings.Lines(string(b)) {
			if !strings.HasPrefix(line, "#") {
				all += line
			}
		}
	}
	return names, all
}

// rules lists what needs a story: the sections about behaviour, and each row of a numbered table of refusals.
func rules(doc string) (out []string) {
	section := ""
	lines := bufio.NewScanner(strings.NewReader(doc))
	for lines.Scan() {
		line := lines.Text()
		if m := regexp.MustCompile(`^##+ ([0-9.]+) `).FindStringSubmatch(line); m != nil {
			section = m[1]
			if behaves := regexp.MustCompile(`^(6|7|10|12|[89]\.[0-9]+)$`); behaves.MatchString(section) {
				out = append(out, section)
			}
		}
		if m := regexp.MustCompile(`^\| ([0-9]+) \| `).FindStringSubmatch(line); m != nil && regexp.MustCompile(`^[89]\.`).MatchString(section) {
			out = append(out, section+" row "+m[1])
		}
	}
	return out
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}
