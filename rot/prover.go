package rot

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// Quoted is a quote with the register values that it covers.
type Quoted struct {
	Attest, Signature []byte
	PCRs              [][32]byte // ascending by register
}

// Attestor is what evidence needs from a TPM. Calls never overlap.
type Attestor interface {
	// AKPublic is the TPMT_PUBLIC of the attestation key.
	AKPublic() []byte
	// Quote signs extra and the SHA-256 values of the given registers.
	Quote(ctx context.Context, extra [32]byte, pcrs []int) (Quoted, error)
	// CertifyCounter signs extra and the value of the counter.
	CertifyCounter(ctx context.Context, extra [32]byte) (attest, sig []byte, err error)
	// EventLog is the firmware's log, as the kernel gives it.
	EventLog(ctx context.Context) ([]byte, error)
}

// DefaultCommandTimeout is the deadline of one TPM command.
const DefaultCommandTimeout = 20 * time.Second

// maxWaiting bounds the requests that wait for the TPM.
const maxWaiting = 256

// ProverConfig says what a [Prover] speaks for.
type ProverConfig struct {
	Attestor  Attestor
	Baseboard ident.Baseboard
	// Facts gives the sled's state. LedgerSequence must be what the counter holds, or evidence is refused here.
	Facts func() Facts
	// PCRs is the selection of the quote; nil means DefaultPCRs.
	PCRs []int
	// CommandTimeout bounds one TPM command; 0 means DefaultCommandTimeout.
	CommandTimeout time.Duration
}

// Prover makes this sled's evidence. One quote answers all requests that wait when the TPM becomes free (evidence.md §4).
// It owns one goroutine; Close ends it.
type Prover struct {
	c      ProverConfig
	akName []byte
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{} // holds one token while something waits

	mu      sync.Mutex
	closed  bool
	waiting []*job
	moved   bool // the counter changed since the certificate was made

	counter *certificate // owned by the goroutine
}

type job struct {
	ctx context.Context
	req Request
	out chan result // takes one result without blocking
}

type result struct {
	evidence *Evidence
	err      error
}

type certificate struct {
	attest, sig []byte
	parsed      *Attest
	value       uint64
}

// NewProver checks the configuration and starts the prover.
func NewProver(c ProverConfig) (*Prover, error) {
	if c.Attestor == nil || c.Facts == nil {
		return nil, errors.New("rot: new prover: want an attestor and facts")
	}
	if err := c.Baseboard.Validate(); err != nil {
		return nil, err
	}
	if c.PCRs == nil {
		c.PCRs = DefaultPCRs()
	}
	if err := checkSelection(c.PCRs); err != nil {
		return nil, err
	}
	if c.CommandTimeout == 0 {
		c.CommandTimeout = DefaultCommandTimeout
	}
	name, err := CheckAKPublic(c.Attestor.AKPublic())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Prover{c: c, akName: name, cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go p.run(ctx)
	return p, nil
}

// Baseboard is the identity that the evidence names.
func (p *Prover) Baseboard() ident.Baseboard { return p.c.Baseboard }

// Evidence answers one request, together with all others that wait for the TPM.
func (p *Prover) Evidence(ctx context.Context, req Request) ([]byte, error) {
	j := &job{ctx: ctx, req: req, out: make(chan result, 1)}
	if err := p.enqueue(j); err != nil {
		return nil, err
	}
	select {
	case r := <-j.out:
		if r.err != nil {
			return nil, r.err
		}
		return r.evidence.Encode()
	case <-ctx.Done():
		return nil, proverFailed(context.Cause(ctx), "evidence was given up while waiting for the TPM")
	case <-p.done:
		return nil, proverClosed()
	}
}

// CounterMoved says that the counter was incremented: the next evidence carries a new certificate of it.
func (p *Prover) CounterMoved() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved = true
}

// Close ends the prover and waits for it. Waiting requests are refused.
func (p *Prover) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	<-p.done
}

func proverClosed() error {
	return reason.Later(CodeProverClosed, "", "rot: evidence refused: the prover is closed")
}

func proverFailed(cause error, text string) error {
	e := reason.Wrap(cause, CodeProver, hint(CodeProver), "rot: %s", text)
	e.Remedy = reason.Retry
	return e
}

func (p *Prover) enqueue(j *job) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return proverClosed()
	}
	if len(p.waiting) >= maxWaiting {
		return reason.Later(CodeProverBusy, hint(CodeProverBusy), "rot: evidence refused: %d requests wait for the TPM", len(p.waiting))
	}
	p.waiting = append(p.waiting, j)
	p.signal()
	return nil
}

func (p *Prover) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Prover) run(ctx context.Context) {
	defer close(p.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		// A certificate takes the TPM as long as a quote does. It is made before the batch is closed, so that whoever comes
		// meanwhile is in it: at a start that is most of the rack.
		facts, err := p.certified(ctx)
		runtime.Gosched() // handshakes that are about to ask, too: one quote serves them all
		if batch := p.take(); len(batch) > 0 {
			p.answer(ctx, batch, facts, err)
		}
	}
}

// take removes up to MaxBatch requests whose callers still wait.
func (p *Prover) take() (batch []*job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for n < len(p.waiting) && len(batch) < MaxBatch {
		if j := p.waiting[n]; j.ctx.Err() == nil {
			batch = append(batch, j)
		}
		n++
	}
	p.waiting = append([]*job(nil), p.waiting[n:]...)
	if len(p.waiting) > 0 {
		p.signal()
	}
	return batch
}

func (p *Prover) answer(ctx context.Context, batch []*job, facts Facts, err error) {
	var made []*Evidence
	if err == nil {
		made, err = p.make(ctx, batch, facts)
	}
	for i, j := range batch {
		if err != nil {
			j.out <- result{err: err}
			continue
		}
		j.out <- result{evidence: made[i]}
	}
}

// make quotes once for the whole batch. It starts over once if the TPM was reset since the counter was certified, or if
// something extended a register between reading and quoting it.
func (p *Prover) make(ctx context.Context, batch []*job, facts Facts) ([]*Evidence, error) {
	out, stale, err := p.quote(ctx, batch, facts)
	if err != nil || !stale {
		return out, err
	}
	if facts, err = p.certified(ctx); err != nil {
		return nil, err
	}
	if out, stale, err = p.quote(ctx, batch, facts); err == nil && stale {
		err = reason.Later(CodeNotReady, hint(CodeNotReady), "rot: evidence refused: the TPM's registers or reset count keep changing")
	}
	return out, err
}

func (p *Prover) quote(ctx context.Context, batch []*job, facts Facts) (out []*Evidence, stale bool, err error) {
	log, err := p.eventLog(ctx)
	if err != nil {
		return nil, false, err
	}
	ak := p.c.Attestor.AKPublic()
	bindings := make([][32]byte, len(batch))
	for i, j := range batch {
		bindings[i] = binding(j.req, ak, facts)
	}
	root := merkleRoot(bindings)
	cmd, cancel := context.WithTimeout(ctx, p.c.CommandTimeout)
	defer cancel()
	q, err := p.c.Attestor.Quote(cmd, root, p.c.PCRs)
	if err != nil {
		return nil, false, proverFailed(err, "quote")
	}
	v, err := VerifyQuote(q.Attest, q.Signature, ak, root, p.c.PCRs, q.PCRs)
	if reason.CodeOf(err) == CodePCRDigest {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, proverFailed(err, "own quote does not verify")
	}
	if have := p.counter.parsed.Clock; have.ResetCount != v.Clock.ResetCount || have.RestartCount != v.Clock.RestartCount {
		p.counter = nil
		return nil, true, nil
	}
	for i := range batch {
		out = append(out, &Evidence{
			Kind: KindTPM, Baseboard: p.c.Baseboard, Facts: facts, AKPublic: ak, Quote: q.Attest, Signature: q.Signature,
			PCRs: q.PCRs, EventLog: log, Counter: p.counter.attest, CounterSignature: p.counter.sig,
			Place: Place{Index: uint8(i), Count: uint8(len(batch)), Path: merklePath(bindings, i)},
		})
	}
	return out, false, nil
}

func (p *Prover) eventLog(ctx context.Context) ([]byte, error) {
	cmd, cancel := context.WithTimeout(ctx, p.c.CommandTimeout)
	defer cancel()
	log, err := p.c.Attestor.EventLog(cmd)
	if err != nil {
		return nil, proverFailed(err, "read the event log")
	}
	if len(log) > MaxEventLog {
		return nil, refuse(CodeEventLog, "own event log refused: have %d bytes, want at most %d", len(log), MaxEventLog)
	}
	return log, nil
}

// certified returns the facts together with a counter certificate that fits them. A save in progress may be between its
// file and its increment: facts that do not fit are read once more, then the caller is told to come back.
func (p *Prover) certified(ctx context.Context) (Facts, error) {
	p.mu.Lock()
	if p.moved {
		p.counter, p.moved = nil, false
	}
	p.mu.Unlock()
	facts := p.c.Facts()
	if p.counter != nil && p.counter.value == facts.LedgerSequence {
		return facts, nil
	}
	if err := p.certify(ctx); err != nil {
		return Facts{}, err
	}
	if facts = p.c.Facts(); p.counter.value != facts.LedgerSequence {
		return Facts{}, reason.Later(CodeNotReady, hint(CodeNotReady), "rot: evidence refused: have ledger sequence %d, want the counter's value %d",
			facts.LedgerSequence, p.counter.value)
	}
	return facts, nil
}

func (p *Prover) certify(ctx context.Context) error {
	cmd, cancel := context.WithTimeout(ctx, p.c.CommandTimeout)
	defer cancel()
	attest, sig, err := p.c.Attestor.CertifyCounter(cmd, CounterExtra(p.akName))
	if err != nil {
		return proverFailed(err, "certify the counter")
	}
	a, err := verifyAttest(attest, sig, p.c.Attestor.AKPublic(), stAttestNV)
	if err != nil {
		return proverFailed(err, "own counter certificate does not verify")
	}
	r, err := VerifyCounter(attest, sig, p.c.Attestor.AKPublic(), CounterExtra(p.akName), a.Name)
	if err != nil {
		return proverFailed(err, "own counter certificate does not verify")
	}
	p.counter = &certificate{attest: attest, sig: sig, parsed: a, value: r.Value}
	return nil
}
