package rot

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

func leaves(n int) (out [][32]byte) {
	for i := range n {
		out = append(out, sha256.Sum256([]byte{byte(i)}))
	}
	return out
}

// TestMerkleRoots: roots over SHA-256(i), i = 0.., made by another program with the stack algorithm of RFC 9162 §2.1.
func TestMerkleRoots(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{
		1:  "d9de27625445003d8a9739a851e3ff8d41c0683630b4d63a88327a6aaa37c409",
		2:  "604d540f09268b91672ab011394d5266ccd7d4484d0d109411a55848126a1b2c",
		3:  "d1f13800048f5909d4043fc0c152f6643280cba608b672715e56ce159a20629f",
		5:  "6b313b611b40676b9e1dfd70c4503f2379f88f0f1c2740fb7e1cacc32c113465",
		8:  "80e139b44c90f91edebec705cc7586c3d90f4bdadd49628d25c20d4b03419287",
		31: "beba230f01bd1d488513204271ce9ab0815e67a808e1c49509b5b078baa2c379",
		64: "aa57518cca1629d77c9acff9147b7cdc10c53456b75b27a0fc75129fb544b24a",
	} {
		root := merkleRoot(leaves(n))
		if have := hex.EncodeToString(root[:]); have != want {
			t.Errorf("%d leaves: have %s, want %s", n, have, want)
		}
	}
}

// TestMerklePaths: every leaf of every size proves itself, and nothing else: no other place, count, length or content.
func TestMerklePaths(t *testing.T) {
	t.Parallel()
	for n := 1; n <= MaxBatch; n++ {
		l := leaves(n)
		root := merkleRoot(l)
		for i := range n {
			path := merklePath(l, i)
			if have, ok := rootFromPath(l[i], i, n, path); !ok || have != root {
				t.Fatalf("leaf %d of %d does not prove itself", i, n)
			}
			for _, bad := range [][][32]byte{append(path[:len(path):len(path)], [32]byte{}), path[:max(len(path)-1, 0)]} {
				if have, ok := rootFromPath(l[i], i, n, bad); ok && len(bad) != len(path) {
					t.Fatalf("leaf %d of %d: path of %d instead of %d accepted: %x", i, n, len(bad), len(path), have)
				}
			}
			other := (i + 1) % n
			if have, ok := rootFromPath(l[i], other, n, path); ok && have == root && other != i {
				t.Fatalf("leaf %d of %d passes for leaf %d", i, n, other)
			}
			for k := range path {
				path[k][5] ^= 1
				if have, ok := rootFromPath(l[i], i, n, path); !ok || have == root {
					t.Fatalf("leaf %d of %d: changed path accepted", i, n)
				}
				path[k][5] ^= 1
			}
		}
	}
	if _, ok := rootFromPath([32]byte{}, 0, MaxBatch+1, make([][32]byte, 7)); ok {
		t.Error("more leaves than a quote may answer")
	}
	// An inner node cannot pass for a binding: leaves are hashed under another prefix.
	l := leaves(4)
	inner := nodeHash(leafHash(l[0]), leafHash(l[1]))
	right := nodeHash(leafHash(l[2]), leafHash(l[3]))
	if have, ok := rootFromPath(inner, 0, 2, [][32]byte{right}); ok && have == merkleRoot(l) {
		t.Error("an inner node passes for a leaf")
	}
}
