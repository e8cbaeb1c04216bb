//go:build linux

package simrack_test

import (
	"errors"
	"testing"
	"time"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/vault/api"
)

// exitRetry is the exit code of a command that may go through if it is run again.
const exitRetry = 3

// TestKilledEnrolment kills a real daemon before a system call that changes its state or what its TPM keeps, while the sled,
// which was reset, is enrolled again. Run again, the command goes through; until then it asks for nothing but another try.
func TestKilledEnrolment(t *testing.T) {
	t.Parallel()
	r := newRack(t)
	s := r.Sled(2)
	points := map[string]int{}
	step := max(1, *killStep/8)
	for n := 1; ; n += step {
		if err := errors.Join(s.Stop(), s.Start()); err != nil { // the supervisor is slow with a daemon that dies again and again
			t.Fatal(err)
		}
		if _, err := s.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.On(t.Context(), s, "seal", "reset", "--baseboard", s.Board.String(), "--yes-i-know"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Await(t.Context(), "unclaimed", func(st api.Status) bool { return st.State == api.StateUnclaimed }); err != nil {
			t.Fatal(err)
		}
		tr := watch{Pid: s.Pid(), Dir: s.Dir, Skip: []string{s.Log, s.Trace}, N: n}.start(t)
		if err := enrollAgain(t, r, s); err != nil {
			t.Log(s.LogTail(4096))
			t.Fatalf("killed before call %d: %v", n, err)
		}
		_ = tr.in.Close()
		if _, err := s.Client().Status(t.Context()); err != nil { // a daemon that sleeps makes no call
			t.Fatal(err)
		}
		point := tr.end()
		if _, err := s.Await(t.Context(), "member", func(st api.Status) bool { return st.State == api.StateMember }); err != nil {
			t.Log(s.LogTail(4096))
			t.Fatalf("killed before call %d, %s: %v", n, point, err)
		}
		if point == "" {
			t.Logf("an enrolment makes fewer than %d calls", n)
			break
		}
		points[point]++
	}
	if len(points) < 4 {
		t.Errorf("killed before %v", points)
	}
	t.Logf("killed before %v", points)
	play(t, r, simrack.SceneColdBoot)
}

// enrollAgain runs the command until it goes through.
func enrollAgain(t *testing.T, r *simrack.Rack, s *simrack.Sled) error {
	t.Helper()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for until := time.Now().Add(30 * time.Second); ; <-again.C {
		_, err := r.Run(t.Context(), "rack", "enroll", "--rack", r.File, "--again", s.Name)
		if ce, ok := errors.AsType[*simrack.CommandError](err); !ok || ce.Code != exitRetry || time.Now().After(until) {
			return err
		}
		t.Logf("tried again: %v", err)
	}
}
