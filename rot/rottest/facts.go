package rottest

import (
	"sync"

	"github.com/sledvault/sledvault/rot"
)

// Facts holds a sled's facts. The zero value is usable; it is safe for concurrent use.
type Facts struct {
	mu sync.Mutex
	f  rot.Facts
}

// Get returns the facts: for [rot.ProverConfig].
func (f *Facts) Get() rot.Facts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.f
}

// Set replaces the facts.
func (f *Facts) Set(v rot.Facts) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.f = v
}

// Pins returns the present values of some registers, as an enrolment record pins them.
func (t *TPM) Pins(pcrs ...int) map[int][][32]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[int][][32]byte, len(pcrs))
	for _, p := range pcrs {
		out[p] = [][32]byte{t.PCRs[p]}
	}
	return out
}
