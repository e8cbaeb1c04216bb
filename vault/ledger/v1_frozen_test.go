// These tests hold bytes that released versions have written. If one fails, revert the change: sleds in the field could
// not read their ledgers any more. A new format gets a new version and new files beside these.

package ledger

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/swtpm"
	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/sealing"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

// TestFrozenV1Bytes: the exact file for a fixed key, nonce and state.
func TestFrozenV1Bytes(t *testing.T) {
	t.Parallel()
	const want = "" +
		"73766c65646765720001" + // magic, version
		"aa000000000000000000000000000055" + // rack id
		"000b3931332d30303030303139" + // part
		"000b42524d3432323230303331" + // serial
		"000000000000000300000000000000290000000000000007" + // epoch, sequence, generation
		"0004626c6f62" + // blob
		"00020002613100026132" + // two approvals
		"0102030405060708090a0b0c0d0e0f101112131415161718" + // nonce
		"00000028ead468fb57d02fcfd1db75ef6f94db9cbfdff427f9816eb50ebc83d80b38a6db9fbe7b0abbce0d64" + // ciphertext and tag
		"7f12bcf1352beb5d59d4fe2ea0029adbafcb6668c6294264f4a31986f33f0b74" + // checksum
		""
	f := &File{
		Rack: testRack, Baseboard: testID, Epoch: 3, Sequence: 41, Generation: 7, Blob: []byte("blob"), Approvals: [][]byte{[]byte("a1"), []byte("a2")},
	}
	key := fixed[secret.SealKeyKind](t, bytes.Repeat([]byte{0x42}, 32))
	plain := fixed[secret.PlaintextKind](t, []byte("what a state encodes to"))
	nonce := make([]byte, nonceLen)
	for i := range nonce {
		nonce[i] = byte(i + 1)
	}
	if err := f.encrypt(secret.Heap{}, bytes.NewReader(nonce), key, flagSingle, plain); err != nil {
		t.Fatal(err)
	}
	raw, err := f.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(raw); got != want {
		t.Errorf("have %s\nwant %s", got, want)
	}
	const ad = "0002000100080000000000000029000800000000000000070010aa00000000000000000000000000005500080000000000000003000b3931332d30303030303139000b42524d3432323230303331"
	if got := hex.EncodeToString(f.associatedData()); got != ad {
		t.Errorf("associated data: have %s, want %s", got, ad)
	}
}

func fixed[K secret.Kind](t testing.TB, b []byte) secret.Bytes[K] {
	t.Helper()
	s, err := secret.Take[K](secret.Heap{}, bytes.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var freeze = flag.Bool("freeze", false, "make testdata/v1.tar anew: only before version 1 is released")

const frozenTar = "testdata/v1.tar"

// frozenPins is what the enrolment record of the frozen sled says.
type frozenPins struct{ SRK, EK, AK, Counter []byte }

// frozenState is a state with everything in it.
func frozenState(t testing.TB) wire.LedgerState {
	t.Helper()
	share := fixed[secret.ShareKind](t, bytes.Repeat([]byte{0x5a}, 32))
	config := &quorum.Configuration{
		RackID: testRack, Epoch: 1, Coordinator: testID, Threshold: 2,
		Members: []quorum.Member{
			{ID: testID, ShareDigest: quorum.Digest{1}},
			{ID: ident.Baseboard{Part: "913-0000019", Serial: "BRM42220032"}, ShareDigest: quorum.Digest{2}},
			{ID: ident.Baseboard{Part: "913-0000019", Serial: "BRM42220033"}, ShareDigest: quorum.Digest{3}},
		},
	}
	return wire.LedgerState{
		SetGeneration: 2, SetDigest: [32]byte{9},
		Quorum: quorum.State{
			Configs: map[ident.Epoch]*quorum.Configuration{1: config},
			Shares:  map[ident.Epoch]gfss.Share{1: {X: 1, Y: share}},
			Commits: map[ident.Epoch]bool{1: true},
		},
		Disks: []wire.DiskRecord{{
			ID: "boot", Backend: "luks2", Vendor: "v", Model: "m", Serial: "s", Epoch: 1,
			HeaderPins: []wire.Pin{{Name: "cipher", Value: "aes-xts-plain64"}}, KeySlot: 1, State: "open",
		}},
	}
}

// frozenSled is a swtpm on a folder, and state folders beside it.
type frozenSled struct {
	dir  string
	pair *swtpm.Pair
	p    sealing.Params
	cfg  Config
}

func startFrozen(t *testing.T, dir string) *frozenSled {
	t.Helper()
	pair, err := swtpm.StartPair(filepath.Join(dir, "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pair.Close() })
	dut, err := tpm.New(pair, true)
	if err != nil {
		t.Fatal(err)
	}
	dirs := [2]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	s := &frozenSled{
		dir: dir, pair: pair,
		p:   sealing.Params{TPM: dut, Alloc: secret.Heap{}, Rand: rand.Reader, Baseboard: testID, AuthDirs: dirs},
		cfg: Config{Dirs: dirs, Rack: testRack, Baseboard: testID, Alloc: secret.Heap{}, Rand: rand.Reader},
	}
	err = dut.Do(t.Context(), func(x *tpm.Session) error {
		for _, n := range sealing.DefaultPCRs() {
			if err := x.ExtendPCR(n, sha256.Sum256([]byte("frozen firmware"))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestFrozenV1Sled: a sled that version 1 enrolled, with the TPM that sealed its key, still opens and goes on.
func TestFrozenV1Sled(t *testing.T) {
	t.Parallel()
	rig.Need(t, "swtpm")
	if *freeze {
		makeFrozen(t)
	}
	dir := t.TempDir()
	untar(t, frozenTar, dir)
	s := startFrozen(t, dir)
	raw, err := os.ReadFile(filepath.Join(dir, "pins.json"))
	if err != nil {
		t.Fatal(err)
	}
	var pins frozenPins
	if err := json.Unmarshal(raw, &pins); err != nil {
		t.Fatal(err)
	}
	unseal := func(ctx context.Context, blob []byte, approvals [][]byte) (Sealer, error) {
		u, err := sealing.Open(ctx, s.p, sealing.Pins{SRKName: pins.SRK, EKName: pins.EK, AKName: pins.AK, CounterName: pins.Counter}, testRack, blob, approvals)
		if err != nil {
			return nil, err
		}
		return u, nil
	}
	for range 2 {
		l, st, r, err := Open(t.Context(), s.cfg, unseal)
		if err != nil {
			t.Fatal(err)
		}
		want := frozenState(t)
		if len(r.Notes) != 0 || st.SetGeneration != 2 || st.SetDigest != want.SetDigest || len(st.Disks) != 1 || st.Disks[0].HeaderPins[0] != want.Disks[0].HeaderPins[0] {
			t.Errorf("report %+v, state %+v", r, st)
		}
		if sh := st.Quorum.Shares[1]; sh.X != 1 || !sh.Y.Equal(want.Quorum.Shares[1].Y) || !st.Quorum.Configs[1].Equal(want.Quorum.Configs[1]) {
			t.Error("share or configuration differs")
		}
		if o := l.Observed(); o.Peers["aabb"].Sequence != 5 || len(o.Releases) != 1 {
			t.Errorf("observed %+v", o)
		}
		if err := l.Save(t.Context(), st); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := sealing.ReadClaim(t.Context(), s.p); err != nil || c == nil || c.SetGeneration != 2 {
		t.Errorf("claim %+v, %v", c, err)
	}
}

func makeFrozen(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"tpm", "a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s := startFrozen(t, dir)
	ctx := t.Context()
	e, err := sealing.Begin(ctx, s.p)
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.Describe(ctx, [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	u, err := e.Finish(ctx, testRack, sealing.Claim{Rack: testRack, SetGeneration: 2, SetDigest: [32]byte{9}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := Create(ctx, s.cfg, u, wire.LedgerState{})
	if err != nil {
		t.Fatal(err)
	}
	o := Observed{Peers: map[string]Seen{"aabb": {Sequence: 5}}}
	o.AddRelease(Release{Disk: "boot", UID: 1, PID: 2, Role: "unlock", BootMS: 3})
	if err := l.Save(ctx, frozenState(t)); err != nil {
		t.Fatal(err)
	}
	if err := l.SaveObserved(ctx, o); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.pair.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(frozenPins{d.SRKName, d.EKName, d.AKName, d.CounterName})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pins.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	tarUp(t, dir, frozenTar)
}

func tarUp(t *testing.T, dir, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range []string{"tpm/tpm2-00.permall", "a/" + LedgerFile, "a/" + ObservedFile, "a/" + sealing.AuthFile, "b/" + LedgerFile, "b/" + ObservedFile, "b/" + sealing.AuthFile, "pins.json"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func untar(t *testing.T, path, dir string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, filepath.FromSlash(h.Name))
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
