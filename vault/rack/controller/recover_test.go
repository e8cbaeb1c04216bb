package controller_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/secret"
)

func (r *testRack) path(name string) string { return filepath.Join(r.dir, name) }

func (r *testRack) move(from, to string) { must(r.t, os.Rename(r.path(from), r.path(to))) }

// recoverWith runs the recovery with the key on paper, or without one that may be asked for.
func (r *testRack) recoverWith(ctx context.Context, paper bool) (*controller.Recovered, error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return controller.Recover(ctx, r.path(controller.RackFile), func() (enroll.Key, error) {
		if !paper {
			return enroll.Key{}, errors.New("asked for the recovery key")
		}
		return enroll.ParseRecovery(secret.Heap{}, r.recovery)
	}, func(controller.Event) {})
}

// TestRecoverBrokenOff: whatever the folder holds when the recovery is broken off, the next run ends with the same new
// key. The steps before any sled was told are made from what the first run left.
func TestRecoverBrokenOff(t *testing.T) {
	t.Parallel()
	for name, back := range map[string]func(*testRack){
		"key in place": func(*testRack) {},
		"old key aside": func(r *testRack) {
			r.move("membership.key", "membership.key.new")
		},
		"set written": func(r *testRack) {
			r.move("membership.key", "membership.key.new")
			r.move("membership.key.old-1", "membership.key")
		},
		"key made": func(r *testRack) {
			r.move("membership.key", "membership.key.new")
			r.move("membership.key.old-1", "membership.key")
			must(t, os.Remove(r.path("enrolment.cbor.rekeyed-3")))
			r.move("enrolment.cbor.old-2", "enrolment.cbor")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRack(t, 3)
			r.wantDone(1)
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			first, err := r.recoverWith(gone, true)
			if err == nil || first == nil {
				t.Fatalf("no sled was told: have %+v, %v", first, err)
			}
			back(r)
			if _, err := os.Stat(r.path("membership.key.new")); err == nil { // half-way: other commands do nothing
				if c, err := controller.Open(r.path(controller.RackFile), func(controller.Event) {}); err == nil && name != "key made" {
					c.Close()
					t.Error("half-way: a command runs")
				}
			}
			out, err := r.recoverWith(t.Context(), name == "key made")
			must(t, err)
			if out.Fingerprint != first.Fingerprint || out.SetGeneration != 3 || out.Change.Phase != rack.Done || len(out.Change.Committed) != 3 {
				t.Errorf("have %+v, %+v", out, out.Change)
			}
			for _, s := range r.sleds {
				set := s.Set()
				if enroll.Fingerprint(set.MembershipKey) != out.Fingerprint {
					t.Errorf("%s: has key %s", s.ID, enroll.Fingerprint(set.MembershipKey))
				}
				if err := enroll.NewAuthority(set).VerifyCertificate(s.configs[1], s.commits[1]); err != nil {
					t.Errorf("%s: %v", s.ID, err)
				}
			}
			r.open()
		})
	}
}

// TestRecoverLostJournal: what the members have committed under the old key is found, and certified anew.
func TestRecoverLostJournal(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	r.wantDone(1)
	must(t, errors.Join(os.Remove(r.path("journal.json")), os.Remove(r.path("membership.key"))))
	out, err := r.recoverWith(t.Context(), true)
	must(t, err)
	if out.Change == nil || out.Change.Epoch != 1 || out.Change.Phase != rack.Done {
		t.Errorf("have %+v", out.Change)
	}
}
