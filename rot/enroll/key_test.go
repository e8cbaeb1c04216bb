package enroll

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/secret"
)

func TestKeyShowsNothing(t *testing.T) {
	t.Parallel()
	k := testKey(t, 0x5b)
	holder := struct {
		K Key
		k Key
	}{k, k}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, k, &k, holder)
	}
	for _, s := range []string{"5b5b", "[[", "91 91", "5B5B"} {
		if strings.Contains(out.String(), s) {
			t.Errorf("printing shows the seed: %s", out.String())
		}
	}
	if _, err := json.Marshal(k); err == nil {
		t.Error("json encodes a key")
	}
	if _, err := k.MarshalBinary(); err == nil {
		t.Error("binary encodes a key")
	}
	k.Destroy()
	if _, err := k.Sign(nil, []byte("m"), crypto.Hash(0)); err == nil {
		t.Error("a destroyed key signs")
	}
}

func TestKeySigns(t *testing.T) {
	t.Parallel()
	k := testKey(t, 1)
	sig, err := k.Sign(nil, []byte("m"), crypto.Hash(0))
	if err != nil || !ed25519.Verify(k.PublicKey(), []byte("m"), sig) {
		t.Errorf("signature does not verify: %v", err)
	}
	_, err = k.Sign(nil, make([]byte, 32), crypto.SHA256)
	wantCode(t, err, CodeKey)
	if _, err := NewKey(secret.Heap{}, bytes.NewReader(make([]byte, 31))); err == nil {
		t.Error("a key from 31 bytes")
	}
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	fp := Fingerprint(testKey(t, 1).PublicKey())
	for _, s := range []string{fp, " " + fp + "\n", strings.TrimPrefix(fp, "sha256:"), "sha256:" + strings.ToUpper(fp[7:])} {
		if have, err := ParseFingerprint(s); err != nil || have != fp {
			t.Errorf("%q: have %q, %v", s, have, err)
		}
	}
	for _, s := range []string{"", "sha256:", fp[:70], fp + "0", "sha1:" + fp[7:], strings.Repeat("g", 64)} {
		_, err := ParseFingerprint(s)
		wantCode(t, err, CodeFingerprint)
	}
}

func TestKeyFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "membership.key")
	k := testKey(t, 7)
	if err := SaveKey(path, k); err != nil {
		t.Fatal(err)
	}
	wantCode(t, SaveKey(path, k), CodeKeyFile)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("have mode %v (%v), want 0600", st.Mode(), err)
	}
	l, err := LoadKey(secret.Heap{}, path, nil)
	if err != nil || !bytes.Equal(l.PublicKey(), k.PublicKey()) {
		t.Fatalf("load: %v", err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	write := func(name string, b []byte, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	changed := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	seedAt := bytes.Index(good, []byte("seed ")) + 5
	for _, p := range []string{
		filepath.Join(dir, "absent"), dir, link,
		write("group", good, 0o640), write("others", good, 0o604), write("execute", good, 0o601),
		write("short", good[:len(good)-1], 0o600), write("long", append(bytes.Clone(good), '\n'), 0o600),
		write("head", changed(0), 0o600), write("fingerprint", changed(len(keyFileHead)+10), 0o600),
		write("seed", changed(seedAt), 0o600), write("end", changed(len(good)-1), 0o600),
		write("not-hex", append(append(bytes.Clone(good[:seedAt]), 'x'), good[seedAt+1:]...), 0o600),
	} {
		_, err := LoadKey(secret.Heap{}, p, nil)
		wantCode(t, err, CodeKeyFile)
		if err != nil && strings.Contains(err.Error(), hex.EncodeToString(bytes.Repeat([]byte{7}, 4))) {
			t.Errorf("%s: the error shows the seed: %v", p, err)
		}
	}
	wantCode(t, SaveKey(filepath.Join(dir, "absent", "key"), k), CodeKeyFile)
}

func TestRecoveryText(t *testing.T) {
	t.Parallel()
	k := testKey(t, 0xc3)
	text, err := RecoveryText(k)
	if err != nil {
		t.Fatal(err)
	}
	if have := string(text); have != frozenRecovery {
		t.Errorf("have %s (%d characters)", have, len(have))
	}
	for _, s := range []string{
		string(text), strings.ToLower(string(text)), strings.ReplaceAll(string(text), "-", " "),
		strings.NewReplacer("0", "O", "1", "l").Replace(string(text)) + "\n",
	} {
		have, err := ParseRecovery(secret.Heap{}, []byte(s))
		if err != nil || !bytes.Equal(have.PublicKey(), k.PublicKey()) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for i, c := range text {
		if c == '-' {
			continue
		}
		b := bytes.Clone(text)
		b[i] = recoveryAlphabet[(bytes.IndexByte([]byte(recoveryAlphabet), c)+1)%32]
		_, err := ParseRecovery(secret.Heap{}, b)
		wantCode(t, err, CodeRecovery)
	}
	for _, b := range [][]byte{nil, text[:68], append(bytes.Clone(text), '0'), []byte("U"), text[5:]} {
		_, err := ParseRecovery(secret.Heap{}, b)
		wantCode(t, err, CodeRecovery)
	}
}
