//go:build linux

package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/internal/cli"
)

func TestRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args     []string
		code     int
		out, err string
	}{
		{nil, cli.Done, "bench-peers", ""},
		{[]string{"bench-peers", "--help"}, cli.Done, "--install", ""},
		{[]string{"nonsense"}, cli.Usage, "", "unknown command"},
		{[]string{"bench-peers", "--nonsense"}, cli.Usage, "", "unknown flag"},
		{[]string{"bench-peers", "--sleds", "2"}, cli.Usage, "", "have 2, want 3 to 31"},
		{[]string{"bench-boot", "--reps", "0"}, cli.Usage, "", "--reps: have 0"},
		{[]string{"unseal", "/nonexistent"}, cli.Failed, "", "peers: seal"},
	} {
		var out, errw bytes.Buffer
		code := run(t.Context(), c.args, &out, &errw)
		if code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(errw.String(), c.err) {
			t.Errorf("%q: have exit code %d, stdout %q, stderr %q", c.args, code, out.String(), errw.String())
		}
	}
}
