package rot

import "runtime"

// AwaitWaiting returns when n requests wait for the TPM.
func (p *Prover) AwaitWaiting(n int) {
	for {
		p.mu.Lock()
		have := len(p.waiting)
		p.mu.Unlock()
		if have >= n {
			return
		}
		runtime.Gosched()
	}
}
