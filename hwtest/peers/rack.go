//go:build linux

package peers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/vault"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
)

// rack builds a rack of ours, sets it up, and says how long its first configuration took from the operator's command to
// its end.
func (b *bench) rack(ctx context.Context, sleds int) (r *simrack.Rack, initTook time.Duration, err error) {
	var mu sync.Mutex
	var enrolled, done time.Time
	r, err = simrack.New(ctx, simrack.Options{Sleds: sleds, Daemon: b.o.Daemon, Command: b.o.Command, Tell: func(e simrack.Event) {
		mu.Lock()
		defer mu.Unlock()
		switch e.Text {
		case "rack enroll done":
			enrolled = time.Now()
		case "rack init done":
			done = time.Now()
		}
	}})
	if err != nil {
		return nil, 0, err
	}
	if _, err := r.Play(ctx, simrack.SceneInit); err != nil {
		return nil, 0, errors.Join(err, r.Close())
	}
	mu.Lock()
	defer mu.Unlock()
	return r, done.Sub(enrolled), nil
}

// boot is one boot of a sled: parts of it, each from the daemon's own clock.
type boot struct {
	threshold time.Duration // seal, peers, quorum, shares: from an open TPM to the rack secret
	seal      time.Duration // the part of it until the ledger is open
	secret    time.Duration // from process start to the rack secret
	unlocked  time.Duration // from process start to the last disk's key proved
}

func bootOf(st api.Status) (b boot) {
	for _, s := range st.Boot.Steps {
		switch s.Name {
		case vault.StepSeal, vault.StepPeers, vault.StepQuorum, vault.StepShares:
			b.threshold += fromMillis(s.MS)
		}
		switch s.Name {
		case vault.StepSeal:
			b.seal = fromMillis(s.MS)
		case vault.StepShares:
			b.secret = fromMillis(s.AtMS)
		}
	}
	b.unlocked = fromMillis(st.Boot.MSToUnlocked)
	return b
}

// settle is a pause between two boots of one sled. Peers take one knock of a sled in 250 ms (peers.md §2), and no machine
// boots twice in that time.
const settle = 500 * time.Millisecond

// cycle cuts the power of one sled, which has been up for a while, and waits for its disks.
func cycle(ctx context.Context, s *simrack.Sled) (boot, error) {
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return boot{}, ctx.Err()
	}
	if err := s.PowerCycle(); err != nil {
		return boot{}, err
	}
	st, err := s.Unlock(ctx)
	return bootOf(st), err
}

// cycleAll cuts the power of several sleds at once. Span is from the first daemon's start to the last disk.
func cycleAll(ctx context.Context, sleds []*simrack.Sled) (boots []boot, span time.Duration, err error) {
	boots = make([]boot, len(sleds))
	starts, errs := make([]time.Time, len(sleds)), make([]error, len(sleds))
	var wg sync.WaitGroup
	for i, s := range sleds {
		wg.Go(func() {
			if errs[i] = s.PowerCycle(); errs[i] != nil {
				return
			}
			starts[i] = time.Now()
			var st api.Status
			st, errs[i] = s.Unlock(ctx)
			boots[i] = bootOf(st)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, 0, err
	}
	first, last := starts[0], starts[0]
	for i, b := range boots {
		if starts[i].Before(first) {
			first = starts[i]
		}
		if end := starts[i].Add(b.unlocked); end.After(last) {
			last = end
		}
	}
	return boots, last.Sub(first), nil
}

// three is everything that is measured on three sleds, of which two are needed, in turns with clevis sss 2 of 3.
func (b *bench) three(ctx context.Context) (err error) {
	t, err := b.startTangs(ctx, "three", 2, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	var created []time.Duration
	var r *simrack.Rack
	for range min(b.o.Reps, 3) { // a rack for each first configuration; the last one stays
		if r != nil {
			if err := r.Close(); err != nil {
				return err
			}
		}
		var took time.Duration
		if r, took, err = b.rack(ctx, 3); err != nil {
			return err
		}
		created = append(created, took)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := b.unlocks(ctx, t, r); err != nil {
		return err
	}
	if err := b.belowThreshold(ctx, t, r); err != nil {
		return err
	}
	f := b.add("P6", "sledvault", "first configuration of 3 sleds, rack init from command to exit", created)
	b.ratio("P6", "first configuration, ms", f.Median, "1000 or less", f.Median <= 1000)
	return b.rotations(ctx, r)
}

// unlocks are P1 and P4.
func (b *bench) unlocks(ctx context.Context, t *tangs, r *simrack.Rack) error {
	var clevis, clevisMute, threshold, seal, secret, unlocked, mute, together, togetherUnlocked []time.Duration
	one, quiet := r.Sled(0), r.Sled(2)
	for range b.o.Reps {
		took, err := wall(func() error { return t.decrypt(ctx) })
		if err != nil {
			return err
		}
		clevis = append(clevis, took)
		t.servers[2].setMute(true)
		took, err = wall(func() error { return t.decrypt(ctx) })
		t.servers[2].setMute(false)
		if err != nil {
			return err
		}
		clevisMute = append(clevisMute, took)
		alone, err := cycle(ctx, one)
		if err != nil {
			return err
		}
		threshold, seal = append(threshold, alone.threshold), append(seal, alone.seal)
		secret, unlocked = append(secret, alone.secret), append(unlocked, alone.unlocked)
		silent, err := whileMute(ctx, one, quiet)
		if err != nil {
			return err
		}
		mute = append(mute, silent.secret)
		all, _, err := cycleAll(ctx, r.Sleds())
		if err != nil {
			return err
		}
		for _, x := range all {
			together, togetherUnlocked = append(together, x.threshold), append(togetherUnlocked, x.unlocked)
		}
	}
	peer := b.add("P1", "clevis sss", "2 of 3 tang, decrypt, process start included", clevis)
	in := b.add("P1", "sledvault", "one sled boots, two are up: unseal, connect, attest, combine", threshold)
	b.add("P1", "sledvault", "of that: unseal, read both copies of the ledger and the counter", seal)
	sec := b.add("P1", "sledvault", "the same from process start, with identity and TPM", secret)
	b.add("P1", "sledvault", "the same until cryptsetup has proved the disk's key", unlocked)
	b.add("P1", "sledvault", "three sleds boot at once: unseal, connect, attest, combine", together)
	b.add("P1", "sledvault", "the same from process start until the disk's key is proved", togetherUnlocked)
	pm := b.add("P4", "clevis sss", "P1 with one of three tang mute", clevisMute)
	om := b.add("P4", "sledvault", "process start to rack secret with one of two peers mute", mute)
	b.ratio("P1", "clevis sss ÷ unseal to combine, one sled boots", peer.Median/in.Median, "10 or more", peer.Median >= 10*in.Median)
	b.ratio("P1", "unseal to combine, one sled boots, ms", in.Median, "20 or less", in.Median <= 20)
	b.ratio("P1", "clevis sss ÷ ours, both with process start", peer.Median/sec.Median, "more than 1", peer.Median > sec.Median)
	b.ratio("P4", "ours with one mute peer ÷ without", om.Median/sec.Median, "1.15 or less", om.Median <= 1.15*sec.Median)
	b.ratio("P4", "clevis sss with one mute tang ÷ without", pm.Median/peer.Median, comparison, true)
	return nil
}

// whileMute boots a sled while another one takes connections and answers nothing. It waits until all are together again.
func whileMute(ctx context.Context, s, quiet *simrack.Sled) (boot, error) {
	pid := quiet.Pid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return boot{}, fmt.Errorf("peers: stop a daemon: %w", err)
	}
	b, err := cycle(ctx, s)
	if kill := syscall.Kill(pid, syscall.SIGCONT); err == nil && kill != nil {
		err = fmt.Errorf("peers: let a daemon go on: %w", kill)
	}
	if err != nil {
		return b, err
	}
	_, err = s.Await(ctx, "with its peers", func(st api.Status) bool { return st.Quorum != nil && len(st.Quorum.ConnectedPeers) == 2 })
	return b, err
}

// unlockTimeout is how long an unlock below the threshold is told to wait.
const unlockTimeout = 300 * time.Millisecond

// belowThreshold is P5: one sled alone, and clevis with one tang alone.
func (b *bench) belowThreshold(ctx context.Context, t *tangs, r *simrack.Rack) error {
	s, others := r.Sled(0), r.Sleds()[1:]
	for _, o := range others {
		if err := o.PowerOff(); err != nil {
			return err
		}
	}
	for _, o := range t.servers[1:] {
		if err := o.down(); err != nil {
			return err
		}
	}
	if err := s.PowerCycle(); err != nil {
		return err
	}
	if _, err := s.Await(ctx, "below the threshold", func(st api.Status) bool {
		return st.Boot.Error != nil && st.Boot.Error.Code == vault.CodeBelowThreshold
	}); err != nil {
		return err
	}
	var late, command, clevis []time.Duration
	for range b.o.Reps {
		took, err := wall(func() error { return refusedBy(ctx, s, others) })
		if err != nil {
			return err
		}
		late = append(late, took-unlockTimeout)
		if took, err = wall(func() error { return refusedByCommand(ctx, r, s) }); err != nil {
			return err
		}
		command = append(command, took-unlockTimeout)
		if took, err = wall(func() error { return t.decrypt(ctx) }); err == nil {
			return errors.New("peers: clevis opened the secret below its threshold")
		}
		clevis = append(clevis, took)
	}
	f := b.add("P5", "sledvault", "API: from the deadline to an error that names the missing", late)
	b.add("P5", "sledvault", "the same as a command, process start included", command)
	b.add("P5", "clevis sss", "two of three tang refuse connections: exit 1, nobody is named", clevis)
	b.ratio("P5", "error after the deadline, largest, ms", f.Max, "100 or less", f.Max <= 100)
	for _, o := range t.servers[1:] {
		if err := o.up(); err != nil {
			return err
		}
	}
	for _, o := range others {
		if _, err := cycle(ctx, o); err != nil {
			return err
		}
	}
	_, err := s.Unlock(ctx)
	return err
}

// refusedBy unlocks at the API and checks that the error names who is missing.
func refusedBy(ctx context.Context, s *simrack.Sled, missing []*simrack.Sled) error {
	_, err := s.Client().Unlock(ctx, unlockTimeout)
	if reason.CodeOf(err) != vault.CodeBelowThreshold {
		return fmt.Errorf("peers: unlock below the threshold: have %v, want %s", err, vault.CodeBelowThreshold)
	}
	for _, m := range missing {
		if !strings.Contains(err.Error(), m.Board.String()) {
			return fmt.Errorf("peers: unlock below the threshold does not name %s: %w", m.Board, err)
		}
	}
	return nil
}

func refusedByCommand(ctx context.Context, r *simrack.Rack, s *simrack.Sled) error {
	_, err := r.On(ctx, s, "unlock", "--wait", "--timeout", unlockTimeout.String())
	if ce, ok := errors.AsType[*simrack.CommandError](err); ok && ce.Code == 3 {
		return nil
	}
	return fmt.Errorf("peers: unlock below the threshold: have %v, want exit code 3", err)
}

// rotations is the rest of P6: a new epoch on a rack at work. Command lines without rotate are measured without it.
func (b *bench) rotations(ctx context.Context, r *simrack.Rack) error {
	help, err := r.Run(ctx, "rack", "--help")
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(strings.Split(string(help), "\n"), func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "rotate ") }) {
		b.note("this sledvault has no rack rotate: P6 is the first configuration only")
		return nil
	}
	var times []time.Duration
	for range b.o.Reps {
		took, err := wall(func() error { _, err := r.Run(ctx, "rack", "rotate", "--rack", r.File, "--json"); return err })
		if err != nil {
			return err
		}
		times = append(times, took)
	}
	f := b.add("P6", "sledvault", "new epoch of 3 sleds, rack rotate from command to exit", times)
	b.ratio("P6", "new epoch, ms", f.Median, "1000 or less", f.Median <= 1000)
	return nil
}
