//go:build linux

package simrack_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

// TestAttack plays attacks against a whole rack of real daemons.
func TestAttack(t *testing.T) {
	t.Parallel()
	r := newRack(t)
	play(t, r, simrack.SceneColdBoot)
	if _, err := r.Play(t.Context(), simrack.SceneRemoveSled); reason.CodeOf(err) != simrack.CodeRack {
		t.Errorf("remove one of three: have %v, want %s", err, simrack.CodeRack)
	}
	t.Run("stranger-claims", func(t *testing.T) { testStrangerClaims(t, r) })
	t.Run("underlay-forgery", func(t *testing.T) { testUnderlayForgery(t, r) })
	t.Run("share-in-logs", func(t *testing.T) { testShareInLogs(t, r) })
	t.Run("wiped-state", func(t *testing.T) { testWipedState(t, r) })
}

// needles are the forms in which two parts of a key could show.
func needles(key []byte) map[string][]byte {
	out := map[string][]byte{}
	for half, k := range [][]byte{key[:15], key[15:30]} { // multiples of three, so that base64 of the whole shows them too
		add := func(form, text string) { out[fmt.Sprintf("%s, part %d", form, half+1)] = []byte(text) }
		numbers := make([]string, len(k))
		hexes := make([]string, len(k))
		for i, b := range k {
			numbers[i], hexes[i] = fmt.Sprint(b), fmt.Sprintf("0x%02x", b)
		}
		add("raw", string(k))
		add("hex", hex.EncodeToString(k))
		add("upper-case hex", strings.ToUpper(hex.EncodeToString(k)))
		add("hex with blanks", fmt.Sprintf("% x", k))
		add("base64", base64.StdEncoding.EncodeToString(k))
		add("base64 for URLs", base64.URLEncoding.EncodeToString(k))
		add("integers with blanks", strings.Join(numbers, " "))
		add("integers with commas", strings.Join(numbers, ","))
		add("integers with commas and blanks", strings.Join(numbers, ", "))
		add("hexadecimal integers", strings.Join(hexes, ", "))
	}
	return out
}

// search looks for every needle in every file under dir and reports where it is.
func search(t *testing.T, dir string, keys [][]byte) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, k := range keys {
			for form, n := range needles(k) {
				if bytes.Contains(b, n) {
					found = append(found, fmt.Sprintf("key %d as %s in %s", i, form, path))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// testShareInLogs: no key of a disk shows in any file of any sled, nor in status. The logs were written at level debug.
func testShareInLogs(t *testing.T, r *simrack.Rack) {
	var keys [][]byte
	for _, s := range r.Sleds() {
		k, err := s.Key(t.Context(), s.Disks[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Use(func(b []byte) error { keys = append(keys, bytes.Clone(b)); return nil }); err != nil {
			t.Fatal(err)
		}
		raw, err := s.Client().StatusJSON(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.Dir, "status.json"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, must := range []string{s.Log, s.TPMLog} {
			if fi, err := os.Stat(must); err != nil || fi.Size() == 0 {
				t.Errorf("%s: nothing to search (%v)", must, err)
			}
		}
	}
	if bytes.Equal(keys[0], keys[1]) {
		t.Error("two disks have the same key")
	}
	for _, f := range search(t, r.Dir, keys) {
		t.Error(f)
	}
	planted := t.TempDir()
	for form, n := range needles(keys[0]) {
		path := filepath.Join(planted, "log")
		if err := os.WriteFile(path, slices.Concat([]byte("time=1 key="), n, []byte("\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		if len(search(t, planted, keys[:1])) == 0 {
			t.Errorf("control: a planted key as %s is not found", form)
		}
	}
}

// testWipedState: who deletes a sled's state does not get a sled that looks new.
func testWipedState(t *testing.T, r *simrack.Rack) {
	s := r.Sled(2)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, d := range s.State {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	st, err := s.Await(t.Context(), "settled", func(st api.Status) bool { return st.State != api.StateStarting })
	if err != nil {
		t.Fatal(err)
	}
	if st.State != api.StateLostSeal || st.NextStep == "" {
		t.Errorf("have state %s, next step %q; want %s with a next step", st.State, st.NextStep, api.StateLostSeal)
	}
	if _, err := s.Key(t.Context(), s.Disks[0].ID); err == nil {
		t.Error("the sled gave a key away")
	}
}

// testStrangerClaims: a membership key that the sled's configuration does not name can enroll neither a new sled nor a
// member.
func testStrangerClaims(t *testing.T, r *simrack.Rack) {
	s, err := r.Stranger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Scrap(s); err != nil {
			t.Error(err)
		}
	}()
	if _, err := s.Await(t.Context(), "unclaimed", func(st api.Status) bool { return st.State == api.StateUnclaimed }); err != nil {
		t.Fatal(err)
	}
	before := status(t, s)
	_, err = r.Run(t.Context(), "rack", "enroll", "--rack", foreignRack(t, r, s), "--timeout", "20s", "--json")
	if ce, ok := errors.AsType[*simrack.CommandError](err); !ok || ce.Code != 1 {
		t.Errorf("unclaimed: enroll: have %v, want exit code 1", err)
	}
	after := status(t, s)
	if after.State != api.StateUnclaimed || after.Rack != nil || total(after, api.CodeForbidden) <= total(before, api.CodeForbidden) {
		t.Errorf("unclaimed: have state %s, rack %v, %+v; want unclaimed and the refusal counted", after.State, after.Rack, after.Reasons)
	}

	foreign, err := enroll.NewKey(secret.Heap{}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := r.Sled(0)
	before = status(t, m)
	ses := session(t, m, foreign)
	if _, err := ses.EnrollBegin(t.Context(), enroll.BeginRequest{Nonce: make([]byte, 32)}); reason.CodeOf(err) != api.CodeForbidden {
		t.Errorf("member: begin: have %v, want %s", err, api.CodeForbidden)
	}
	recovery, err := enroll.NewKey(secret.Heap{}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set := enroll.NewSet(before.Rack.ID, foreign.PublicKey(), recovery.PublicKey())
	set.Generation = before.Rack.SetGeneration + 1 // a change of keys may come from anyone, if the recovery key signed it
	if err := set.Sign(foreign); err != nil {
		t.Fatal(err)
	}
	if _, err := ses.EnrollSet(t.Context(), set.Encode()); reason.CodeOf(err) != enroll.CodeSignature {
		t.Errorf("member: set: have %v, want %s", err, enroll.CodeSignature)
	}
	after = status(t, m)
	if !member(after) || after.Rack.SetDigest != before.Rack.SetDigest || total(after, api.CodeForbidden) != total(before, api.CodeForbidden)+1 ||
		total(after, enroll.CodeSignature) != total(before, enroll.CodeSignature)+1 {
		t.Errorf("member: have state %s, set %s, %+v; want the same set and two refusals counted", after.State, after.Rack.SetDigest, after.Reasons)
	}
}

// foreignRack makes a rack of somebody else that names the sled.
func foreignRack(t *testing.T, r *simrack.Rack, s *simrack.Sled) (file string) {
	t.Helper()
	out, err := r.Run(t.Context(), "rack", "new", t.TempDir(), "--name", "foreign", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var made struct{ Rackfile string }
	if err := json.Unmarshal(out, &made); err != nil {
		t.Fatal(err)
	}
	id, err := s.Client().TPM(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(made.Rackfile, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := fmt.Fprintf(f, "\n[[sled]]\npart = %q\nserial = %q\nunderlay = %q\nek_name = %q\n", s.Board.Part, s.Board.Serial, s.Underlay, id.EKName); err != nil {
		t.Fatal(err)
	}
	return made.Rackfile
}

func status(t *testing.T, s *simrack.Sled) api.Status {
	t.Helper()
	st, err := s.Client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func total(st api.Status, code reason.Code) (n uint64) {
	for _, e := range st.Reasons {
		if e.Code == code {
			n += e.Count
		}
	}
	return n
}

// testUnderlayForgery: an invented configuration is refused from whoever has no client certificate of this rack, and
// from whoever has one but no certificate for the configuration.
func testUnderlayForgery(t *testing.T, r *simrack.Rack) {
	s := r.Sled(1)
	own, err := enroll.LoadKey(secret.Heap{}, filepath.Join(filepath.Dir(r.File), "membership.key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := enroll.NewKey(secret.Heap{}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := forge(t, s, foreign)
	before := status(t, s)

	if code := putBare(t, s.Underlay, forged); code != http.StatusForbidden {
		t.Errorf("no client certificate: have HTTP status %d, want %d", code, http.StatusForbidden)
	}
	for _, c := range []struct {
		name string
		key  enroll.Key
		want func(reason.Code) bool
	}{
		{"foreign client certificate", foreign, func(c reason.Code) bool { return c == api.CodeForbidden }},
		{"foreign commit certificate", own, func(c reason.Code) bool { return c != "" && c != api.CodeForbidden && c != api.CodeInternal }},
	} {
		ses := session(t, s, c.key)
		_, err := ses.PrepareAndCommit(t.Context(), forged)
		if err == nil || !c.want(reason.CodeOf(err)) {
			t.Errorf("%s: have %v (%s)", c.name, err, reason.CodeOf(err))
		}
		after := status(t, s)
		if code := reason.CodeOf(err); total(after, code) <= total(before, code) {
			t.Errorf("%s: %s is not counted", c.name, code)
		}
	}
	after := status(t, s)
	if !slices.Equal(after.Quorum.Commits, before.Quorum.Commits) || !slices.Equal(after.Quorum.Configs, before.Quorum.Configs) || !member(after) {
		t.Errorf("have %+v, want %+v", after.Quorum, before.Quorum)
	}
	if n := total(after, api.CodeForbidden) - total(before, api.CodeForbidden); n != 2 {
		t.Errorf("refused clients: have %d counted, want 2", n)
	}
	ses := session(t, s, own) // control: the rack's own key is let in
	if cfg, err := ses.Config(t.Context()); err != nil || len(cfg.Config) == 0 {
		t.Errorf("control: %v", err)
	}
}

// forge makes the configuration of the next epoch from the present one, with a certificate of somebody else's.
func forge(t *testing.T, s *simrack.Sled, key enroll.Key) api.PrepareAndCommitRequest {
	t.Helper()
	now, err := s.Client().Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := wire.DecodeConfigurationJSON(now.Config)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Epoch++
	cert, err := enroll.SignCertificate(key, cfg, 0)
	if err != nil {
		t.Fatal(err)
	}
	req, err := api.ConfigReply(cfg, cert)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func session(t *testing.T, s *simrack.Sled, key enroll.Key) *client.Session {
	t.Helper()
	cert, err := enroll.SelfClient(key, 1)
	if err != nil {
		t.Fatal(err)
	}
	ses, err := client.Open(t.Context(), s.Underlay, cert)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ses.Close() })
	return ses
}

// putBare sends the request without any client certificate.
func putBare(t *testing.T, addr string, body api.PrepareAndCommitRequest) (code int) {
	t.Helper()
	cfg := api.ClientTLS(tls.Certificate{})
	cfg.Certificates = nil
	d := tls.Dialer{Config: cfg}
	c, err := d.DialContext(context.WithoutCancel(t.Context()), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://sled/v1/quorum/prepare-and-commit", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := req.Write(c); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode
}
