package landlock_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sledvault/sledvault/internal/landlock"
)

const roleEnv = "LANDLOCK_TEST_DIR"

// TestMain plays the restricted process when it is told to: a restriction cannot be taken back.
func TestMain(m *testing.M) {
	if dir := os.Getenv(roleEnv); dir != "" {
		for _, line := range restricted(dir) {
			_, _ = fmt.Fprintln(os.Stdout, line)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// restricted tries what is allowed and what is not, from several threads and in a child.
func restricted(dir string) (out []string) {
	in := func(name string) string { return filepath.Join(dir, name) }
	res, err := landlock.Restrict([]landlock.Rule{
		{Path: in("rw"), Access: landlock.Read | landlock.Write | landlock.Make},
		{Path: in("ro"), Access: landlock.Read},
		{Path: in("absent"), Access: landlock.Read},
		{Path: "/usr", Access: landlock.Read | landlock.Execute},
		{Path: "/lib", Access: landlock.Read | landlock.Execute},
		{Path: "/lib64", Access: landlock.Read | landlock.Execute},
		{Path: "/bin", Access: landlock.Read | landlock.Execute},
		{Path: os.DevNull, Access: landlock.Read | landlock.Write},
	})
	if errors.Is(err, landlock.ErrUnsupported) {
		return []string{"unsupported"}
	}
	say := func(what string, err error) {
		switch {
		case err == nil:
			out = append(out, what+": ok")
		case errors.Is(err, fs.ErrPermission):
			out = append(out, what+": denied")
		default:
			out = append(out, what+": "+err.Error())
		}
	}
	say("restrict", err)
	skipped := false
	for _, p := range res.Skipped {
		skipped = skipped || p == in("absent")
	}
	if !skipped || res.ABI < 1 {
		out = append(out, fmt.Sprintf("have %+v", res))
	}
	say("write", os.WriteFile(in("rw/new"), []byte("x"), 0o600))
	say("rename", os.Rename(in("rw/new"), in("rw/newer")))
	say("remove", os.Remove(in("rw/newer")))
	_, err = os.ReadFile(in("ro/file"))
	say("read", err)
	say("write to read-only", os.WriteFile(in("ro/file"), nil, 0o600))
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() { _, errs[i] = os.ReadFile(in("secret")) })
	}
	wg.Wait()
	for _, err := range errs {
		if !errors.Is(err, fs.ErrPermission) {
			say("a thread", err)
		}
	}
	say("read a secret", errs[0])
	text, err := exec.Command("/bin/cat", in("ro/file")).CombinedOutput()
	say("child reads "+strings.TrimSpace(string(text)), err)
	if text, err := exec.Command("/bin/cat", in("secret")).CombinedOutput(); err == nil || strings.Contains(string(text), "hidden") {
		out = append(out, "child reads a secret")
	}
	fixed, err := landlock.Privileges()
	say(fmt.Sprintf("no new privileges %v", fixed), err)
	return out
}

// TestRestrict: what is allowed works, on every thread and in children, and nothing else does.
func TestRestrict(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, d := range []string{"rw", "ro"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"ro/file": "open", "secret": "hidden"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+dir)
	have, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, have)
	}
	want := "restrict: ok\nwrite: ok\nrename: ok\nremove: ok\nread: ok\nwrite to read-only: denied\nread a secret: denied\n" +
		"child reads open: ok\nno new privileges true: ok\n"
	if string(have) == "unsupported\n" {
		t.Log("this kernel, or a build with cgo, has no landlock; that is what is reported")
		return
	}
	if string(have) != want {
		t.Errorf("have\n%swant\n%s", have, want)
	}
}
