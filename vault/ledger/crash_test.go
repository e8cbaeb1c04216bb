package ledger

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/sledvault/sledvault/vault/reason"
)

// errCut is a power cut.
var errCut = errors.New("power cut")

// cutAfter returns a hook that cuts the power after n steps, and the list of steps seen.
func cutAfter(n int, seen *[]string) func(string) error {
	return func(step string) error {
		*seen = append(*seen, step)
		if len(*seen) > n {
			return errCut
		}
		return nil
	}
}

// powerCut ends the process and cuts the power.
func (n *node) powerCut(l *Ledger) {
	n.tb.Helper()
	if l != nil {
		if err := l.Close(); err != nil {
			n.tb.Fatal(err)
		}
	}
	for _, d := range n.disks {
		if d != nil {
			d.powerCut()
		}
	}
	n.cfg.Steps = nil
}

// cutSave saves a value and cuts the power after the given number of steps. It reports whether Save came to its end, and
// the step after which the cut came.
func (n *node) cutSave(l *Ledger, v uint64, steps int) (done bool, at string) {
	n.tb.Helper()
	var seen []string
	l.cfg.Steps = cutAfter(steps, &seen)
	err := l.Save(context.Background(), state(v))
	switch {
	case err == nil:
		done = true
	case errors.Is(err, errCut):
		if err := l.Save(context.Background(), state(v)); reason.CodeOf(err) != CodeStopped {
			n.tb.Fatalf("save after a save that was cut off: %v", err)
		}
		at = seen[len(seen)-1]
	default:
		n.tb.Fatal(err)
	}
	n.powerCut(l)
	return done, at
}

// cutOpen starts and cuts the power after the given number of steps; true if the start came to its end.
func (n *node) cutOpen(steps int) (done bool) {
	n.tb.Helper()
	var seen []string
	n.cfg.Steps = cutAfter(steps, &seen)
	l, _, _, err := n.open()
	if err != nil && !errors.Is(err, errCut) {
		n.tb.Fatal(err)
	}
	n.powerCut(l)
	return err == nil
}

// either opens and wants one of two values; after a save that came to its end, only the new one.
func (n *node) either(old, fresh uint64, saved bool) (*Ledger, uint64) {
	n.tb.Helper()
	l, st, _, err := n.open()
	if err != nil {
		n.tb.Fatal(err)
	}
	got := value(st)
	if got != fresh && (saved || got != old) {
		n.tb.Fatalf("opened %d, had %d, saved %d (came to its end: %v)", got, old, fresh, saved)
	}
	if st := l.Status(); st.Degraded || st.Counter != st.Sequence || st.Counter != n.life.value() {
		n.tb.Fatalf("not whole after a start: %+v", st)
	}
	return l, got
}

// killEverywhere cuts the power after each step of a save, and of the start that follows, and looks what is left.
func killEverywhere(t *testing.T, n *node, inStart bool) {
	l := n.create(1)
	last, points := uint64(1), map[string]bool{}
	for steps := 0; ; steps++ {
		fresh := last + 1
		done, at := n.cutSave(l, fresh, steps)
		points[at] = true
		for k := 0; inStart && !n.cutOpen(k); k++ {
		}
		l, last = n.either(last, fresh, done)
		if done {
			break
		}
		// A start must not lose what an earlier start has shown.
		n.powerCut(l)
		l, last = n.either(last, last, true)
	}
	for _, want := range []string{"save/approve", "save/A/write", "save/A/rename", "save/A/sync", "save/A/verify", "save/B/write", "save/B/verify", "increment"} {
		if !points[want] {
			t.Errorf("no cut after %q: have %v", want, points)
		}
	}
}

func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	t.Run("disks", func(t *testing.T) { killEverywhere(t, newNode(t).onDisks(), true) })
	t.Run("folders", func(t *testing.T) { killEverywhere(t, newNode(t), true) })
}

// A save that skips a number has two increments to be cut off at.
func TestKilledWhileSkipping(t *testing.T) {
	t.Parallel()
	for steps := 0; ; steps++ {
		n := newNode(t).onDisks()
		n.powerCut(n.create(1))
		delete(n.disks[1].files, LedgerFile)
		delete(n.disks[1].stable, LedgerFile)
		before := n.life.value()
		l, r := n.mustOpen(1)
		if !r.Skip || !r.Repaired[1] {
			t.Fatalf("report %+v, want a repair and a skip", r)
		}
		done, _ := n.cutSave(l, 2, steps)
		l, _ = n.either(1, 2, done)
		if !done {
			continue
		}
		if got := n.life.value(); got != before+2 {
			t.Errorf("counter %d, want %d: one number left out", got, before+2)
		}
		if l.Status().Single {
			t.Error("still single after both copies were written")
		}
		return
	}
}

// Faults of media, each on A, on B and on both, once and for good, in every operation.
func TestFaults(t *testing.T) {
	t.Parallel()
	errMedium := errors.New("medium error")
	for _, op := range []string{"write", "rename", "sync", "read", "torn", "lying", "gone"} {
		for where := 1; where < 4; where++ {
			for _, cut := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%02b/cut=%v", op, where, cut), func(t *testing.T) {
					n := newNode(t).onDisks()
					l := n.create(1)
					save(t, l, 2)
					set := func(on bool) {
						for i, d := range n.disks {
							if where&(1<<i) == 0 {
								continue
							}
							d.torn, d.lying = on && op == "torn", on && op == "lying"
							d.fail = nil
							if on && op != "torn" && op != "lying" {
								d.fail = func(o, _ string) error {
									if o == op || op == "gone" {
										return errMedium
									}
									return nil
								}
							}
						}
					}
					set(true)
					err := l.Save(t.Context(), state(3))
					st := l.Status()
					set(false)
					switch {
					case op == "lying": // nobody can tell
						if err != nil || st.Degraded {
							t.Fatalf("%v, %+v", err, st)
						}
					case where == 3:
						if !errors.Is(err, ErrSave) || !st.Stopped {
							t.Fatalf("both media failed: %v, %+v", err, st)
						}
						if err := l.Save(t.Context(), state(4)); reason.CodeOf(err) != CodeStopped {
							t.Fatalf("went on after a failed save: %v", err)
						}
					case err != nil || !st.Degraded || !st.Single || st.Counter != n.life.value():
						t.Fatalf("one medium failed: %v, %+v", err, st)
					}
					if cut {
						n.powerCut(l)
					} else if err := l.Close(); err != nil {
						t.Fatal(err)
					}
					if op == "lying" && where == 3 && cut {
						if _, _, _, err := n.open(); !errors.Is(err, ErrLostSeal) {
							t.Fatalf("both media lost what they had confirmed: %v", err)
						}
						return
					}
					l, last := n.either(2, 3, err == nil)
					save(t, l, last+1)
					n.powerCut(l)
					n.either(last+1, last+1, true)
				})
			}
		}
	}
}

// A medium that cannot be written for a long time, then can.
func TestReadOnlyMedium(t *testing.T) {
	t.Parallel()
	for bad := range 2 {
		n := newNode(t).onDisks()
		n.cfg.Reasons = reason.NewLog()
		l := n.create(1)
		n.disks[bad].fail = func(op, _ string) error {
			if op == "write" {
				return errors.New("read-only file system")
			}
			return nil
		}
		v := uint64(1)
		for range 4 {
			before := l.Status().Sequence
			v++
			save(t, l, v)
			st := l.Status()
			if !st.Degraded || !st.Single || st.Copies[bad].State != CopyFailed || st.Copies[1-bad].State != CopyOK {
				t.Fatalf("status %+v", st)
			}
			if skipped := st.Sequence - before; v > 2 && skipped != 2 {
				t.Errorf("sequence moved by %d, want 2 while single", skipped)
			}
		}
		if n.cfg.Reasons.Total(CodeDegraded) != 4 {
			t.Errorf("reasons %+v", n.cfg.Reasons.Entries())
		}
		n.powerCut(l)
		l, r := n.mustOpen(v) // still read-only: runs on one copy
		if st := l.Status(); !st.Degraded || !r.Skip || r.Repaired != [2]bool{} || len(r.Notes) != 1 {
			t.Errorf("status %+v, report %+v", st, r)
		}
		n.disks[bad].fail = nil
		save(t, l, v+1)
		if st := l.Status(); st.Degraded || st.Single {
			t.Errorf("not healed: %+v", st)
		}
		n.powerCut(l)
		n.either(v+1, v+1, true)
	}
}
