package vault

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
)

// The names of the boot steps. Status, logs and documents use them; they never change.
const (
	StepHarden   = "harden"   // protect the process
	StepAPI      = "api"      // serve the local and the underlay API
	StepIdentity = "identity" // read the baseboard identity from the service processor
	StepTPM      = "tpm"      // open the TPM and compare it with the enrolled one
	StepSeal     = "seal"     // open the sealed ledger
	StepClaim    = "claim"    // wait until a rack claims this sled
	StepPeers    = "peers"    // start the peer network
	StepQuorum   = "quorum"   // wait for a committed configuration
	StepShares   = "shares"   // collect a threshold of shares
	StepDisks    = "disks"    // derive the keys and open the disks
	StepRotate   = "rotate"   // move the disks to the newest key; they are open meanwhile
	StepDone     = "done"
)

// Pauses between attempts of a step that may succeed later: a device that does not answer yet.
const (
	retryFirst = 250 * time.Millisecond
	retryLast  = 15 * time.Second
)

// progress is the boot as status shows it.
type progress struct {
	start time.Time // of the process
	log   *slog.Logger

	mu       sync.Mutex
	step     string
	since    time.Time
	waiting  string
	err      error
	steps    []api.Step
	unlocked float64       // ms from start; 0 before
	news     chan struct{} // closed and replaced at each change
	tell     func()        // told of each change, too
}

func newProgress(start time.Time, log *slog.Logger) *progress {
	return &progress{start: start, since: start, step: StepHarden, log: log, news: make(chan struct{}), tell: func() {}}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// begin ends the step under way and starts the next.
func (p *progress) begin(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.steps = append(p.steps, api.Step{Name: p.step, MS: ms(now.Sub(p.since)), AtMS: ms(now.Sub(p.start))})
	p.log.Info("boot step", "done", p.step, "ms", ms(now.Sub(p.since)), "next", step)
	p.step, p.since, p.waiting, p.err = step, now, "", nil
	p.wake()
}

// reach begins the next step if the given one is under way.
func (p *progress) reach(from, to string) {
	if p.current() == from {
		p.begin(to)
	}
}

// wait says for what or whom the step under way waits, and why its last attempt failed.
func (p *progress) wait(what string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting, p.err = what, err
	p.wake()
}

// wake tells whoever waits for a change. The lock is held.
func (p *progress) wake() {
	close(p.news)
	p.news = make(chan struct{})
	p.tell()
}

// changed returns a channel that closes at the next change.
func (p *progress) changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.news
}

func (p *progress) current() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.step
}

// open records that every formatted disk is open. Only the first time counts.
func (p *progress) open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unlocked == 0 {
		p.unlocked = ms(time.Since(p.start))
		p.tell()
		p.wake()
	}
}

func (p *progress) snapshot() api.Boot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return api.Boot{
		Step: p.step, SinceMS: ms(time.Since(p.since)), Waiting: p.waiting, Error: api.ErrorOf(p.err),
		Steps: append([]api.Step{}, p.steps...), MSToUnlocked: p.unlocked,
	}
}

// insist runs one attempt of a step after another until it succeeds, the operator is needed, or ctx ends. While the
// operator is needed the boot stands still and says so; it does not exit, because a restart would say less.
func (d *Daemon) insist(ctx context.Context, step string, attempt func(context.Context) error) error {
	d.boot.begin(step)
	for pause := retryFirst; ; pause = min(2*pause, retryLast) {
		err := attempt(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		d.reasons.CountError(api.CodeInternal, "", err)
		d.log.Error("boot step failed", "step", step, "err", err, "hint", reason.HintOf(err))
		var again <-chan time.Time
		if reason.RemedyOf(err) == reason.Retry {
			d.boot.wait("trying again", err)
			again = time.After(pause)
		} else {
			d.boot.wait("the operator", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again:
		}
	}
}
