package vault_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/reason"
)

// TestReset: a sled forgets its rack only when it is named and, as a member, only when that is confirmed; its next life is
// unclaimed, keeps the old files aside, and can be enrolled again.
func TestReset(t *testing.T) {
	t.Parallel()
	r := unlockedRack(t, 3)
	s := r.sleds[2]
	for _, c := range []struct {
		name string
		req  api.ResetRequest
		code reason.Code
		text string
	}{
		{"another sled's name", api.ResetRequest{Baseboard: r.sleds[0].board(), LeaveRack: true}, "reset-baseboard", s.serial},
		{"member, not confirmed", api.ResetRequest{Baseboard: s.board()}, "reset-member", "disk data0"},
	} {
		err := s.local().ResetSeal(t.Context(), c.req)
		if reason.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) || reason.HintOf(err) == "" {
			t.Errorf("%s: have %v (%s), want %s", c.name, err, reason.HintOf(err), c.code)
		}
	}
	if s.state() != "member" {
		t.Fatalf("have state %s after refusals, want member", s.state())
	}
	must(t, s.local().ResetSeal(t.Context(), api.ResetRequest{Baseboard: s.board(), LeaveRack: true}))
	err := <-s.done
	if reason.CodeOf(err) != "seal-reset" || reason.RemedyOf(err) != reason.Retry {
		t.Errorf("the daemon ended with %v, want seal-reset", err)
	}
	s.cancel = nil
	for _, dir := range s.cfg.State.Copies {
		for _, name := range []string{ledger.LedgerFile, ledger.EnrolmentFile} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				t.Errorf("%s is still in %s", name, dir)
			}
			if _, err := os.Stat(filepath.Join(dir, name+".old-1")); err != nil {
				t.Errorf("%s was not kept: %v", name, err)
			}
		}
	}
	s.start()
	s.await("unclaimed", func(s *testSled) bool { return s.state() == "unclaimed" })
	for _, other := range r.sleds[:2] {
		other.stop()
		other.start()
		other.awaitSocket()
		other.unlocks() // the two others are enough
	}
}

// TestResetLost: a sled whose state was wiped is un-claimed without ado.
func TestResetLost(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	for _, s := range r.sleds {
		s.start()
	}
	r.enroll()
	s := r.sleds[0]
	s.stop()
	for _, dir := range s.cfg.State.Copies {
		must(t, os.RemoveAll(dir))
		must(t, os.Mkdir(dir, 0o700))
	}
	s.start()
	s.await("lost-seal", func(s *testSled) bool { return s.state() == "lost-seal" })
	must(t, s.local().ResetSeal(t.Context(), api.ResetRequest{Baseboard: s.board()}))
	if err := <-s.done; err == nil {
		t.Error("the daemon ended as if nothing had happened")
	}
	s.cancel = nil
	s.start()
	s.await("unclaimed", func(s *testSled) bool { return s.state() == "unclaimed" })
}

// TestStopWhileFormatting: a daemon that ends while a disk is being encrypted leaves no cryptsetup and no files behind.
func TestStopWhileFormatting(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	r := newRack(t, 3)
	for _, s := range r.sleds {
		s.start()
	}
	r.enroll()
	r.init()
	s := r.sleds[0]
	ended := make(chan error, 1)
	go func() {
		_, err := s.local().Format(context.WithoutCancel(t.Context()), "data0", api.FormatRequest{KeepData: true})
		ended <- err
	}()
	works := func() (out []string) {
		files, err := os.ReadDir(temp)
		must(t, err)
		for _, f := range files {
			if strings.HasPrefix(f.Name(), "sledvault-") {
				out = append(out, f.Name())
			}
		}
		return out
	}
	s.await("encrypting", func(*testSled) bool { return len(works()) > 0 && len(children(t, "cryptsetup")) > 0 })
	s.stop()
	if left := works(); len(left) > 0 {
		t.Errorf("folders are left: %v", left)
	}
	if left := children(t, "cryptsetup"); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if err := <-ended; err == nil {
		t.Log("the encryption was done before the end came")
	}
}

// children lists this process's children of a name.
func children(t *testing.T, name string) (out []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	must(t, err)
	for _, p := range stats {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // gone
		}
		head, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if strings.HasSuffix(head, "("+name) && len(f) > 1 && f[1] == fmt.Sprint(os.Getpid()) && f[0] != "Z" {
			out = append(out, string(b))
		}
	}
	return out
}

// TestStatusAfter: who knows the newest revision is answered by the next change, and not before.
func TestStatusAfter(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	s := r.sleds[0]
	s.start()
	s.await("unclaimed", func(s *testSled) bool { return s.state() == "unclaimed" })
	seen := []string{}
	st := s.status()
	got := make(chan api.Status)
	next := func(revision uint64) {
		raw, err := s.local().StatusAfter(t.Context(), revision)
		var st api.Status
		if err == nil {
			err = json.Unmarshal(raw, &st)
		}
		if err != nil {
			t.Error(err)
		}
		got <- st
	}
	go next(st.Revision)
	must(t, s.local().SetPeers(t.Context(), nil))
	for _, other := range r.sleds[1:] {
		other.start()
	}
	r.enroll()
	for !slices.Contains(seen, "claimed") {
		now := <-got
		if now.Revision <= st.Revision {
			t.Fatalf("revision %d after %d", now.Revision, st.Revision)
		}
		st = now
		seen = append(seen, string(st.State))
		if st.State != "claimed" {
			go next(st.Revision)
		}
	}
}
