package replay_test

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/sledvault/sledvault/vault/quorum/replay"
)

// BenchmarkReplay replays one long log, reading included; BenchmarkRead only reads it.
func BenchmarkReplay(b *testing.B) {
	benchmark(b, func(log []byte) { _, _ = replay.Run("", bytes.NewReader(log)) })
}

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
	before := cpu()
	for b.Loop() {
		f(log)
	}
	b.ReportMetric(float64(events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(events)*float64(b.N)/(cpu()-before).Seconds(), "events/cpu-s")
}

// cpu is the processor time of this process, collection of garbage included: what a shared machine cannot blur.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const benchSeed = 2
