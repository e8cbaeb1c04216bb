package enroll

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/secret"
)

func answer(pass string) Passphrase { return func() ([]byte, error) { return []byte(pass), nil } }

// TestSealedKeyFrozen: the exact bytes of version 2. If this fails, revert the change: controllers hold such files.
func TestSealedKeyFrozen(t *testing.T) {
	t.Parallel()
	b, err := sealKey(testKey(t, 7), []byte("correct horse"), bytes.Repeat([]byte{1}, saltLen), bytes.Repeat([]byte{2}, 24))
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != frozenSealedKey {
		t.Errorf("have\n%s", b)
	}
	k, err := openKey(secret.Heap{}, []byte(frozenSealedKey), "f", answer("correct horse"))
	if err != nil || !bytes.Equal(k.PublicKey(), testKey(t, 7).PublicKey()) {
		t.Errorf("frozen file: %v", err)
	}
}

// TestSealedKey: a file under a passphrase opens with that one alone, and every bit of it counts.
func TestSealedKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, k := filepath.Join(dir, "membership.key"), testKey(t, 7)
	wantCode(t, SaveKeyUnder(path, k, nil, rand.Reader), CodePassphrase)
	wantCode(t, SaveKeyUnder(path, k, make([]byte, MaxPassphrase+1), rand.Reader), CodePassphrase)
	if err := SaveKeyUnder(path, k, []byte("correct horse"), rand.Reader); err != nil {
		t.Fatal(err)
	}
	wantCode(t, SaveKeyUnder(path, k, []byte("x"), rand.Reader), CodeKeyFile) // never overwritten
	if under, err := UnderPassphrase(path); err != nil || !under {
		t.Errorf("under a passphrase: have %v, %v", under, err)
	}
	l, err := LoadKey(secret.Heap{}, path, answer("correct horse"))
	if err != nil || !bytes.Equal(l.PublicKey(), k.PublicKey()) {
		t.Fatalf("load: %v", err)
	}
	_, err = LoadKey(secret.Heap{}, path, nil)
	wantCode(t, err, CodePassphrase)
	for _, wrong := range []string{"", "correct horse ", strings.Repeat("x", MaxPassphrase+1)} {
		_, err := LoadKey(secret.Heap{}, path, answer(wrong))
		wantCode(t, err, CodePassphrase)
	}
	gone := errors.New("nobody answers")
	if _, err := LoadKey(secret.Heap{}, path, func() ([]byte, error) { return nil, gone }); !errors.Is(err, gone) {
		t.Errorf("have %v, want %v", err, gone)
	}
	good, err := os.ReadFile(path)
	if err != nil || bytes.Contains(good, []byte(strings.Repeat("07", 8))) || len(good) != sealedSize {
		t.Fatalf("file: %q, %v", good, err)
	}
	other := filepath.Join(dir, "other")
	for _, at := range []int{0, len(sealedHead) + fingerprintLen - 1, sealedAt - 1, sealedAt + 2, len(good) - 4, len(good) - 1} { // one of each line
		b := bytes.Clone(good)
		b[at] ^= 1
		if err := os.WriteFile(other, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKey(secret.Heap{}, other, answer("correct horse")); err == nil {
			t.Errorf("byte %d changed: opened", at)
		}
	}
}
