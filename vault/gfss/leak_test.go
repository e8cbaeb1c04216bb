//go:build leak

// The statistical half of the attack test gf-cache-timing: not part of the ordinary run, because it measures time.
// Run it alone on a quiet machine: go test -tags leak -run Leak ./vault/gfss

package gfss

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/sledvault/sledvault/vault/secret"
)

const (
	measurements = 60_000
	perClock     = 8  // calls per measurement: a clock reading costs more than one call
	suspicious   = 10 // a |t| that honest noise does not reach (dudect's limit for "definitely")
)

// welch runs f on secrets that are all zero and on random ones, mixed by chance, and returns Welch's t of the two
// sets of times. Both kinds are copied to the same place before the clock starts.
func welch(f func(secret []byte), length int) float64 {
	r := rand.New(rand.NewPCG(1, 2))
	input, random := make([]byte, length), make([]byte, length)
	times, classes := make([]float64, measurements), make([]bool, measurements)
	for i := range times {
		classes[i] = r.IntN(2) == 1
		for j := range random { // drawn for both classes, so that the work before the clock is the same
			random[j] = byte(r.Uint32())
			input[j] = random[j] & -map[bool]byte{true: 1}[classes[i]]
		}
		start := time.Now()
		for range perClock {
			f(input)
		}
		times[i] = float64(time.Since(start))
	}
	sorted := slices.Sorted(slices.Values(times))
	limit := sorted[len(sorted)*9/10] // interruptions say nothing
	var n, sum, squares [2]float64
	for i, v := range times {
		if v <= limit {
			c := 0
			if classes[i] {
				c = 1
			}
			n[c]++
			sum[c] += v
			squares[c] += v * v
		}
	}
	mean := [2]float64{sum[0] / n[0], sum[1] / n[1]}
	variance := func(c int) float64 { return (squares[c]/n[c] - mean[c]*mean[c]) / n[c] }
	return (mean[0] - mean[1]) / math.Sqrt(variance(0)+variance(1))
}

func TestLeak(t *testing.T) {
	out := make([]byte, 32)
	coefficients := make([]byte, 16*32)
	shares := make([]Share, 17)
	for i := range shares {
		y, err := secret.Take[secret.ShareKind](secret.Heap{}, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		shares[i] = Share{byte(i + 1), y}
	}
	combine := func(b []byte) {
		for _, s := range shares[:4] {
			_ = s.Y.Use(func(y []byte) error { copy(y, b); return nil })
		}
		if s, err := Combine(secret.Heap{}, shares[:4]); err == nil {
			s.Destroy()
		}
	}
	var sink byte
	for _, c := range []struct {
		name  string
		leaks bool
		f     func(b []byte)
	}{
		{"evaluate", false, func(b []byte) { evaluate(out, b, coefficients, 31, 17) }},
		{"evaluate coefficients", false, func(b []byte) { evaluate(out, b, b, 31, 2) }},
		{"accumulate", false, func(b []byte) { accumulate(out, b, 0x9d) }},
		{"combine", false, combine},
		{"control: branches", true, func(b []byte) {
			for _, v := range b {
				sink ^= slowMul(0x9d, v)
			}
		}},
		{"control: early end", true, func(b []byte) {
			for _, v := range b {
				if v != 0 {
					sink ^= slowMul(v, 0x9d)
				}
			}
		}},
	} {
		value := welch(c.f, 32)
		t.Logf("%s: t = %.1f", c.name, value)
		if leaks := math.Abs(value) > suspicious; leaks != c.leaks {
			t.Errorf("%s: t = %.1f, leaks %v, want %v", c.name, value, leaks, c.leaks)
		}
	}
	_ = sink
}
