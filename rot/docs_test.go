package rot_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocsNameEveryCode: a code that an operator can meet stands in evidence.md.
func TestDocsNameEveryCode(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/evidence.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"codes.go", "channel/codes.go"} {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		codes := regexp.MustCompile(`reason\.Code = "([a-z-]+)"`).FindAllStringSubmatch(string(src), -1)
		if len(codes) == 0 {
			t.Fatalf("%s: no codes", file)
		}
		for _, c := range codes {
			if !strings.Contains(string(doc), "`"+c[1]+"`") {
				t.Errorf("%s is not in docs/evidence.md", c[1])
			}
		}
	}
}
