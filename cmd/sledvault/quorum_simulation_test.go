package main

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
)

// TestSimulationStillBroken: the invariant that a run breaks is the difference, said once, and the run ends with it.
func TestSimulationStillBroken(t *testing.T) {
	t.Parallel()
	f, err := os.Open("../../vault/quorum/quorumtest/testdata/rollback-keeps-share.json")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	m, err := openSimulation(f)
	if err != nil {
		t.Fatal(err)
	}
	const at = 5
	replayAll := m.play
	m.play = func(begin func(*quorumtest.Sim), step func(int, quorumtest.Action, *quorumtest.Sim)) error {
		_ = replayAll(begin, func(i int, a quorumtest.Action, s *quorumtest.Sim) {
			if i < at {
				step(i, a, s)
			}
		})
		return errors.New("X0: planted")
	}
	m.Rewind()
	res := m.playAll("run")
	if res.Events != at+1 || len(res.Differences) != 1 || res.Differences[0].Event != at || res.Differences[0].Have != "X0: planted" || res.Good() {
		t.Errorf("have %+v", res)
	}
	m.Rewind()
	for m.At() < m.Len() {
		lines, n, err := m.Step()
		if err != nil || n > 0 != (m.At() == at+1) || n > 0 != strings.Contains(strings.Join(lines, "\n"), "BROKEN INVARIANT X0: planted") {
			t.Errorf("action %d: %d differences, %v: %.500q", m.At()-1, n, err, lines)
		}
	}
	m.stop()
}
