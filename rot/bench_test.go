package rot_test

import (
	"sync"
	"testing"

	"github.com/sledvault/sledvault/rot"
)

// BenchmarkAppraise: decode, two signatures, log replay, pins.
func BenchmarkAppraise(b *testing.B) {
	s := newSled(b, "A1")
	req := request(1)
	ev := s.evidence(b, req)
	b.SetBytes(int64(len(ev)))
	for b.Loop() {
		if _, err := rot.Appraise(ev, req, s.expect, rot.Seen{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEvidence: one quote of the fake, alone, and for 31 waiting peers.
func BenchmarkEvidence(b *testing.B) {
	b.Run("alone", func(b *testing.B) {
		s := newSled(b, "A1")
		for b.Loop() {
			s.evidence(b, request(1))
		}
	})
	b.Run("batch-31", func(b *testing.B) {
		s := newSled(b, "A1")
		for b.Loop() {
			var wg sync.WaitGroup
			for i := range 31 {
				wg.Go(func() {
					if _, err := s.prover.Evidence(b.Context(), request(byte(i))); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
		}
		b.ReportMetric(float64(s.tpm.Quotes)/float64(b.N), "quotes/op")
	})
}
