package vault

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
)

// TestBeginAfterSet: a controller that asks to begin while another's enrolment is being finished finds an enrolled sled.
// What it must not do is delete the counter of the seal that was just made.
func TestBeginAfterSet(t *testing.T) {
	t.Parallel()
	d := &Daemon{reasons: reason.NewLog(), state: api.StateUnclaimed, claim: &claiming{}}
	d.cfg.State.Copies = []string{t.TempDir(), t.TempDir()}
	d.claim.mu.Lock() // the other's set is being adopted
	refused := make(chan error, 1)
	go func() {
		_, err := d.EnrollBegin(t.Context(), &api.Conn{Remote: "late"}, enroll.BeginRequest{Nonce: make([]byte, 32)})
		refused <- err
	}()
	for tick := time.NewTicker(time.Millisecond); len(refused) == 0 && !waitsForLock("EnrollBegin"); <-tick.C {
	}
	d.mu.Lock()
	d.state = api.StateClaimed
	d.mu.Unlock()
	d.claim.mu.Unlock()
	if err := <-refused; reason.CodeOf(err) != CodeEnrolled {
		t.Errorf("have %v, want %s", err, CodeEnrolled)
	}
	if d.claim.conn != nil {
		t.Error("an enrolment is under way")
	}
}

// waitsForLock reports whether a goroutine of this process waits for a mutex in a function.
func waitsForLock(name string) bool {
	b := make([]byte, 4<<20)
	stacks := strings.Split(string(b[:runtime.Stack(b, true)]), "\n\n")
	return slices.ContainsFunc(stacks, func(s string) bool {
		return strings.Contains(s, "[sync.Mutex.Lock") && strings.Contains(s, name)
	})
}
