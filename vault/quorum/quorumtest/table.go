package quorumtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// Scope says how far a fault suspends an invariant.
type Scope uint8

// The scopes.
const (
	Holds       Scope = iota // the invariant holds under the fault
	SuspendedAt              // not for the sleds that the fault struck, until they have committed a later epoch
	Suspended                // not for the rest of the run
)

// Verdict is one suspended cell of the table fault × invariant. All other cells hold.
type Verdict struct {
	Fault     Fault
	Invariant Invariant
	Scope     Scope
	Reason    string
}

const (
	whyRolledBack = "it forgot what it had said"
	whyGrantFirst = "a grant or proof that does not come before its message makes an honest message look forged; a transport must keep the order, or break"
	whyRogue      = "its shares fit their digests but not each other, and digests are all that can be checked; comparing K+1 shares finds it"
	whyTwoConfigs = "the grant covers every configuration that it makes for the epoch; a member that stored another one than was decided, or misses an older secret in it, refuses the commit"
)

// Verdicts is the table's data: which invariants a fault suspends, and why. The checker consults it whenever a check fails.
func Verdicts() []Verdict {
	return []Verdict{
		{FaultLostSync, P2, SuspendedAt, whyRolledBack},
		{FaultLostSync, P3, SuspendedAt, whyRolledBack},
		{FaultLostSync, P9, SuspendedAt, whyRolledBack},
		{FaultRollbackRefused, P2, SuspendedAt, whyRolledBack},
		{FaultRollbackRefused, P3, SuspendedAt, whyRolledBack},
		{FaultRollbackRefused, P9, SuspendedAt, whyRolledBack},
		{FaultRollbackUnseen, P2, SuspendedAt, whyRolledBack},
		{FaultRollbackUnseen, P3, SuspendedAt, whyRolledBack},
		{FaultRollbackUnseen, P9, SuspendedAt, whyRolledBack},
		{FaultLoss, P5, Suspended, whyGrantFirst},
		{FaultReorder, P5, Suspended, whyGrantFirst},
		{FaultFalseAck, P2, SuspendedAt, "it lies; a decision counts on K+Z acknowledgements because Z of them may be worth nothing"},
		{FaultFalseAck, P9, SuspendedAt, "it has nothing to commit, and is sent the configuration instead"},
		{FaultRogue, P1, SuspendedAt, whyTwoConfigs},
		{FaultRogue, P9, Suspended, whyTwoConfigs},
		{FaultRogue, C2, Suspended, whyTwoConfigs},
		{FaultRogue, X5, Suspended, whyTwoConfigs},
		{FaultRogue, P5, Suspended, "who finds the damage names whom it got it from, or nobody"},
		{FaultRogue, P17, Suspended, "requests are answered: the secret is damaged"},
		{FaultRogue, P18, Suspended, "a coordination on top of the damage ends"},
		{FaultRogue, P6, Suspended, whyRogue},
		{FaultRogue, P19, Suspended, whyRogue},
		{FaultRogue, P20, Suspended, whyRogue},
		{FaultRogue, P21, Suspended, whyRogue},
		{FaultRogue, P22, Suspended, whyRogue},
		{FaultRogue, X6, Suspended, whyRogue},
		{FaultRogue, X8, Suspended, whyRogue},
		{FaultOldJournal, C1, Suspended, "an epoch of which no sled has stored anything may be used again"},
	}
}

type cell struct {
	scope  Scope
	reason string
}

var verdicts = func() (t [faults][invariants]cell) { //nolint:gochecknoglobals // made once, of Verdicts
	for _, v := range Verdicts() {
		t[v.Fault][v.Invariant] = cell{v.Scope, v.Reason}
	}
	return t
}()

// suspends lists, for each invariant, the faults that suspend it.
var suspends = func() (t [invariants][]Fault) { //nolint:gochecknoglobals // made once, of verdicts
	for f := range faults {
		for i := range invariants {
			if verdicts[f][i].scope != Holds {
				t[i] = append(t[i], f)
			}
		}
	}
	return t
}()

// Table counts what was injected, what was checked under it, and what was seen.
type Table struct {
	now     [invariants]uint64             // since the set of faults last grew
	count   [faults + 1][invariants]uint64 // checks in runs in which the fault had happened; the last row: all
	excused [faults][invariants]uint64     // failed checks that a verdict excuses
	faults  [faults]uint64                 // injected

	actions, delivered uint64 // delivered: by actions, without those of the last phase
	met, lies          map[string]uint64
	codes              map[reason.Code]uint64      // of notes and refusals
	alarms             map[quorum.AlarmKind]uint64 // raised
	kinds              map[quorum.Kind]uint64      // messages given to nodes
}

// NewTable makes an empty table.
func NewTable() *Table {
	return &Table{
		met: map[string]uint64{}, lies: map[string]uint64{}, codes: map[reason.Code]uint64{}, alarms: map[quorum.AlarmKind]uint64{}, kinds: map[quorum.Kind]uint64{},
	}
}

func (t *Table) flush(mask uint32) {
	for f := range faults {
		if mask&(1<<f) != 0 {
			for i, n := range t.now {
				t.count[f][i] += n
			}
		}
	}
	for i, n := range t.now {
		t.count[faults][i] += n
	}
	t.now = [invariants]uint64{}
}

// Add adds the counts of another table.
func (t *Table) Add(o *Table) {
	for f := range o.count {
		for i, n := range o.count[f] {
			t.count[f][i] += n
		}
	}
	for f, n := range o.faults {
		t.faults[f] += n
		for i, n := range o.excused[f] {
			t.excused[f][i] += n
		}
	}
	t.actions += o.actions
	t.delivered += o.delivered
	sum(t.met, o.met)
	sum(t.lies, o.lies)
	sum(t.codes, o.codes)
	sum(t.alarms, o.alarms)
	sum(t.kinds, o.kinds)
}

func sum[K comparable](into, from map[K]uint64) {
	for k, n := range from {
		into[k] += n
	}
}

// String prints one line per fault: how often it was injected, and how often each invariant was checked in runs in which
// it had happened. ~ marks a suspended cell; the reasons follow.
func (t *Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-17s%9s", "fault", "injected")
	for i := range invariants {
		fmt.Fprintf(&b, "%8s", i)
	}
	for f := range faults + 1 {
		if f == faults {
			fmt.Fprintf(&b, "\n%-17s%9s", "(all)", "")
		} else {
			fmt.Fprintf(&b, "\n%-17s%9d", f, t.faults[f])
		}
		for i := range invariants {
			mark := ""
			if f < faults && verdicts[f][i].scope != Holds {
				mark = "~"
			}
			fmt.Fprintf(&b, "%8s", mark+short(t.count[f][i]))
		}
	}
	b.WriteString("\nsuspended:")
	for _, v := range Verdicts() {
		where := "at the sled"
		if v.Scope == Suspended {
			where = "everywhere"
		}
		fmt.Fprintf(&b, "\n  %-17s%-6s%s, %s excused: %s", v.Fault, v.Invariant, where, short(t.excused[v.Fault][v.Invariant]), v.Reason)
	}
	return b.String()
}

// short prints a count in at most six characters.
func short(n uint64) string {
	switch {
	case n < 100_000:
		return fmt.Sprint(n)
	case n < 10_000_000:
		return fmt.Sprintf("%dk", n/1000)
	case n < 10_000_000_000:
		return fmt.Sprintf("%dM", n/1_000_000)
	}
	return fmt.Sprintf("%dG", n/1_000_000_000)
}

// Seen prints what was met: messages, alarms, lies, and every code of a note or refusal.
func (t *Table) Seen() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d actions delivered a message (%.0f %%)", t.delivered, t.actions, 100*float64(t.delivered)/float64(max(1, t.actions)))
	line(&b, "met", t.met)
	line(&b, "messages", t.kinds)
	line(&b, "alarms", t.alarms)
	line(&b, "lies", t.lies)
	line(&b, "reasons", t.codes)
	return b.String()
}

func line[K ~string](b *strings.Builder, what string, m map[K]uint64) {
	fmt.Fprintf(b, "\n%s:", what)
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(b, " %s %d,", k, m[k])
	}
}
