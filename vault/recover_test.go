package vault_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

func (r *testRack) path(name string) string { return filepath.Join(r.dir, "rack", name) }

// key loads a key file of the rack's folder.
func (r *testRack) key(name string) enroll.Key {
	r.t.Helper()
	k, err := enroll.LoadKey(secret.Heap{}, r.path(name), nil)
	must(r.t, err)
	r.t.Cleanup(k.Destroy)
	return k
}

// set is the newest set of the rack's folder.
func (r *testRack) set() *enroll.Set {
	r.t.Helper()
	b, err := os.ReadFile(r.path("enrolment.cbor"))
	must(r.t, err)
	s, err := enroll.DecodeSet(b)
	must(r.t, err)
	return s
}

// session connects to a sled as a client whose certificate a key made.
func (r *testRack) session(s *testSled, key enroll.Key, generation uint32) *client.Session {
	r.t.Helper()
	cert, err := enroll.SelfClient(key, generation)
	must(r.t, err)
	ses, err := client.Open(r.t.Context(), s.cfg.Underlay.Listen, cert)
	must(r.t, err)
	r.t.Cleanup(func() { _ = ses.Close() })
	return ses
}

func wantCode(t *testing.T, what string, err error, code reason.Code) {
	t.Helper()
	if reason.CodeOf(err) != code {
		t.Errorf("%s: have %v, want %s", what, err, code)
	}
}

// recover runs the recovery; tell may be nil.
func (r *testRack) recover(ctx context.Context, key func() (enroll.Key, error), tell func(controller.Event)) (*controller.Recovered, error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return controller.Recover(ctx, r.path(controller.RackFile), key, func(e controller.Event) {
		r.t.Log(e.Sled, e.Text)
		if tell != nil {
			tell(e)
		}
	})
}

// TestRecover: the membership key is lost, and one sled is off while the recovery key makes a new one. Afterwards the rack
// can be changed again, its disks open, and the old key is worth nothing to whoever has it.
func TestRecover(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	lost := r.key("membership.key")
	before := r.set()
	must(t, os.Remove(r.path("membership.key")))
	off := r.sleds[2]
	off.stop()

	foreign := func() (enroll.Key, error) {
		return enroll.NewKey(secret.Heap{}, strings.NewReader(strings.Repeat("x", 32)))
	}
	_, err := r.recover(t.Context(), foreign, nil)
	wantCode(t, "another rack's recovery key", err, controller.CodeRecovery)

	ctx, cancel := context.WithCancel(t.Context())
	_, err = r.recover(ctx, func() (enroll.Key, error) { return enroll.ParseRecovery(secret.Heap{}, r.recovery) }, func(e controller.Event) {
		if strings.Contains(e.Text, "2 of 3 members have committed") {
			cancel()
		}
	})
	wantCode(t, "one sled is off", err, controller.CodeWaiting)
	off.start()
	out, err := r.recover(t.Context(), func() (enroll.Key, error) { return enroll.Key{}, errors.New("asked again") }, nil)
	must(t, err)
	if _, err := os.Stat(r.path("recovery.pending")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the recovery is done: have %v", err)
	}
	fresh := r.key("membership.key")
	if fp := enroll.Fingerprint(fresh.PublicKey()); out.Fingerprint != fp || fp == r.fp {
		t.Errorf("have fingerprint %s, want %s", out.Fingerprint, fp)
	}
	r.rotate()
	for _, s := range r.sleds {
		s.rotatedTo(2)
		r.refusesOldKey(s, before, lost, fresh)
	}
	opens(t, r.sleds...)
}

// TestNewRecoveryKey: the recovery key is replaced as well, while one sled is off, and again with the one that replaced it.
// Sleds that are started in between believe what they hold.
func TestNewRecoveryKey(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	off := r.sleds[2]
	off.stop()
	var paper []byte
	again := func(ctx context.Context, old []byte) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		access := controller.Access{NewRecovery: func(text []byte) error { paper = bytes.Clone(text); return nil }}
		_, err := access.Recover(ctx, r.path(controller.RackFile), func() (enroll.Key, error) { return enroll.ParseRecovery(secret.Heap{}, old) }, func(e controller.Event) {
			if strings.Contains(e.Text, "2 of 3 members have committed") {
				off.start() // it hears of the change late
			}
		})
		return err
	}
	must(t, again(t.Context(), r.recovery))
	if len(paper) == 0 || bytes.Equal(paper, r.recovery) {
		t.Fatal("no new recovery key was shown")
	}
	opens(t, r.sleds...)
	wantCode(t, "the old recovery key", again(t.Context(), r.recovery), controller.CodeRecovery)
	off = r.sleds[1]
	off.stop()
	must(t, again(t.Context(), bytes.Clone(paper)))
	r.changed(rotate)
	opens(t, r.sleds...)
}

// TestRecoverLostSeal: a sled lost its seal before the membership key was replaced, with or without its files. It follows the
// change of keys when it is enrolled again, by name as always, and its disks open as they are.
func TestRecoverLostSeal(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*testSled, map[string][]byte){
		"old files": func(s *testSled, old map[string][]byte) { s.restore(old) },
		"no files":  func(s *testSled, _ map[string][]byte) { s.restore(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := unlockedRack(t, 3)
			s := r.sleds[2]
			s.stop()
			old := s.saved()
			s.start()
			s.hasCommitted(1)
			r.changed(rotate)
			s.hasCommitted(2)
			s.stop()
			lose(s, old)
			s.powerCycle(firmware.Options{})
			s.await("lost-seal", func(s *testSled) bool { return s.state() == string(api.StateLostSeal) })
			lost := r.key("membership.key")
			must(t, os.Remove(r.path("membership.key")))
			paper := func() (enroll.Key, error) { return enroll.ParseRecovery(secret.Heap{}, r.recovery) }
			ctx, cancel := context.WithCancel(t.Context())
			_, err := r.recover(ctx, paper, func(e controller.Event) {
				if strings.Contains(e.Text, "2 of 3 members have committed") {
					cancel()
				}
			})
			wantCode(t, "one sled lost its seal", err, controller.CodeWaiting)
			if e, err := s.enrolled(controller.EnrollOptions{}); e.State != controller.LostSeal {
				t.Errorf("without a word of the operator: %+v, %v", e, err)
			}
			forged := r.set().Next()
			forged.MembershipKey = lost.PublicKey()
			must(t, forged.Sign(lost))
			if name == "no files" { // the TPM remembers the old key, but not what it has never seen
				forged.Rack[0] ^= 1
			}
			if _, err := r.session(s, lost, 99).EnrollSet(t.Context(), forged.Encode()); err == nil {
				t.Error("a set that the old key has signed was taken")
			}
			e, err := s.enrolled(controller.EnrollOptions{Again: []string{"sled-3"}})
			must(t, err)
			if e.State != controller.Restored {
				t.Errorf("%+v", e)
			}
			s.unlocks()
			_, err = r.recover(t.Context(), paper, nil)
			must(t, err)
			r.changed(rotate)
			opens(t, r.sleds...)
		})
	}
}

// refusesOldKey tries everything that the old membership key once could do.
func (r *testRack) refusesOldKey(s *testSled, before *enroll.Set, lost, fresh enroll.Key) {
	t := r.t
	t.Helper()
	stranger := r.session(s, lost, 99)
	_, err := stranger.Attest(t.Context(), [32]byte{})
	wantCode(t, "client certificate", err, api.CodeForbidden)
	forged := before.Next()
	forged.Generation = 99
	must(t, forged.Sign(lost))
	_, err = stranger.EnrollSet(t.Context(), forged.Encode())
	wantCode(t, "set from a stranger", err, enroll.CodeSignature)
	own := r.set().Next()
	must(t, own.Sign(lost))
	_, err = stranger.EnrollSet(t.Context(), own.Encode())
	wantCode(t, "set without a change of keys", err, api.CodeForbidden)

	good := r.session(s, fresh, r.set().MinClientGeneration)
	_, err = good.EnrollSet(t.Context(), forged.Encode())
	wantCode(t, "set under the old key", err, enroll.CodeSignature)
	last := ident.Epoch(2)
	var members []ident.Baseboard
	for _, m := range r.sleds {
		members = append(members, m.board())
	}
	grant := &quorum.Grant{RackID: before.Rack, Epoch: 9, Coordinator: s.board(), Members: members, Threshold: 2, LastCommitted: last}
	must(t, enroll.SignGrant(lost, grant))
	err = good.Reconfigure(t.Context(), api.ReconfigureRequest{RackID: before.Rack, Epoch: 9, LastCommitted: &last, Members: members, Threshold: 2, Grant: api.GrantOf(grant)})
	wantCode(t, "grant under the old key", err, quorum.CodeGrantInvalid)
}

// TestRevoke: a client certificate of before opens nothing any more, on open connections too; the rack's own does.
func TestRevoke(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	key := r.key("membership.key")
	var old []*client.Session
	for _, s := range r.sleds {
		ses := r.session(s, key, r.set().MinClientGeneration)
		_, err := ses.Attest(t.Context(), [32]byte{})
		must(t, err)
		old = append(old, ses)
	}
	generation := r.set().MinClientGeneration
	told, err := r.controller().Revoke(t.Context())
	must(t, err)
	if len(told) != 3 || r.set().MinClientGeneration != generation+1 {
		t.Errorf("told %+v, generation %d", told, r.set().MinClientGeneration)
	}
	for i, s := range r.sleds {
		_, err := old[i].Attest(t.Context(), [32]byte{})
		wantCode(t, "open connection", err, api.CodeForbidden)
		_, err = r.session(s, key, generation).Attest(t.Context(), [32]byte{})
		wantCode(t, "revoked generation", err, api.CodeForbidden)
	}
	r.rotate()
}

// TestSetWhileStarting: a sled that knows its set, but has not opened its seal yet, takes another set later: it says so, and
// does not take the caller for one who has yet to prove something.
func TestSetWhileStarting(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	s := r.sleds[0]
	opening, answered := make(chan struct{}), make(chan struct{})
	s.restart(func(o vault.Options) vault.Options {
		return vault.WithLedger(o, func(l wire.LedgerState) wire.LedgerState {
			close(opening)
			<-answered
			return l
		})
	})
	defer close(answered)
	<-opening
	envelope, err := os.ReadFile(r.path("enrolment.cbor"))
	must(t, err)
	_, err = r.session(s, r.key("membership.key"), 1).EnrollSet(t.Context(), envelope)
	if reason.CodeOf(err) != api.CodeNotStarted || reason.RemedyOf(err) != reason.Retry {
		t.Errorf("a set for a starting sled: %v", err)
	}
}
