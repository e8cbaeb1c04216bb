package lrtq

import (
	"math/rand/v2"
	"testing"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/secret"
)

func benchShares(b *testing.B, k int) (secret.RackSecret, []Share) {
	b.Helper()
	s, err := NewSecret(secret.Heap{}, rand.NewChaCha8([32]byte{1}))
	if err != nil {
		b.Fatal(err)
	}
	shares, err := Split(secret.Heap{}, rand.NewChaCha8([32]byte{2}), s, TotalShares, k)
	if err != nil {
		b.Fatal(err)
	}
	return s, shares
}

// BenchmarkSplit makes the 255 shares of a rack of 16 sleds.
func BenchmarkSplit(b *testing.B) {
	s, _ := benchShares(b, 9)
	r := rand.NewChaCha8([32]byte{})
	b.ReportAllocs()
	for b.Loop() {
		shares, err := Split(secret.Heap{}, r, s, TotalShares, 9)
		if err != nil {
			b.Fatal(err)
		}
		gfss.DestroyAll(shares)
	}
}

// BenchmarkCombine rebuilds the secret of a rack of 16 sleds. The reference takes 750 µs.
func BenchmarkCombine(b *testing.B) {
	_, shares := benchShares(b, 9)
	b.ReportAllocs()
	for b.Loop() {
		s, err := Combine(secret.Heap{}, shares[:9])
		if err != nil {
			b.Fatal(err)
		}
		s.Destroy()
	}
}

// BenchmarkCreate makes the packages of a rack of 16 sleds. The reference takes 455 µs.
func BenchmarkCreate(b *testing.B) {
	var members []Board
	for _, n := range names(16) {
		members = append(members, pc(n))
	}
	r := rand.NewChaCha8([32]byte{})
	b.ReportAllocs()
	for b.Loop() {
		packages, err := Create(secret.Heap{}, r, rackID(), members)
		if err != nil {
			b.Fatal(err)
		}
		for _, p := range packages {
			p.Destroy()
		}
	}
}
