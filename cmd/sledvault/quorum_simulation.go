package main

import (
	"cmp"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/quorum/replay"
	"github.com/sledvault/sledvault/vault/reason"
)

// maxLines bounds what is said about one action: the last one, which heals everything, has thousands of events.
const maxLines = 200

// simulation is a failed run of our own simulation, as a machine for the debugger. Its events are the actions of the run,
// and at last the healing of everything. The simulator runs as a coroutine that pauses after each action.
type simulation struct {
	failure *quorumtest.Failure
	play    func(begin func(*quorumtest.Sim), step func(int, quorumtest.Action, *quorumtest.Sim)) error // the failure's Replay
	at, len int
	sim     *quorumtest.Sim // paused
	checked int             // events inside of the actions, after each of which everything was checked
	lines   []string        // of the action under way
	result  error           // of the run, once it is over
	told    bool            // that an invariant is broken

	next func() (struct{}, bool)
	stop func()
}

func openSimulation(in io.Reader) (*simulation, error) {
	f, err := quorumtest.ReadFailure(in)
	if err != nil {
		return nil, reason.Wrap(err, replay.CodeSimulation, "the simulation writes such files: docs/testing.md §8", "neither an array of events nor a failed run of the simulation")
	}
	m := &simulation{failure: f, play: f.Replay}
	m.start()
	return m, nil
}

// start plays the run from its beginning and pauses before the first action.
func (m *simulation) start() {
	m.at, m.len, m.checked, m.lines, m.result, m.told = 0, len(m.failure.Actions)+1, 0, nil, nil, false
	m.next, m.stop = iter.Pull(func(yield func(struct{}) bool) {
		paused := true // false once nobody listens any more; the run then goes on to its end
		pause := func() { paused = paused && yield(struct{}{}) }
		m.result = m.play(func(s *quorumtest.Sim) {
			m.sim = s
			s.Watch = func(e quorumtest.Event) {
				m.checked++
				m.lines = append(m.lines, strings.TrimSpace(e.String()))
			}
			pause()
		}, func(int, quorumtest.Action, *quorumtest.Sim) { pause() })
	})
	m.next()
}

// Rewind implements [replay.Machine].
func (m *simulation) Rewind() {
	m.stop()
	m.start()
}

// Len implements [replay.Machine]. A run ends with the action that breaks an invariant.
func (m *simulation) Len() int { return m.len }

// At implements [replay.Machine].
func (m *simulation) At() int { return m.at }

// Event implements [replay.Machine].
func (m *simulation) Event(i int) string {
	if i == len(m.failure.Actions) {
		return "heal everything, and check that the rack comes to rest"
	}
	return m.failure.Actions[i].String()
}

// Step implements [replay.Machine].
func (m *simulation) Step() (lines []string, differences int, err error) {
	m.lines = nil
	_, more := m.next()
	broken := m.sim.Err()
	if !more {
		broken = cmp.Or(broken, m.result)
	}
	m.at++
	lines = m.lines
	if n := len(lines); n > maxLines {
		lines = append(lines[:maxLines:maxLines], fmt.Sprintf("and %d events more", n-maxLines))
	}
	if broken != nil && !m.told {
		m.told, m.len, differences = true, m.at, 1
		lines = append(lines, "BROKEN INVARIANT "+broken.Error())
		m.result = broken
	}
	return lines, differences, nil
}

// Snapshot implements [replay.Machine].
func (m *simulation) Snapshot() *replay.Snapshot {
	s := &replay.Snapshot{At: m.at, Nodes: map[ident.Baseboard]replay.NodeSnapshot{}, Flight: map[ident.Baseboard][]string{}}
	if c := m.sim.View().Controller; c.Epoch != 0 {
		state := map[bool]string{true: "up", false: "down"}[c.Up]
		s.Controller = append(s.Controller, fmt.Sprintf("%s; epoch %d %s: coordinator %s, %d of %v, after epoch %d, acknowledged by %v of %d needed, committed by %v",
			state, c.Epoch, c.Phase, c.Coordinator, c.Threshold, c.Members, c.LastCommitted, c.Acked, c.NeedAcks, c.Committed))
	}
	for _, to := range m.sim.Sleds {
		view, stored := replay.StoredView(to.Disk), to.Disk
		if to.Up() {
			view, stored = replay.View(to.Node, false), to.Node.State()
		}
		s.Nodes[to.ID] = replay.SnapshotNode(view, stored)
		for _, from := range m.sim.Sleds {
			for _, text := range m.sim.Waiting(from, to) {
				s.Flight[to.ID] = append(s.Flight[to.ID], "from "+from.ID.String()+": "+text)
			}
		}
	}
	return s
}

// replaySimulation plays a failed run to its end and says whether it still breaks its invariant.
func replaySimulation(name string, in io.Reader) (*replay.Result, error) {
	m, err := openSimulation(in)
	if err != nil {
		return replay.Unreadable(name, err)
	}
	return m.playAll(name), nil
}

// playAll plays the run to its end.
func (m *simulation) playAll(name string) *replay.Result {
	res := &replay.Result{Log: name, Differences: []replay.Difference{}, Rules: map[replay.Rule]int{}}
	for m.at < m.len {
		if _, n, _ := m.Step(); n > 0 {
			res.Differences = append(res.Differences, replay.Difference{Event: m.at - 1, What: "invariant", Want: "holds", Have: m.result.Error()})
		}
	}
	m.stop()
	res.Events, res.Compared = m.at, m.checked
	return res
}
