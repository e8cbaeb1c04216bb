package gfss

import (
	"math/rand/v2"
	"testing"

	"github.com/sledvault/sledvault/vault/secret"
)

func benchShares(b *testing.B, n, k int) (secret.RackSecret, []Share) {
	b.Helper()
	sec := newSecret(b, []byte("0123456789abcdef0123456789abcdef"))
	shares, err := Split(secret.Heap{}, rand.NewChaCha8([32]byte{}), sec, n, k)
	if err != nil {
		b.Fatal(err)
	}
	return sec, shares
}

// BenchmarkSplit splits 32 bytes into 32 shares, 17 needed, as the largest rack does. Goal: under 76 µs.
func BenchmarkSplit(b *testing.B) {
	sec, _ := benchShares(b, 32, 17)
	r := rand.NewChaCha8([32]byte{})
	b.ReportAllocs()
	for b.Loop() {
		shares, err := Split(secret.Heap{}, r, sec, 32, 17)
		if err != nil {
			b.Fatal(err)
		}
		DestroyAll(shares)
	}
}

// BenchmarkCombine rebuilds 32 bytes from 17 shares. Goal: at most 8 µs.
func BenchmarkCombine(b *testing.B) {
	_, shares := benchShares(b, 32, 17)
	b.ReportAllocs()
	for b.Loop() {
		s, err := Combine(secret.Heap{}, shares[:17])
		if err != nil {
			b.Fatal(err)
		}
		s.Destroy()
	}
}

// BenchmarkComputeShare computes one share from 17 others.
func BenchmarkComputeShare(b *testing.B) {
	_, shares := benchShares(b, 32, 17)
	for b.Loop() {
		s, err := ComputeShare(secret.Heap{}, shares[:17], 200)
		if err != nil {
			b.Fatal(err)
		}
		s.Destroy()
	}
}
