package enroll

import (
	"os"
	"strings"
	"testing"
)

// TestDocs checks that enrolment.md shows the bytes that we write and every code that a set can be refused with.
func TestDocs(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/enrolment.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\n" + frozenSet + "\n", "\n" + frozenRecord + "\n", "`" + frozenRecovery + "`", setDomain, beginDomain,
		activateDomain, answerDomain, recoveryDomain,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%.60s… is not in enrolment.md", want)
		}
	}
	for _, code := range []string{
		string(CodeRack), string(CodeStale), string(CodeUnchanged), string(CodeFork), string(CodeFormat), string(CodeLimit),
		string(CodeRecord), string(CodeDuplicate), string(CodeKey), string(CodeSignature), string(CodeClientOld), string(CodeVanished), string(CodeTakeover),
	} {
		if !strings.Contains(string(b), "`"+code+"`") {
			t.Errorf("code %s is not in enrolment.md", code)
		}
	}
}
