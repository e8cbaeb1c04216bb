package journal_test

import (
	"reflect"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/journal"
)

// TestBase: while a change is prepared, the decided one below it survives with its configuration.
func TestBase(t *testing.T) {
	t.Parallel()
	var members []ident.Baseboard
	for _, s := range []string{"1", "2", "3"} {
		members = append(members, ident.Baseboard{Part: "p", Serial: s})
	}
	var st rack.State
	must(t, st.BeginInit(members, 0))
	cfg := &quorum.Configuration{RackID: ident.RackID{1}, Epoch: 1, Coordinator: members[0], Threshold: 2}
	for _, m := range members {
		cfg.Members = append(cfg.Members, quorum.Member{ID: m})
	}
	_, err := st.Change.Prepared(cfg, members)
	must(t, err)
	must(t, st.Change.Decide(cfg, &quorum.Certificate{Epoch: 1}))
	for _, m := range members {
		st.Change.CommittedBy(m)
	}
	must(t, st.BeginChange(rack.Plan{Kind: rack.Rotate, Members: members, Coordinator: members[1]}))
	dir := t.TempDir()
	j, _, err := journal.Open(dir)
	must(t, err)
	must(t, j.Save(st))
	must(t, j.Close())
	got, err := journal.Peek(dir)
	must(t, err)
	if !reflect.DeepEqual(got, st) {
		t.Errorf("have %+v, want %+v", got, st)
	}
	must(t, got.Again(members[2]))
}
