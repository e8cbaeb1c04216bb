package ledger

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/sledvault/sledvault/vault/reason"
)

// TestAttack: what somebody with the media, but without the key, can do to a ledger. Slugs as in docs/threat-model.md.
func TestAttack(t *testing.T) {
	t.Parallel()
	t.Run("ledger-rollback", attackRollback)
	t.Run("spliced-approval", attackSplice)
	t.Run("copy-returns", attackCopyReturns)
	t.Run("wiped-state", attackWiped)
}

// snapshot is an image of both media.
func (n *node) snapshot() (s [2]map[string][]byte) {
	for i, d := range n.disks {
		s[i] = maps.Clone(d.stable)
	}
	return s
}

func (n *node) restore(s [2]map[string][]byte) {
	for i, d := range n.disks {
		d.files, d.stable = maps.Clone(s[i]), maps.Clone(s[i])
	}
}

// attackRollback: both disks are replaced by images of last week, before this sled was expunged.
func attackRollback(t *testing.T) {
	n := newNode(t).onDisks()
	l := n.create(1)
	save(t, l, 2)
	old := n.snapshot()
	save(t, l, 3)
	n.powerCut(l)
	fresh := n.snapshot()

	n.restore(old)
	_, _, r, err := n.open()
	if !errors.Is(err, ErrLostSeal) {
		t.Fatalf("old images of both disks: %v", err)
	}
	if r.Copies[0].State != CopySealed { // the TPM itself refuses: the approval is dead
		t.Errorf("copy A %s", r.Copies[0])
	}
	n.restore([2]map[string][]byte{old[0], fresh[1]})
	_, r = n.mustOpen(3)
	if r.Copies[0].State != CopyStale || !r.Repaired[0] {
		t.Errorf("old image of one disk: %+v", r)
	}
}

// attackSplice: an old ciphertext is put under the newest approval, which is in clear.
func attackSplice(t *testing.T) {
	n := newNode(t).onDisks()
	l := n.create(1)
	save(t, l, 2)
	old := n.snapshot()
	save(t, l, 3)
	n.powerCut(l)
	fresh := n.snapshot()
	decode := func(image [2]map[string][]byte) *File {
		f, err := DecodeFile(image[0][LedgerFile])
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for name, splice := range map[string]struct {
		make func(old, fresh *File)
		want CopyState
	}{
		"approvals":                {func(o, f *File) { o.Approvals = f.Approvals }, CopyStale},
		"approvals and sequence":   {func(o, f *File) { o.Approvals, o.Sequence = f.Approvals, f.Sequence }, CopyAltered},
		"the whole outside":        {func(o, f *File) { c, n := o.Ciphertext, o.Nonce; *o = *f; o.Ciphertext, o.Nonce = c, n }, CopyAltered},
		"epoch of the new outside": {func(o, f *File) { *o = *f; o.Epoch++ }, CopyAltered},
		"generation":               {func(o, f *File) { *o = *f; o.Generation++ }, CopyAltered},
		"another rack":             {func(o, f *File) { *o = *f; o.Rack[3] ^= 1 }, CopyForeign},
		"a bit of the ciphertext":  {func(o, f *File) { *o = *f; o.Ciphertext = bytes.Clone(f.Ciphertext); o.Ciphertext[5] ^= 1 }, CopyAltered},
		"the future":               {func(o, f *File) { *o = *f; o.Sequence += 7 }, CopyAltered},
	} {
		f := decode(old)
		splice.make(f, decode(fresh))
		raw, err := f.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		image := map[string][]byte{LedgerFile: raw}
		n.restore([2]map[string][]byte{image, image})
		_, _, r, err := n.open()
		if !errors.Is(err, ErrLostSeal) || r.Copies[0].State != splice.want || r.Copies[1].State != splice.want {
			t.Errorf("%s: %v, report %+v", name, err, r)
		}
		// Beside a good copy it does no harm.
		n.restore([2]map[string][]byte{image, fresh[1]})
		_, _, r, err = n.open()
		if err != nil || !r.Repaired[0] {
			t.Errorf("%s beside a good copy: %v, report %+v", name, err, r)
		}
	}
}

// attackCopyReturns: a medium that missed a save comes back with the same number and another content. A power cut leaves
// copy A one ahead; then A is pulled, the sled goes on with B, and A returns.
func attackCopyReturns(t *testing.T) {
	n := newNode(t).onDisks()
	l := n.create(1)
	var at string
	for steps := 0; at != "save/A/verify"; steps++ {
		n.powerCut(l)
		l, _ = n.mustOpen(1)
		n.restore(n.snapshot())
		before := n.snapshot()
		_, at = n.cutSave(l, 2, steps)
		if at != "save/A/verify" {
			n.restore(before)
		}
		l = nil
	}
	ahead, err := DecodeFile(n.disks[0].stable[LedgerFile])
	if err != nil || ahead.Sequence != n.life.value()+1 {
		t.Fatalf("copy A is not ahead: %+v, %v", ahead, err)
	}
	n.disks[0].gone = true
	l, r := n.mustOpen(1)
	if !r.Skip || r.Copies[0].State != CopyNoMedium {
		t.Fatalf("report %+v", r)
	}
	save(t, l, 3) // the state that peers have seen
	if l.Status().Sequence != ahead.Sequence+1 {
		t.Errorf("sequence %d, want %d: the number that A may hold is left out", l.Status().Sequence, ahead.Sequence+1)
	}
	n.powerCut(l)
	n.disks[0].gone = false
	l, r = n.mustOpen(3)
	if r.Copies[0].State != CopyStale || !r.Repaired[0] {
		t.Errorf("report %+v", r)
	}
	n.powerCut(l)
	n.either(3, 3, true)

	// The same with a medium that returns while the sled runs.
	n.disks[1].gone = true
	l, _ = n.mustOpen(3)
	n.disks[1].gone = false
	save(t, l, 4)
	if st := l.Status(); st.Degraded {
		t.Errorf("returned medium is not used: %+v", st)
	}
}

// attackWiped: files are deleted so that the sled looks new. With one folder left it does not; with none, the ledger
// says only that both are empty, and the TPM's claim index says the rest.
func attackWiped(t *testing.T) {
	n := newNode(t)
	if err := n.create(1).Close(); err != nil {
		t.Fatal(err)
	}
	wipe := func(i int) {
		if err := os.Remove(filepath.Join(n.cfg.Dirs[i], LedgerFile)); err != nil {
			t.Fatal(err)
		}
	}
	wipe(0)
	l, r := n.mustOpen(1)
	if r.Copies[0].State != CopyAbsent || !r.Repaired[0] || !r.Skip {
		t.Errorf("report %+v", r)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wipe(0)
	wipe(1)
	if _, _, _, err := n.open(); !errors.Is(err, ErrAbsent) || reason.HintOf(err) != hintClaim {
		t.Errorf("both wiped: %v", err)
	}
}
