package keys

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha3"
	"testing"

	"pgregory.net/rapid"
)

// TestHKDF: the same as the library's.
func TestHKDF(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := func(name string, atMost int) []byte { return rapid.SliceOfN(rapid.Byte(), 0, atMost).Draw(t, name) }
		ikm, salt, info := text("ikm", 300), text("salt", 300), text("info", 300)
		prk, err := hkdf.Extract(sha3.New256, ikm, salt)
		if err != nil {
			t.Fatal(err)
		}
		if have := extract(ikm, salt); !bytes.Equal(have, prk) {
			t.Fatalf("extract: have %x, want %x", have, prk)
		}
		key, err := hkdf.Expand(sha3.New256, prk, string(info), Size)
		if err != nil {
			t.Fatal(err)
		}
		if have := expand(prk, string(info)); !bytes.Equal(have, key) || cap(have) != Size {
			t.Fatalf("expand: have %x, want %x", have, key)
		}
	})
}
