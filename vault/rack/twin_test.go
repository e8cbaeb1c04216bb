package rack_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// toy is one change as rack.md §4 and §5 tell it, with sets and nothing kept that can be counted.
type toy struct {
	phase             rack.Phase
	epoch, last       ident.Epoch
	coordinator       ident.Baseboard
	members, removed  map[ident.Baseboard]bool
	threshold         int
	acked, committed  map[ident.Baseboard]bool
	everybody, marked bool // all must acknowledge; removed sleds are marked
}

func set(b []ident.Baseboard) map[ident.Baseboard]bool {
	m := map[ident.Baseboard]bool{}
	for _, x := range b {
		m[x] = true
	}
	return m
}

// tolerance is the table of rack.md §4.
func tolerance(members int) int {
	for _, row := range []struct{ upTo, is int }{{4, 0}, {8, 1}, {15, 2}, {23, 3}, {32, 4}} {
		if members <= row.upTo {
			return row.is
		}
	}
	panic("more members than a rack has")
}

func (c *toy) need() int {
	if c.everybody {
		return len(c.members)
	}
	return min(c.threshold+tolerance(len(c.members)), len(c.members))
}

func (c *toy) ready() bool { return c.phase == rack.Preparing && len(c.acked) >= c.need() }

// enough members have committed for another change to build on this one.
func (c *toy) enough() bool {
	return c.phase == rack.Done || c.phase == rack.Decided && len(c.committed) >= min(c.threshold+tolerance(len(c.members)), len(c.members))
}

func (c *toy) settled() bool { return c.enough() && (len(c.removed) == 0 || c.marked) }

// twin is a rack: every change there ever was.
type twin struct {
	highest ident.Epoch
	changes []*toy
}

func (w *twin) now() *toy {
	if len(w.changes) == 0 {
		return nil
	}
	return w.changes[len(w.changes)-1]
}

// base is the newest decided change.
func (w *twin) base() *toy {
	for _, c := range slices.Backward(w.changes) {
		if c.phase == rack.Decided || c.phase == rack.Done {
			return c
		}
	}
	return nil
}

func sizes(members []ident.Baseboard, threshold int) (reason.Code, int) {
	if n := len(members); n < 3 || n > 32 || len(set(members)) != n {
		return rack.CodeMembers, 0
	}
	if threshold == 0 {
		threshold = len(members)/2 + 1
	}
	if threshold < 2 || threshold >= len(members) {
		return rack.CodeThreshold, 0
	}
	return "", threshold
}

func (w *twin) beginInit(members []ident.Baseboard, threshold int) reason.Code {
	switch c := w.now(); {
	case c != nil && c.phase == rack.Preparing:
		return rack.CodeBusy
	case w.base() != nil:
		return rack.CodeInitialised
	}
	code, k := sizes(members, threshold)
	if code == "" {
		w.highest++
		w.changes = append(w.changes, &toy{
			phase: rack.Preparing, epoch: w.highest, coordinator: ident.SortBaseboards(members)[0], members: set(members), removed: map[ident.Baseboard]bool{},
			threshold: k, acked: map[ident.Baseboard]bool{}, committed: map[ident.Baseboard]bool{}, everybody: true,
		})
	}
	return code
}

func (w *twin) begin(p rack.Plan) reason.Code {
	base := w.base()
	switch c := w.now(); {
	case c != nil && c.phase == rack.Preparing:
		return rack.CodeBusy
	case base == nil:
		return rack.CodeUninitialised
	case !base.enough():
		return rack.CodeBusy
	case !base.settled():
		return rack.CodeUnmarked
	}
	if n := len(p.Members); n < 3 || n > 32 || len(set(p.Members)) != n {
		return rack.CodeMembers
	}
	added, removed := 0, map[ident.Baseboard]bool{}
	for _, m := range p.Members {
		if !base.members[m] {
			added++
		}
	}
	for m := range base.members {
		if !set(p.Members)[m] {
			removed[m] = true
		}
	}
	kind := rack.Kind("")
	switch {
	case added > 0 && len(removed) == 0:
		kind = rack.Add
	case added == 0 && len(removed) > 0:
		kind = rack.Remove
	case added == 0:
		kind = rack.Rotate
	}
	if p.Kind != kind || kind == "" {
		return rack.CodeMembers
	}
	code, k := sizes(p.Members, int(p.Threshold))
	switch {
	case code != "":
		return code
	case !base.committed[p.Coordinator] || !set(p.Members)[p.Coordinator]:
		return rack.CodeCoordinator
	}
	w.highest++
	w.changes = append(w.changes, &toy{
		phase: rack.Preparing, epoch: w.highest, last: base.epoch, coordinator: p.Coordinator, members: set(p.Members), removed: removed, threshold: k,
		acked: map[ident.Baseboard]bool{}, committed: map[ident.Baseboard]bool{},
	})
	return ""
}

// same holds what the core shows against the twin.
func (w *twin) same(t *rapid.T, s *rack.State) {
	c := w.now()
	if (c == nil) != (s.Change == nil) || s.Highest != w.highest {
		t.Fatalf("have %+v, want %+v and highest %d", s, c, w.highest)
	}
	if c == nil {
		return
	}
	ch := s.Change
	var missing []ident.Baseboard
	for m := range c.members {
		if c.phase == rack.Preparing && !c.acked[m] || c.phase == rack.Decided && !c.committed[m] {
			missing = append(missing, m)
		}
	}
	equal := func(have []ident.Baseboard, want map[ident.Baseboard]bool) bool {
		return len(have) == len(want) && !slices.ContainsFunc(have, func(b ident.Baseboard) bool { return !want[b] })
	}
	base, last := w.base(), ident.Epoch(0)
	if base != nil {
		last = base.epoch
	}
	if ch.Epoch != c.epoch || ch.Phase != c.phase || ch.LastCommitted != c.last || ch.Coordinator != c.coordinator || int(ch.Threshold) != c.threshold ||
		ch.NeedAcks != c.need() || !equal(ch.Members, c.members) || !equal(ch.Acked, c.acked) || !equal(ch.Committed, c.committed) || !equal(ch.Removed, c.removed) ||
		ch.Ready() != c.ready() || ch.Settled() != c.settled() || !slices.Equal(ch.Missing(), ident.SortBaseboards(missing)) || s.LastCommitted() != last ||
		(s.Committed() == nil) != (base == nil) || base != nil && s.Committed().Epoch != base.epoch {
		t.Fatalf("have %+v (last %d), want %+v (last %d)", ch, s.LastCommitted(), c, last)
	}
}

// TestTwin plays an operator, coordinators and members who do anything at any time against the core and its twin.
func TestTwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var s rack.State
		w := &twin{}
		all := boards(36)
		agree := func(what string, err error, want reason.Code) {
			if reason.CodeOf(err) != want || (err == nil) != (want == "") {
				t.Fatalf("%s: have %v, want %q", what, err, want)
			}
		}
		group := func(t *rapid.T) []ident.Baseboard {
			n := rapid.SampledFrom([]int{3, 4, 5, 9, 32, 2, 33}).Draw(t, "members")
			from := rapid.SampledFrom([]int{0, 0, 1}).Draw(t, "from")
			g := slices.Clone(all[from : from+n])
			if rapid.IntRange(0, 9).Draw(t, "twice") == 0 {
				g[0] = g[1]
			}
			return g
		}
		threshold := func(t *rapid.T) int { return rapid.SampledFrom([]int{0, 0, 2, 3, 1, 5}).Draw(t, "threshold") }
		t.Repeat(map[string]func(*rapid.T){
			"init": func(t *rapid.T) {
				g, k := group(t), threshold(t)
				agree("init", s.BeginInit(g, ident.Threshold(k)), w.beginInit(g, k))
			},
			"change": func(t *rapid.T) {
				p := rack.Plan{
					Kind: rapid.SampledFrom([]rack.Kind{rack.Add, rack.Remove, rack.Rotate}).Draw(t, "kind"), Members: group(t),
					Threshold: ident.Threshold(threshold(t)), Coordinator: all[rapid.IntRange(0, 5).Draw(t, "coordinator")],
				}
				if base := w.base(); base != nil && rapid.Bool().Draw(t, "fitting") {
					switch n := len(set(p.Members)); {
					case n < len(base.members):
						p.Kind = rack.Remove
					case n > len(base.members):
						p.Kind = rack.Add
					default:
						p.Kind = rack.Rotate
					}
				}
				agree("change", s.BeginChange(p), w.begin(p))
			},
			"prepared": func(t *rapid.T) {
				c := w.now()
				if c == nil {
					return
				}
				who := rapid.SliceOfN(rapid.SampledFrom(all[:10]), 0, 8).Draw(t, "who")
				if rapid.Bool().Draw(t, "everybody") {
					who = all
				}
				want := false
				for _, m := range who {
					if c.phase == rack.Preparing && c.members[m] && !c.acked[m] {
						c.acked[m], want = true, true
					}
				}
				changed, err := s.Change.Prepared(completed(s.Change), who)
				if agree("prepared", err, ""); changed != want {
					t.Fatalf("prepared: have %t, want %t", changed, want)
				}
			},
			"decide": func(t *rapid.T) {
				c := w.now()
				if c == nil {
					return
				}
				err := s.Change.Decide(completed(s.Change), &quorum.Certificate{Epoch: s.Change.Epoch})
				if (err == nil) != c.ready() {
					t.Fatalf("decide: have %v, ready %t", err, c.ready())
				}
				if c.ready() {
					c.phase = rack.Decided
				}
			},
			"commit": func(t *rapid.T) {
				c := w.now()
				if c == nil {
					return
				}
				for _, m := range all[rapid.IntRange(0, 3).Draw(t, "from"):rapid.IntRange(3, 35).Draw(t, "to")] {
					want := c.phase == rack.Decided && c.members[m] && !c.committed[m]
					if want {
						c.committed[m] = true
						if len(c.committed) == len(c.members) {
							c.phase = rack.Done
						}
					}
					if have := s.Change.CommittedBy(m); have != want {
						t.Fatalf("commit by %s: have %t, want %t", m, have, want)
					}
				}
			},
			"finish": func(*rapid.T) { // so that there is something to build on
				c := w.now()
				if c == nil || c.phase != rack.Preparing {
					return
				}
				decide(t, &s, s.Change.Members)
				for _, m := range s.Change.Members {
					s.Change.CommittedBy(m)
				}
				c.acked, c.committed, c.phase = c.members, c.members, rack.Done
			},
			"mark": func(*rapid.T) {
				if c := w.now(); c != nil {
					c.marked, s.Change.Marked = true, true
				}
			},
			"abort": func(*rapid.T) {
				c := w.now()
				if c == nil {
					return
				}
				want := rack.CodeDecided
				if c.phase == rack.Preparing {
					c.phase, want = rack.Aborted, ""
				}
				agree("abort", s.Change.Abort(), want)
			},
			"again": func(t *rapid.T) {
				c := w.now()
				who := all[rapid.IntRange(0, 5).Draw(t, "coordinator")]
				if c == nil || c.phase != rack.Preparing || c.last == 0 {
					agree("again", s.Again(who), rack.CodeNoChange)
					return
				}
				c.phase = rack.Aborted
				var members []ident.Baseboard
				for m := range c.members {
					members = append(members, m)
				}
				want := w.begin(rack.Plan{Kind: s.Change.Kind, Members: members, Threshold: ident.Threshold(c.threshold), Coordinator: who})
				if want != "" {
					c.phase = rack.Preparing // nothing happened
				}
				agree("again", s.Again(who), want)
			},
			"": func(t *rapid.T) { w.same(t, &s) },
		})
	})
}
