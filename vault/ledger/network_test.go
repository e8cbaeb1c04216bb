package ledger

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// TestNetwork: the network configuration survives a power cut, one lost medium and one damaged copy, and moves no counter.
func TestNetwork(t *testing.T) {
	t.Parallel()
	n := newNode(t).onDisks()
	l := n.create(1)
	counter := n.life.value()
	if have := l.Network(); have.Generation != 0 {
		t.Errorf("a new sled has generation %d", have.Generation)
	}
	save := func(g uint64, blob string) error { return l.SaveNetwork(t.Context(), Network{g, []byte(blob)}) }
	if err := save(7, "routes"); err != nil {
		t.Fatal(err)
	}
	if n.life.value() != counter || l.Status().Sequence != counter {
		t.Error("a network configuration moved the counter")
	}
	for name, err := range map[string]error{
		"generation 0": save(0, ""), "the same generation": save(7, "other"), "an older one": save(6, ""),
		"too large": save(8, strings.Repeat("x", wire.MaxNetworkBlob+1)),
	} {
		if reason.CodeOf(err) != CodeNetwork {
			t.Errorf("%s: have %v, want %s", name, err, CodeNetwork)
		}
	}
	again := func(want uint64) {
		t.Helper()
		n.powerCut(l)
		l, _ = n.mustOpen(1)
		if have := l.Network(); have.Generation != want {
			t.Errorf("after a restart: have generation %d, want %d", have.Generation, want)
		}
	}
	again(7)
	if have := l.Network(); string(have.Blob) != "routes" {
		t.Errorf("have blob %q", have.Blob)
	}
	n.disks[0].fail = func(op, name string) error {
		if op == "write" && strings.HasPrefix(name, NetworkFile) {
			return errors.New("broken")
		}
		return nil
	}
	if err := save(8, strings.Repeat("y", wire.MaxNetworkBlob)); err != nil {
		t.Fatal(err)
	}
	n.disks[0].fail = nil
	again(8) // the newer of two files counts, and the start wrote the other one anew
	if a, b := n.disks[0].files[NetworkFile], n.disks[1].files[NetworkFile]; !bytes.Equal(a, b) {
		t.Errorf("the start left different copies of %d and %d bytes", len(a), len(b))
	}
	n.powerCut(l)
	n.disks[1].files[NetworkFile][40] ^= 1
	l, _ = n.mustOpen(1)
	again(8)
	n.powerCut(l)
	n.cfg.Reasons = reason.NewLog()
	for _, d := range n.disks {
		f := d.files[NetworkFile]
		f[len(f)-1] ^= 1
	}
	l, _ = n.mustOpen(1)
	if have := l.Network(); have.Generation != 0 || n.cfg.Reasons.Total(CodeNetwork) != 2 {
		t.Errorf("damage: generation %d, %+v", have.Generation, n.cfg.Reasons.Entries())
	}
	for _, d := range n.disks {
		d.fail = func(string, string) error { return errors.New("broken") }
	}
	if err := save(9, ""); reason.CodeOf(err) != CodeNetwork || l.Network().Generation != 0 {
		t.Errorf("both media broken: %v, generation %d", err, l.Network().Generation)
	}
}

// TestNetworkOfAnotherKind: a file of observations does not pass for one of the network configuration, nor that of another
// sled for this one's.
func TestNetworkOfAnotherKind(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	l := n.create(1)
	plain := []byte{0, 0, 0, 0, 0, 0, 0, 9, 'x'}
	for name, k := range map[string]uncounted{"key": {magic: "svnetcfg", version: 1, label: "sledvault/observed/v1"}, "magic": {magic: "svobserv", version: 1, label: "sledvault/network/v1"}} {
		b, err := l.encodeUncounted(k, plain, 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := l.decodeUncounted(networkFile(), b); err == nil {
			t.Errorf("another %s was taken", name)
		}
	}
	for _, bad := range [][]byte{nil, plain[:7], make([]byte, 9), make([]byte, wire.MaxNetworkBlob+9)} {
		if _, err := parseNetwork(bad); err == nil {
			t.Errorf("plaintext of %d bytes was taken", len(bad))
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestKilledWhileSavingNetwork: cut off after any step, a save leaves the old configuration or the new one.
func TestKilledWhileSavingNetwork(t *testing.T) {
	t.Parallel()
	for steps := 1; ; steps++ {
		n := newNode(t).onDisks()
		l := n.create(1)
		if err := l.SaveNetwork(t.Context(), Network{1, []byte("old")}); err != nil {
			t.Fatal(err)
		}
		n.powerCut(l)
		l, _ = n.mustOpen(1)
		var seen []string
		l.cfg.Steps = cutAfter(steps, &seen)
		err := l.SaveNetwork(t.Context(), Network{2, []byte("new")})
		n.powerCut(l)
		l, _ = n.mustOpen(1)
		have := l.Network()
		if want := map[uint64]string{1: "old", 2: "new"}[have.Generation]; want == "" || string(have.Blob) != want || err == nil && have.Generation != 2 {
			t.Errorf("cut after %q: generation %d, %q, %v", seen, have.Generation, have.Blob, err)
		}
		if err == nil {
			if steps < 10 {
				t.Errorf("only %d steps", steps)
			}
			return
		}
	}
}
