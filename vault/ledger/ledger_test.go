package ledger

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/sledvault/sledvault/vault/reason"
)

func TestSaveAndOpen(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]*node{"folders": newNode(t), "disks": newNode(t).onDisks()} {
		t.Run(name, func(t *testing.T) {
			l := n.create(1)
			for v := uint64(2); v < 6; v++ {
				save(t, l, v)
			}
			st := l.Status()
			if st.Degraded || st.Single || st.Stopped || st.Sequence != st.Counter || st.Generation != 5 || st.Saves != 5 || st.Counter != n.life.value() {
				t.Errorf("status %+v", st)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if err := l.Save(t.Context(), state(9)); reason.CodeOf(err) != CodeStopped {
				t.Errorf("save after close: %v", err)
			}
			l, r := n.mustOpen(5)
			if r.Raised != 0 || r.Repaired != [2]bool{} || r.Skip || len(r.Notes) != 0 {
				t.Errorf("report %+v", r)
			}
			save(t, l, 6)
			if got := l.Status(); got.Generation != 6 || got.Sequence != st.Sequence+1 {
				t.Errorf("status %+v", got)
			}
		})
	}
}

func TestAbsentIsNotDamaged(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if _, _, _, err := n.open(); !errors.Is(err, ErrAbsent) {
		t.Fatalf("nothing there: %v", err)
	}
	gone := newNode(t)
	gone.cfg.Dirs[1] = filepath.Join(gone.cfg.Dirs[1], "not-mounted")
	_, _, _, err := gone.open()
	if !errors.Is(err, ErrLostSeal) || reason.HintOf(err) != hintMedium {
		t.Errorf("one medium missing, the other empty: %v", err)
	}
	if _, err := os.Stat(gone.cfg.Dirs[1]); err == nil {
		t.Error("a start made a state folder")
	}
	l := n.create(1)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, d := range n.cfg.Dirs {
		if err := os.WriteFile(filepath.Join(d, LedgerFile), []byte("not a ledger"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, _, r, err := n.open()
	lost, ok := errors.AsType[*LostSealError](err)
	if !ok || !errors.Is(err, ErrLostSeal) || lost.Copies[0].State != CopyDamaged || lost.Copies[1].State != CopyDamaged || r.Copies != lost.Copies {
		t.Fatalf("both damaged: %v, report %+v", err, r)
	}
	for _, d := range n.cfg.Dirs {
		if b, err := os.ReadFile(filepath.Join(d, LedgerFile)); err != nil || string(b) != "not a ledger" {
			t.Errorf("damaged copy was touched: %q, %v", b, err)
		}
	}
	if _, err := Create(t.Context(), n.cfg, n.life.first(), state(1)); !errors.Is(err, ErrExists) {
		t.Errorf("created over damage: %v", err)
	}
	if err := MoveAside(n.cfg.Dirs); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(n.cfg.Dirs[0], LedgerFile+".old-1")); err != nil {
		t.Error(err)
	}
	n.create(2)
}

// A TPM that hangs is no lost seal.
func TestBusyIsNotLost(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if err := n.create(1).Close(); err != nil {
		t.Fatal(err)
	}
	busy := reason.Later("tpm-timeout", "", "no answer in time")
	_, _, _, err := Open(t.Context(), n.cfg, func(context.Context, []byte, [][]byte) (Sealer, error) { return nil, busy })
	if errors.Is(err, ErrLostSeal) || reason.RemedyOf(err) != reason.Retry {
		t.Errorf("have %v, want to be told to try again", err)
	}
	l, _ := n.mustOpen(1)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Save(ended, state(2)); !errors.Is(err, context.Canceled) || l.Status().Stopped {
		t.Errorf("save after the end: %v, %+v", err, l.Status())
	}
	save(t, l, 2)
}
