package unlock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/reason"
)

// watched opens the victim's disk through a stand-in for cryptsetup that writes down how it was called and refuses every
// key, on a machine that seems to have device-mapper. It returns what was called.
func (v victim) watched(t *testing.T) (calls []string, err error) {
	t.Helper()
	dir := t.TempDir()
	tool, log := filepath.Join(dir, "cryptsetup"), filepath.Join(dir, "log")
	script := fmt.Sprintf("#!/bin/sh\necho \"$*\" >>%q\nwc -c >>%q\nexit %d\n", log, log, exitKey)
	if err := errors.Join(os.WriteFile(tool, []byte(script), 0o700), os.WriteFile(filepath.Join(dir, "control"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	l := New(Config{Cryptsetup: tool, Mapper: dir})
	res, err := l.Open(t.Context(), v.d, v.r, v.key)
	if res.Mapping != "" || res.State == StateUnlocked || res.State == StateKeyProved {
		t.Errorf("have %+v, want nothing mapped or proved", res)
	}
	b, readErr := os.ReadFile(log)
	if readErr != nil && !errors.Is(readErr, os.ErrNotExist) {
		t.Fatal(readErr)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n"), err
}

// attackConfusion: what the attacker put in the place of a disk of ours is refused before any tool touches it. Nothing is
// mapped for somebody to mount, and the key that we have is the only thing that is ever tried.
func attackConfusion(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	blank := func() []byte { return make([]byte, len(v.good)) }
	at := func(off int, s string) []byte {
		return append(append(blank()[:off:off], s...), blank()[off+len(s):]...)
	}
	uuid := v.metadata(t).raw.uuid
	const passphrase = "the attacker's own"
	for name, c := range map[string]struct {
		disk []byte
		code reason.Code
		ours bool // under our key
	}{
		"ext4":                        {at(0x438, "\x53\xef"), CodeNotLUKS2, false},
		"xfs":                         {at(0, "XFSB"), CodeNotLUKS2, false},
		"swap":                        {at(0xff6, "SWAPSPACE2"), CodeNotLUKS2, false},
		"LUKS1":                       {at(0, "LUKS\xba\xbe\x00\x01"), CodeNotLUKS2, false},
		"unknown bytes":               {bytes.Repeat([]byte("plain"), len(v.good)/5), CodeUnformatted, false},
		"nothing":                     {blank(), CodeUnformatted, false},
		"container of his own":        {container(t, v, passphrase, "c0ffee00-0000-4000-8000-000000000000"), CodeChanged, false},
		"container with our UUID":     {container(t, v, passphrase, uuid), CodeChanged, false},
		"our disk with another UUID":  {v.renamed(t), CodeChanged, true},
		"another disk of ours":        {newVictim(t).good, CodeChanged, true},
		"ours, after his file system": {slices.Concat(at(0x438, "\x53\xef")[:len(v.good)/2], v.good[len(v.good)/2:]), CodeNotLUKS2, false},
	} {
		if err := os.WriteFile(v.d.Path, c.disk, 0o600); err != nil {
			t.Fatal(err)
		}
		calls, err := v.watched(t)
		if reason.CodeOf(err) != c.code || reason.HintOf(err) == "" {
			t.Errorf("%s: have %q: %v; want %q with a hint", name, reason.CodeOf(err), err, c.code)
		}
		if calls[0] != "" {
			t.Errorf("%s: cryptsetup was called: %q", name, calls)
		}
		// Taking a disk over without a record needs the key, too: a container under his passphrase is not ours to take.
		if _, err := v.l.Adopt(t.Context(), v.d, v.key, 1); (err == nil) != c.ours {
			t.Errorf("%s: adopt: have %v, want a refusal unless it is under our key: %v", name, err, c.ours)
		}
	}
	if err := os.WriteFile(v.d.Path, v.good, 0o600); err != nil {
		t.Fatal(err)
	}
	// Control: our own disk does reach the tool. A key that it refuses is refused: one call, fed with 32 bytes of key.
	calls, err := v.watched(t)
	if reason.CodeOf(err) != CodeKey || len(calls) != 2 || !strings.Contains(calls[0], "--key-file") || strings.TrimSpace(calls[1]) != "32" {
		t.Errorf("control: have %v after %q, want %q after one call with a key of 32 bytes", err, calls, CodeKey)
	}
}

// container is a LUKS2 disk that the attacker made with a passphrase.
func container(t *testing.T, v victim, passphrase, uuid string) []byte {
	t.Helper()
	tool, err := v.l.tool()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 20<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := func(args ...string) {
		c := exec.CommandContext(context.WithoutCancel(t.Context()), tool, args...)
		c.Stdin = strings.NewReader(passphrase)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args[0], err, out)
		}
	}
	cmd("luksFormat", "--type", "luks2", "--batch-mode", "--uuid", uuid, "--cipher", cipherName, "--key-size", "512", "--hash", "sha256",
		"--sector-size", "512", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", path)
	cmd("open", "--test-passphrase", "--key-file", "-", path) // it would open, for whoever asked him
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// renamed is the victim's disk under another UUID, with right checksums.
func (v victim) renamed(t *testing.T) []byte {
	t.Helper()
	m := v.metadata(t)
	m.raw.uuid = "c0ffee00-0000-4000-8000-000000000000"
	area := make([]byte, m.raw.size-binarySize)
	if !json.Valid(m.raw.json) {
		t.Fatal("metadata is not JSON")
	}
	copy(area, m.raw.json)
	out := bytes.Clone(v.good)
	copy(out, m.copyAt(0, magicFirst, area))
	copy(out[m.raw.size:], m.copyAt(m.raw.size, magicSecond, area))
	return out
}
