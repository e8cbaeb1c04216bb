package vault_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault"
	"github.com/sledvault/sledvault/vault/api"
)

// saveSteps are the steps of a protected save while both media work, in their order (ledger.md §5).
func saveSteps() []string {
	steps := []string{"save/approve"}
	for _, c := range []string{"A", "B"} {
		for _, s := range []string{"write", "check", "rename", "sync", "verify"} {
			steps = append(steps, "save/"+c+"/"+s)
		}
	}
	return append(steps, "increment")
}

// traced is a frame in a trace.
type traced struct {
	kind, epoch string
	saves       int  // protected saves of the node's state before it
	next        bool // nothing but frames of its epoch since the last one
}

// readTrace takes the lines of marker and ledger steps of one sled apart, and reports the first that is out of order:
// a save that lacks a step or has its steps in another order, a sequence that does not rise, or a frame during a save of the node's state.
func readTrace(lines []string) (frames []traced, err error) {
	var saving string // what is being saved
	var steps []string
	var last uint64 // sequence
	var saves int
	var since []string // epochs of the frames since the last save of the node's state
	for i, l := range lines {
		bad := func(why string) error { return fmt.Errorf("line %d %q: %s", i+1, l, why) }
		var of string
		var f traced
		var to string
		var seq uint64
		switch {
		case strings.HasPrefix(l, "step observed/"): // of the observed part, which moves no counter
		case scan(l, "step %s", &of):
			steps = append(steps, of)
		case scan(l, "save begin of=%s", &of):
			if saving != "" {
				return nil, bad("during another save")
			}
			saving, steps = of, nil
		case scan(l, "save done sequence=%d of=%s", &seq, &of):
			if of != saving || seq <= last {
				return nil, bad(fmt.Sprintf("after save of %q, sequence %d", saving, last))
			}
			if !slices.Equal(steps, saveSteps()) {
				return nil, bad(fmt.Sprintf("after steps %v", steps))
			}
			saving, last = "", seq
			if of == "quorum" {
				saves, since = saves+1, nil
			}
		case scan(l, "frame %s epoch=%s to=%s", &f.kind, &f.epoch, &to):
			if saving == "quorum" {
				return nil, bad("during a save")
			}
			since = append(since, f.epoch)
			f.saves, f.next = saves, !slices.ContainsFunc(since, func(e string) bool { return e != f.epoch })
			frames = append(frames, f)
		default:
			return nil, bad("unknown")
		}
	}
	if saving != "" {
		return nil, fmt.Errorf("the save of %s has no end", saving)
	}
	return frames, nil
}

func scan(l, format string, into ...any) bool {
	n, err := fmt.Sscanf(l, format, into...)
	return err == nil && n == len(into)
}

// TestTrace: on real daemons every frame of a rotation that depends on a save follows it, and every save has all of its
// steps, the counter's last, before it is done.
func TestTrace(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	for _, s := range r.sleds {
		s.cfg.Log.TraceMarker = filepath.Join(s.dir, "trace")
		f, err := os.OpenFile(s.cfg.Log.TraceMarker, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		must(t, err)
		t.Cleanup(func() { _ = f.Close() })
		s.options = func(o vault.Options) vault.Options {
			return vault.WithSteps(o, func(step string) error {
				_, err := fmt.Fprintf(f, "step %s\n", step) // appended: the file holds the order of all
				return err
			})
		}
		s.start()
	}
	r.enroll()
	r.init()
	for _, s := range r.sleds {
		_, err := s.local().Format(t.Context(), "data0", api.FormatRequest{KeepData: true})
		must(t, err)
	}
	before := map[*testSled]int{}
	for _, s := range r.sleds {
		before[s] = len(s.trace())
	}
	r.rotate()
	sent := map[string]int{}
	for _, s := range r.sleds {
		s.rotatedTo(2)
	}
	for _, s := range r.sleds {
		s.stop()
		lines := s.trace()
		if !strings.Contains(strings.Join(lines[:before[s]], "\n"), "save begin of=enrolment\n") {
			t.Errorf("%s: no mark of its first save", s.name)
		}
		frames, err := readTrace(lines[before[s]:])
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		seen := map[string]bool{}
		for _, f := range frames {
			if f.epoch != "2" {
				continue
			}
			sent[f.kind]++
			depends := f.kind == "prepare" || f.kind == "prepare_ack" || f.kind == "commit_advance"
			if depends && (f.saves == 0 || !f.next && !seen[f.kind]) {
				t.Errorf("%s: have the first %s after %d saves and other frames, want it right after its save", s.name, f.kind, f.saves)
			}
			seen[f.kind] = true
		}
	}
	if sent["prepare"] < 2 || sent["prepare_ack"] < 2 {
		t.Errorf("have %v, want two of prepare and prepare_ack at least", sent)
	}
	t.Log(sent)
}

// trace reads the lines that the sled has marked.
func (s *testSled) trace() []string {
	b, err := os.ReadFile(s.cfg.Log.TraceMarker)
	must(s.rack.t, err)
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// TestReadTrace: the reader sees what is out of order.
func TestReadTrace(t *testing.T) {
	t.Parallel()
	save := []string{"save begin of=quorum"}
	for _, s := range saveSteps() {
		save = append(save, "step "+s)
	}
	save = append(save, "save done sequence=5 of=quorum")
	frame := "frame prepare_ack epoch=2 to=P:S"
	good := append(slices.Clone(save), frame)
	frames, err := readTrace(good)
	if err != nil || len(frames) != 1 || frames[0] != (traced{"prepare_ack", "2", 1, true}) {
		t.Fatalf("have %v, %v", frames, err)
	}
	if frames, err = readTrace(append([]string{frame}, save...)); err != nil || frames[0].saves != 0 {
		t.Errorf("frame before its save: have %v, %v", frames, err)
	}
	if frames, err = readTrace(slices.Concat(save, []string{"frame share epoch=1 to=P:S", frame})); err != nil || frames[1].next {
		t.Errorf("frame of another step: have %v, %v", frames, err)
	}
	for name, lines := range map[string][]string{
		"frame in a save": slices.Insert(slices.Clone(good), 5, frame), "no end": save[:len(save)-1], "twice": slices.Concat(save, save),
		"no counter": slices.Delete(slices.Clone(good), len(save)-2, len(save)-1), "not renamed": slices.Delete(slices.Clone(good), 4, 5), "unknown": {"x"},
	} {
		if _, err := readTrace(lines); err == nil {
			t.Errorf("%s: have no error", name)
		}
	}
}
