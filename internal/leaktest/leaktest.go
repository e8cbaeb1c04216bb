// Package leaktest looks for a difference in time between two kinds of input, by Welch's t-test, as dudect does: the
// statistical half of the attack test gf-cache-timing. It measures time, so its tests have the build tag leak and run
// alone on a quiet machine: make leak.
package leaktest

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const (
	measurements = 50_000
	perClock     = 8   // calls per measurement: a clock reading costs more than one call
	rounds       = 3   // a leak is there in each of them, noise is not
	suspicious   = 4.5 // a |t| that honest noise passes once in a hundred thousand times
)

// Case is a function under test.
type Case struct {
	Name  string
	Leaks bool           // a control: a leak must be found
	Fixed []byte         // the input of one kind
	Shape func(b []byte) // brings random bytes of the same length, the other kind, into a valid form; may be nil
	Run   func(in []byte)
}

// Check measures every case and holds it against [Case.Leaks].
func Check(t *testing.T, cases ...Case) {
	t.Helper()
	for _, c := range cases {
		values := make([]float64, 0, rounds)
		leaks := true
		for round := uint64(1); leaks && round <= rounds; round++ {
			value := welch(c, round)
			values = append(values, math.Round(10*value)/10)
			leaks = math.Abs(value) > suspicious
		}
		t.Logf("%-24s t = %v", c.Name, values)
		if leaks != c.Leaks {
			t.Errorf("%s: t = %v: leaks %t, want %t; more than %v counts", c.Name, values, leaks, c.Leaks, suspicious)
		}
	}
}

// welch runs the function on both kinds of input, mixed by chance, and returns Welch's t of the two sets of times.
func welch(c Case, seed uint64) float64 {
	r := rand.New(rand.NewPCG(seed, 2))
	input, random := make([]byte, len(c.Fixed)), make([]byte, len(c.Fixed))
	times, kinds := make([]float64, measurements), make([]int, measurements)
	for i := range times {
		kinds[i] = r.IntN(2)
		for j := range random { // drawn for both kinds, so that the work before the clock is the same
			random[j] = byte(r.Uint32())
		}
		if c.Shape != nil {
			c.Shape(random)
		}
		mask := -byte(kinds[i])
		for j := range input {
			input[j] = c.Fixed[j]&^mask | random[j]&mask
		}
		start := time.Now()
		for range perClock {
			c.Run(input)
		}
		times[i] = float64(time.Since(start))
	}
	limit := slices.Sorted(slices.Values(times))[len(times)*9/10] // interruptions say nothing
	var n, sum, squares [2]float64
	for i, v := range times {
		if v <= limit {
			n[kinds[i]]++
			sum[kinds[i]] += v
			squares[kinds[i]] += v * v
		}
	}
	mean := [2]float64{sum[0] / n[0], sum[1] / n[1]}
	variance := func(k int) float64 { return (squares[k]/n[k] - mean[k]*mean[k]) / n[k] }
	return (mean[0] - mean[1]) / math.Sqrt(variance(0)+variance(1))
}
