// Command benchmarks measures secret sharing beside HashiCorp Vault's, in turns and in one process: docs/benchmarks.md §3.
//
// It is a module of its own, so that nothing of Vault comes near the modules of the product.
package main

import (
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/vault/shamir"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/secret"
)

// The largest rack: 32 members, threshold 17, a secret of 32 bytes.
const (
	members   = 32
	threshold = 17
	size      = 32

	rounds = 7
	turn   = 200 * time.Millisecond
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func run() error {
	plain := make([]byte, size)
	if _, err := rand.Read(plain); err != nil {
		return err
	}
	sec, err := secret.Take[secret.RackSecretKind](secret.Heap{}, slices.Clone(plain))
	if err != nil {
		return err
	}
	ours, err := gfss.Split(secret.Heap{}, rand.Reader, sec, members, threshold)
	if err != nil {
		return err
	}
	theirs, err := shamir.Split(plain, members, threshold)
	if err != nil {
		return err
	}
	memory := mrand.NewChaCha8([32]byte{1})
	split := func(r interface{ Read([]byte) (int, error) }) func() error {
		return func() error {
			s, err := gfss.Split(secret.Heap{}, r, sec, members, threshold)
			gfss.DestroyAll(s)
			return err
		}
	}
	fmt.Printf("%-36s %10s %10s %8s  %s\n", "processor time, median of 7 turns", "ours", "Vault's", "ratio", "slowest/fastest")
	for _, c := range []struct {
		name         string
		ours, theirs func() error
		want         float64
		limit        time.Duration
	}{
		{"P8 combine 17 shares", func() error {
			s, err := gfss.Combine(secret.Heap{}, ours[:threshold])
			if err == nil {
				s.Destroy()
			}
			return err
		}, func() error { _, err := shamir.Combine(theirs[:threshold]); return err }, 3, 8 * time.Microsecond},
		{"P9 split 32/17, system randomness", split(rand.Reader), func() error { _, err := shamir.Split(plain, members, threshold); return err }, 3, 0},
		{"P9 split 32/17, randomness in memory", split(memory), func() error { _, err := shamir.Split(plain, members, threshold); return err }, 3, 76 * time.Microsecond},
	} {
		a, b, err := turns(c.ours, c.theirs)
		if err != nil {
			return err
		}
		ratio := float64(b[rounds/2]) / float64(a[rounds/2])
		verdict := ""
		if ratio < c.want {
			verdict += fmt.Sprintf("  MISSED: want a ratio of %.0f", c.want)
		}
		if c.limit > 0 && a[rounds/2] > c.limit {
			verdict += fmt.Sprintf("  MISSED: want %v", c.limit)
		}
		fmt.Printf("%-36s %10v %10v %8.1f %8.2f%s\n", c.name, a[rounds/2], b[rounds/2], ratio, float64(a[rounds-1])/float64(a[0]), verdict)
	}
	return nil
}

// turns measures two functions one after the other, several times, and sorts what it got.
func turns(a, b func() error) (as, bs []time.Duration, err error) {
	for range rounds {
		for _, side := range []struct {
			f   func() error
			out *[]time.Duration
		}{{a, &as}, {b, &bs}} {
			d, err := perCall(side.f)
			if err != nil {
				return nil, nil, err
			}
			*side.out = append(*side.out, d)
		}
	}
	slices.Sort(as)
	slices.Sort(bs)
	return as, bs, nil
}

// perCall is the processor time of one call, so that other work on the machine counts little. What the garbage collector
// does meanwhile in threads of its own is not in it.
func perCall(f func() error) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := used()
	for n := 1; ; n++ {
		if err := f(); err != nil {
			return 0, err
		}
		if n%16 == 0 {
			if d := used() - begin; d >= turn {
				return d / time.Duration(n), nil
			}
		}
	}
}

// used is the processor time of this thread.
func used() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_THREAD, &u); err != nil {
		panic(err) // the arguments are constants
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
