package keys

import (
	"testing"

	"github.com/sledvault/sledvault/vault/secret"
)

// TestJoinedTexts pins what protocol.md §4 says of the joined texts: what stands between them does not count, their order
// and their characters do.
func TestJoinedTexts(t *testing.T) {
	t.Parallel()
	prk, err := secret.Take[secret.PRKKind](secret.Heap{}, make([]byte, Size))
	if err != nil {
		t.Fatal(err)
	}
	key := func(d Disk) secret.DiskKey {
		k, err := DiskKey(secret.Heap{}, prk, d)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	a := key(Disk{"ab", "c", "d"})
	if !a.Equal(key(Disk{"a", "bc", "d"})) || !a.Equal(key(Disk{"a", "b", "cd"})) {
		t.Error("disks that exist were keyed without separators")
	}
	for _, d := range []Disk{{"ab", "d", "c"}, {"c", "ab", "d"}, {"ab", "c", "D"}, {"ab", "c", "d "}} {
		if a.Equal(key(d)) {
			t.Errorf("%s has the key of ab/c/d", d)
		}
	}
}
