// Package rig says what a test needs from the machine it runs on.
package rig

import (
	"os"
	"os/exec"
	"testing"
)

// Require is the environment variable that turns a missing tool from a skip into a failure.
const Require = "RIG_REQUIRE"

// Hint is what to run when a tool is missing.
const Hint = "run: go run ./cmd/sledvault doctor --install"

// Path returns the absolute path of a tool, looking in the system folders that an ordinary user's PATH leaves out.
func Path(tool string) (string, error) {
	if p, err := exec.LookPath(tool); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/local/sbin/"} {
		if p, err := exec.LookPath(dir + tool); err == nil {
			return p, nil
		}
	}
	return "", exec.ErrNotFound
}

// Need skips the test if one of the tools is absent, or fails it where [Require] is 1.
func Need(tb testing.TB, tools ...string) {
	tb.Helper()
	for _, tool := range tools {
		if _, err := Path(tool); err == nil {
			continue
		}
		Lack(tb, tool+" is needed and absent; "+Hint)
	}
}

// Lack skips the test for want of something, or fails it where [Require] is 1.
func Lack(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv(Require) == "1" {
		tb.Fatal(what)
	}
	tb.Skip(what)
}
