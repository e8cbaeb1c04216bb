//go:build linux

package peers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
)

// manyReps bounds how often the large rack boots; each time keeps the whole machine busy.
const manyReps = 3

// five measures what a daemon of a small rack holds.
func (b *bench) five(ctx context.Context) (err error) {
	r, _, err := b.rack(ctx, 5)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if _, _, err := cycleAll(ctx, r.Sleds()); err != nil {
		return err
	}
	return b.memory(r)
}

// many is the case P3, and the memory of a large rack.
func (b *bench) many(ctx context.Context) (err error) {
	t, err := b.startTangs(ctx, "many", 2, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	r, _, err := b.rack(ctx, b.o.Sleds)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var ours, peer, each []time.Duration
	for range min(b.o.Reps, manyReps) {
		took, err := wall(func() error { return t.crowd(ctx, b.o.Sleds) })
		if err != nil {
			return err
		}
		peer = append(peer, took)
		boots, span, err := cycleAll(ctx, r.Sleds())
		if err != nil {
			return err
		}
		ours = append(ours, span)
		for _, x := range boots {
			each = append(each, x.unlocked)
		}
	}
	p := b.add("P3", "clevis sss", fmt.Sprintf("%d at once, each 2 of 3 tang, nobody attests", b.o.Sleds), peer)
	o := b.add("P3", "sledvault", fmt.Sprintf("%d sleds cold, %d of %d, attested mesh, first start to last disk", b.o.Sleds, r.Threshold(), b.o.Sleds), ours)
	b.add("P3", "sledvault", "each of these sleds, from its start to its disk", each)
	b.ratio("P3", fmt.Sprintf("%d clevis sss at once ÷ %d sleds cold to all unlocked", b.o.Sleds, b.o.Sleds), p.Median/o.Median, "5 or more", p.Median >= 5*o.Median)
	if err := b.memory(r); err != nil {
		return err
	}
	return b.wide(ctx, r.Threshold(), b.o.Sleds)
}

// crowd has n clevis open the secret at once.
func (t *tangs) crowd(ctx context.Context, n int) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = t.decrypt(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// wide measures one clevis that has the threshold of the large rack: what a single node of the crowd would do if it asked
// for as much as ours does.
func (b *bench) wide(ctx context.Context, k, n int) (err error) {
	t, err := b.startTangs(ctx, "wide", k, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	var times []time.Duration
	for range min(b.o.Reps, manyReps) {
		took, err := wall(func() error { return t.decrypt(ctx) })
		if err != nil {
			return err
		}
		times = append(times, took)
	}
	b.add("P3", "clevis sss", fmt.Sprintf("a single one, %d of %d tang", k, n), times)
	return nil
}

func (b *bench) memory(r *simrack.Rack) error {
	type held struct{ all, anon int64 }
	var all []held
	for _, s := range r.Sleds() {
		rss, anon, err := resident(s.Pid())
		if err != nil {
			return err
		}
		all = append(all, held{rss, anon})
	}
	slices.SortFunc(all, func(x, y held) int { return int(x.all - y.all) })
	mid := all[len(all)/2]
	b.rep.Memory = append(b.rep.Memory, Memory{len(all), mid.all, all[len(all)-1].all, mid.anon})
	return nil
}

// Boots measures cold boots of racks of several sizes: how long each sled takes from its start to its open disk.
func Boots(ctx context.Context, o Options, sizes []int) (figures []Figure, err error) {
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	b := &bench{o: o}
	for _, n := range sizes {
		o.Tell(fmt.Sprintf("%d sleds", n))
		r, _, err := b.rack(ctx, n)
		if err != nil {
			return figures, err
		}
		var times []time.Duration
		for range max(o.Reps, 1) {
			boots, _, err := cycleAll(ctx, r.Sleds())
			if err != nil {
				return figures, errors.Join(err, r.Close())
			}
			for _, x := range boots {
				times = append(times, x.unlocked)
			}
		}
		if err := r.Close(); err != nil {
			return figures, err
		}
		figures = append(figures, NewFigure("boot", fmt.Sprint(n), "cold boot of all, process start to open disk", times))
	}
	return figures, nil
}
