package rot

import (
	"crypto/sha256"
	"math/bits"
)

// MaxBatch is the largest number of bindings that one quote answers.
const MaxBatch = 64

// The tree hashing of RFC 6962 §2.1: leaves and inner nodes are kept apart by their first byte, so that no inner node
// can pass for a binding.
func leafHash(binding [32]byte) [32]byte {
	return sha256.Sum256(append([]byte{0}, binding[:]...))
}

func nodeHash(left, right [32]byte) [32]byte {
	buf := make([]byte, 0, 65)
	buf = append(buf, 1)
	buf = append(buf, left[:]...)
	return sha256.Sum256(append(buf, right[:]...))
}

// split is the largest power of two below n, for n > 1.
func split(n int) int { return 1 << (bits.Len(uint(n-1)) - 1) }

// merkleRoot is the tree's root over at least one binding.
func merkleRoot(bindings [][32]byte) [32]byte {
	if len(bindings) == 1 {
		return leafHash(bindings[0])
	}
	k := split(len(bindings))
	return nodeHash(merkleRoot(bindings[:k]), merkleRoot(bindings[k:]))
}

// merklePath is the audit path of one leaf, from the leaf upwards.
func merklePath(bindings [][32]byte, index int) [][32]byte {
	if len(bindings) == 1 {
		return nil
	}
	k := split(len(bindings))
	if index < k {
		return append(merklePath(bindings[:k], index), merkleRoot(bindings[k:]))
	}
	return append(merklePath(bindings[k:], index-k), merkleRoot(bindings[:k]))
}

// rootFromPath recomputes the root. It reports false if the path's length does not follow from index and count.
func rootFromPath(binding [32]byte, index, count int, path [][32]byte) ([32]byte, bool) {
	if count < 1 || count > MaxBatch || index < 0 || index >= count {
		return [32]byte{}, false
	}
	return climb(binding, index, count, path)
}

func climb(binding [32]byte, index, count int, path [][32]byte) ([32]byte, bool) {
	if count == 1 {
		return leafHash(binding), len(path) == 0
	}
	if len(path) == 0 {
		return [32]byte{}, false
	}
	k, last := split(count), len(path)-1
	if index < k {
		left, ok := climb(binding, index, k, path[:last])
		return nodeHash(left, path[last]), ok
	}
	right, ok := climb(binding, index-k, count-k, path[:last])
	return nodeHash(path[last], right), ok
}
