package vault_test

import (
	"context"
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
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// saved is a copy of the sled's state folders, as somebody with its old boot drives has it.
func (s *testSled) saved() map[string][]byte {
	t := s.rack.t
	t.Helper()
	out := map[string][]byte{}
	for _, dir := range s.cfg.State.Copies {
		must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(p)
			out[p] = b
			return err
		}))
	}
	return out
}

// restore puts the state folders back as they were.
func (s *testSled) restore(files map[string][]byte) {
	t := s.rack.t
	t.Helper()
	for _, dir := range s.cfg.State.Copies {
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			must(t, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	for p, b := range files {
		must(t, os.MkdirAll(filepath.Dir(p), 0o700))
		must(t, os.WriteFile(p, b, 0o600))
	}
}

// rolledBack is a rack whose third sled starts from state of before a rotation.
func rolledBack(t *testing.T) (*testRack, *testSled) {
	t.Helper()
	r := unlockedRack(t, 3)
	s := r.sleds[2]
	s.stop()
	old := s.saved()
	s.start()
	s.hasCommitted(1)
	r.changed(rotate)
	s.hasCommitted(2)
	s.stop()
	s.restore(old)
	s.powerCycle(firmware.Options{})
	s.await("lost-seal", func(s *testSled) bool { return s.state() == string(api.StateLostSeal) })
	return r, s
}

// enrolled runs the enrolment and returns what became of one sled.
func (s *testSled) enrolled(o controller.EnrollOptions) (controller.Enrolled, error) {
	t := s.rack.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	all, err := s.rack.controller().EnrollWith(ctx, o)
	for _, e := range all {
		if e.Sled == s.name {
			return e, err
		}
	}
	t.Fatalf("%s is not in %+v (%v)", s.name, all, err)
	return controller.Enrolled{}, nil
}

// TestLostSealSeenBefore: peers that were started since they last saw the sled remember its old counter, and do not take its
// new life for a rollback.
func TestLostSealSeenBefore(t *testing.T) {
	t.Parallel()
	r, s := rolledBack(t)
	for _, other := range r.sleds[:2] {
		other.stop() // writes down what it has seen
		other.start()
	}
	for _, other := range r.sleds[:2] {
		other.awaitSocket()
		other.unlocks()
	}
	_, err := s.enrolled(controller.EnrollOptions{Again: []string{"sled-3"}})
	must(t, err)
	s.hasCommitted(2)
	for _, other := range r.sleds[:2] {
		if n := counted(other.status(), "evidence-rollback"); n != 0 {
			t.Errorf("%s took it for a rollback %d times", other.name, n)
		}
	}
	r.changed(rotate)
}

// TestLostSeal: a sled that lost its seal comes back only by name, computes its share of the same epoch again, and takes
// its disks over as it finds them.
func TestLostSeal(t *testing.T) {
	t.Parallel()
	r, s := rolledBack(t)
	e, err := s.enrolled(controller.EnrollOptions{})
	if e.State != controller.LostSeal || reason.CodeOf(err) != controller.CodeLostSeal || !strings.Contains(reason.HintOf(err), "--again sled-3") {
		t.Fatalf("without a word of the operator: %+v, %v (hint: %s)", e, err, reason.HintOf(err))
	}
	must(t, os.Remove(filepath.Join(r.dir, "rack", "journal.json"))) // the sleds know where the rack is
	e, err = s.enrolled(controller.EnrollOptions{Again: []string{"sled-3"}})
	must(t, err)
	if e.State != controller.Restored {
		t.Errorf("%+v", e)
	}
	s.hasCommitted(2)
	s.unlocks()
	s.checkPattern(s.seed())
	if counted(s.status(), vault.CodeDiskAdopted) != 1 {
		t.Errorf("the adoption was not counted: %+v", s.status().Reasons)
	}
	opens(t, r.sleds...)
	if counted(s.status(), vault.CodeDiskAdopted) != 0 {
		t.Error("adopted a second time")
	}
	r.changed(rotate)
}

// TestOtherMeasurements: a sled whose firmware changed is taken back only if the operator accepts what it measures.
func TestOtherMeasurements(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	s := r.sleds[1]
	s.powerCycle(firmware.Options{CommandLine: "quiet init=/bin/sh"})
	s.await("lost-seal", func(s *testSled) bool { return s.state() == string(api.StateLostSeal) })
	_, err := s.enrolled(controller.EnrollOptions{Again: []string{"sled-2"}})
	if reason.CodeOf(err) != controller.CodeMeasurements || !strings.Contains(reason.HintOf(err), "--accept-measurements") || !strings.Contains(err.Error(), "PCR 12") {
		t.Fatalf("other measurements: %v (hint: %s)", err, reason.HintOf(err))
	}
	e, err := s.enrolled(controller.EnrollOptions{Again: []string{"sled-2"}, AcceptMeasurements: true})
	must(t, err)
	if e.State != controller.Restored {
		t.Errorf("%+v", e)
	}
	s.unlocks()
	s.checkPattern(s.seed())
}

// ledgerRollback: state of before a rotation, restored on both media, opens nothing and gives no share to anybody.
func ledgerRollback(t *testing.T) {
	r, s := rolledBack(t)
	if _, err := s.local().Unlock(t.Context(), time.Second); reason.CodeOf(err) != vault.CodeLostSeal {
		t.Errorf("unlock with old state: %v", err)
	}
	if err := s.local().Key(t.Context(), "data0", failOnWrite{t}); err == nil {
		t.Error("a key for old state")
	}
	if p := s.status().Peers; p != nil {
		t.Errorf("old state speaks to peers: %+v", p)
	}
	opens(t, r.sleds[:2]...)
}

// loneExpunge: a member that was taken over tells another that it is out; nobody believes it without the proof.
func loneExpunge(t *testing.T) {
	r := newRack(t, 3)
	daemons := make(chan *vault.Daemon, 1)
	rogue, victim := r.sleds[0], r.sleds[1]
	rogue.options = func(o vault.Options) vault.Options {
		return vault.WithDaemon(o, func(d *vault.Daemon) { daemons <- d })
	}
	for _, s := range r.sleds {
		s.start()
	}
	r.enroll()
	r.init()
	_, err := victim.local().Format(t.Context(), "data0", api.FormatRequest{KeepData: true})
	must(t, err)
	victim.hasCommitted(1)
	st, err := journal.Peek(filepath.Join(r.dir, "rack"))
	must(t, err)
	without := *st.Change.Config // of a later epoch, without the victim, under the certificate of another
	without.Epoch, without.Members = 2, append(without.Members[:1:1], without.Members[2:]...)
	d := <-daemons
	must(t, d.Forge(victim.board(), quorum.ExpungedNotice{Epoch: 2}))
	must(t, d.Forge(victim.board(), quorum.CommitProof{Config: &without, Certificate: st.Change.Certificate}, quorum.ExpungedNotice{Epoch: 2}))
	victim.await("two alarms", func(s *testSled) bool { return counted(s.status(), "alarm-unproved_expunge") >= 2 })
	if got := victim.status(); got.State != api.StateMember || got.Quorum.Expunged != nil {
		t.Errorf("%s believes it: %s %+v", victim.name, got.State, got.Quorum.Expunged)
	}
	victim.unlocks()
	victim.checkPattern(victim.seed())
}

// orphanOldSecrets: whoever sends a committed configuration without the older secrets, with a certificate that fits,
// is refused; and no change of ours ever commits one.
func orphanOldSecrets(t *testing.T) {
	r := unlockedRack(t, 3)
	s := r.sleds[2]
	s.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := r.controller().Rotate(ctx); reason.CodeOf(err) != controller.CodeWaiting {
		t.Fatalf("a rotation without %s: %v", s.name, err)
	}
	st, err := journal.Peek(filepath.Join(r.dir, "rack"))
	must(t, err)
	if st.Change.Config == nil || st.Change.Config.EncryptedSecrets == nil {
		t.Fatalf("decided without the older secrets: %+v", st.Change)
	}
	key, err := enroll.LoadKey(secret.Heap{}, filepath.Join(r.dir, "rack", "membership.key"), nil)
	must(t, err)
	defer key.Destroy()
	stripped := *st.Change.Config
	stripped.EncryptedSecrets = nil
	cert, err := enroll.SignCertificate(key, &stripped, 0)
	must(t, err)
	req, err := api.ConfigReply(&stripped, cert)
	must(t, err)
	for _, other := range r.sleds[:2] { // or they tell it of the true configuration first
		other.stop()
	}
	s.start()
	s.await("member", func(s *testSled) bool { return s.state() == string(api.StateMember) })
	tls, err := enroll.SelfClient(key, 1)
	must(t, err)
	ses, err := client.Open(t.Context(), s.cfg.Underlay.Listen, tls)
	must(t, err)
	defer func() { _ = ses.Close() }()
	if _, err := ses.PrepareAndCommit(t.Context(), req); reason.CodeOf(err) != quorum.CodeOldSecretsMissing {
		t.Errorf("a configuration without the older secrets: %v", err)
	}
	for _, other := range r.sleds[:2] {
		other.start()
	}
	r.changed(rotate) // goes on with the commit
	opens(t, r.sleds...)
}
