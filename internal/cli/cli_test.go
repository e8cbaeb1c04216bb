package cli_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/reason"
)

func TestErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		code int
		text string
		json string
	}{
		"operator": {reason.New("a-code", "do this", "it failed"), cli.Failed, "p: error: it failed\np: hint: do this\n", `{"code":"a-code","error":"it failed","hint":"do this","retry":false}`},
		"later":    {reason.Later("soon", "", "not yet"), cli.NotYet, "p: error: not yet\n", `{"code":"soon","error":"not yet","retry":true}`},
		"usage":    {cli.UsageError("no %q", "x"), cli.Usage, "p: error: no \"x\"\np: hint: see --help\n", `{"code":"usage","error":"no \"x\"","hint":"see --help","retry":false}`},
		"plain":    {errors.New("odd"), cli.Failed, "p: error: odd\n", `{"code":"internal","error":"odd","retry":false}`},
		"wrapped":  {fmt.Errorf("outer: %w", reason.Later("soon", "wait", "not yet")), cli.NotYet, "p: error: outer: not yet\np: hint: wait\n", `{"code":"soon","error":"outer: not yet","hint":"wait","retry":true}`},
		"joined":   {errors.Join(reason.Later("soon", "wait", "not yet"), nil), cli.NotYet, "p: error: not yet\np: hint: wait\n", `{"code":"soon","error":"not yet","hint":"wait","retry":true}`},
	} {
		var text, js bytes.Buffer
		if code := cli.Fail(&text, "p", c.err); code != c.code || text.String() != c.text {
			t.Errorf("%s: have %d %q", name, code, text.String())
		}
		if code := cli.FailJSON(&js, c.err); code != c.code || js.String() != c.json+"\n" {
			t.Errorf("%s: have %d %s", name, code, js.String())
		}
	}
	if cli.ExitCode(nil) != cli.Done {
		t.Error("no error is not done")
	}
}
