package replay_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/sledvault/sledvault/vault/quorum/replay"
)

// BenchmarkReplay replays one long log, reading included; BenchmarkRead only reads it.
func BenchmarkReplay(b *testing.B) { benchmark(b, func(log []byte) { _, _ = replay.Run("", bytes.NewReader(log)) }) }

func BenchmarkRead(b *testing.B) {
	benchmark(b, func(log []byte) {
		for rd := replay.NewReader(bytes.NewReader(log)); ; {
			if _, err := rd.Next(); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func benchmark(b *testing.B, f func(log []byte)) {
	b.Helper()
	log, _, events := generate(benchSeed, 30000)
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		f(log)
	}
	b.ReportMetric(float64(events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

const benchSeed = 2
