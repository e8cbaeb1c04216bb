//go:build linux

// Package peers measures sledvault beside the programs that people use today for the same job: clevis with tang, clevis
// with a TPM, tpm2-tools and systemd-creds. Everything runs on one machine in one go, in turns, so that the ratios hold
// whatever the machine and whatever else it does.
//
// It owns what is counted on each side and says so with every figure. It refuses a peer's answer that is not the secret,
// so that nothing fast and wrong is measured. It uses simrack for racks of ours; it has no part in the product.
//
// Read next: rack.go for what is measured on our racks, tang.go and tpm.go for the peers; docs/benchmarks.md for results.
package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Options says what to measure.
type Options struct {
	Sleds   int    // of the large rack; 0 means 31
	Reps    int    // repetitions of everything short; 0 means 9
	Daemon  string // path of sledvaultd
	Command string // path of sledvault
	// Unseal is the command line of a program that calls [UnsealFile] with the file named after it, and does nothing else.
	Unseal []string
	// Tell is told what is being measured; it may be nil.
	Tell func(string)
}

// Report is what was measured. Text writes it for people.
type Report struct {
	Machine  Machine  `json:"machine"`
	Figures  []Figure `json:"figures"`
	Ratios   []Ratio  `json:"ratios"`
	Binaries []Binary `json:"binaries"`
	Memory   []Memory `json:"memory"`
	Notes    []string `json:"notes"`
}

// bench is one run.
type bench struct {
	o      Options
	dir    string // of this run; removed at its end
	rep    Report
	secret []byte // what the peers lock away
}

// Run measures everything. It needs the tools that [Lacking] names.
func Run(ctx context.Context, o Options) (rep Report, err error) {
	if o.Sleds == 0 {
		o.Sleds = 31
	}
	if o.Reps == 0 {
		o.Reps = 9
	}
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	dir, err := os.MkdirTemp("", "svbench-")
	if err != nil {
		return rep, fmt.Errorf("peers: folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{o: o, dir: dir, secret: []byte("thirty-two bytes of public data!")}
	b.rep.Machine = look(ctx)
	for _, part := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"three sleds beside clevis sss 2 of 3 (P1, P4, P5, P6)", b.three},
		{"one sealed secret beside clevis tpm2, tpm2-tools and systemd-creds (P2)", b.sealed},
		{"from the last share to a key (P7)", b.lastShare},
		{"five sleds: memory", b.five},
		{fmt.Sprintf("%d sleds beside %d clevis sss at once (P3)", o.Sleds, o.Sleds), b.many},
	} {
		o.Tell(part.what)
		if err := part.do(ctx); err != nil {
			return b.rep, err
		}
	}
	b.rep.Binaries = sizes(o.Daemon, o.Command)
	b.rep.Machine.LoadAfter = load()
	return b.rep, nil
}

// add records samples and returns their figure.
func (b *bench) add(id, who, what string, s []time.Duration) Figure {
	f := NewFigure(id, who, what, s)
	b.rep.Figures = append(b.rep.Figures, f)
	return f
}

// ratio records the ratio of two medians against what it must reach.
func (b *bench) ratio(id, what string, value float64, want string, ok bool) {
	b.rep.Ratios = append(b.rep.Ratios, Ratio{id, what, value, want, ok})
}

func (b *bench) note(format string, args ...any) {
	b.rep.Notes = append(b.rep.Notes, fmt.Sprintf(format, args...))
}

// wall measures how long f takes.
func wall(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}
