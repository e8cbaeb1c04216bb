package enroll

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/secret"
)

// FuzzRecovery: what a person types is a key or refused; a key that is printed again is the same.
func FuzzRecovery(f *testing.F) {
	text, err := RecoveryText(testKey(f, 7))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(strings.ToLower(string(text))))
	f.Add(text[:10])
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseRecovery(secret.Heap{}, b)
		if err != nil {
			return
		}
		again, err := RecoveryText(k)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := ParseRecovery(secret.Heap{}, again); err != nil || !o.public.Equal(k.public) {
			t.Fatalf("printed again it is another key: %v", err)
		}
	})
}

// FuzzKeyFile: a key file is read or refused; what is read is written again as it was, but for the case of the digits of
// its seed. A refusal shows nothing of the file.
func FuzzKeyFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "key")
	if err := SaveKey(path, testKey(f, 7)); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.ToUpper(good))
	f.Add(bytes.Replace(good, []byte("0"), []byte("z"), 9))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := readKey(secret.Heap{}, b)
		if err != nil {
			if len(b) > 80 && strings.Contains(err.Error(), string(b[len(b)-20:len(b)-1])) {
				t.Fatalf("the refusal shows the seed: %v", err)
			}
			return
		}
		again := filepath.Join(dir, "again")
		_ = os.Remove(again)
		if err := SaveKey(again, k); err != nil {
			t.Fatal(err)
		}
		if have, err := os.ReadFile(again); err != nil || !bytes.EqualFold(have, b) {
			t.Fatalf("%v: have %q, want %q", err, have, b)
		}
	})
}

// FuzzFingerprint: one form, which is what goes on.
func FuzzFingerprint(f *testing.F) {
	f.Add(FingerprintOf([32]byte{1}))
	f.Add(strings.ToUpper(FingerprintOf([32]byte{0xab})))
	f.Add("sha256:")
	f.Fuzz(func(t *testing.T, s string) {
		have, err := ParseFingerprint(s)
		if err != nil {
			return
		}
		if again, err := ParseFingerprint(have); err != nil || again != have {
			t.Fatalf("%q: read again it is %q, %v", have, again, err)
		}
	})
}
