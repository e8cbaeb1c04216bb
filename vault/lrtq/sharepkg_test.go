package lrtq

import (
	"bytes"
	"crypto/sha3"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/secret"
)

type boardVector struct {
	Type       string `json:"type"`
	Identifier string `json:"identifier"`
	Model      string `json:"model"`
	Revision   uint32 `json:"revision"`
}

func (v boardVector) board() Board {
	b := Board{Kind: PC, Identifier: v.Identifier, Model: v.Model}
	if v.Type == "gimlet" {
		b.Kind, b.Revision = Gimlet, v.Revision
	}
	return b
}

type packageVectors struct {
	Packages []struct {
		Rack      ident.RackID    `json:"rack_uuid"`
		N         int             `json:"n"`
		Threshold ident.Threshold `json:"threshold"`
		Secret    hexBytes        `json:"secret"`
		Salt      hexBytes        `json:"salt"`
		Key       hexBytes        `json:"key_shares_key(derived by us)"`
		Digests   hexBytes        `json:"digests_sha3_of_concatenation_in_set_order"`
		Members   []boardVector   `json:"members"`
		Packages  []struct {
			Share  hexBytes `json:"share"`
			Digest hexBytes `json:"share_sha3_256"`
			Nonce  hexBytes `json:"nonce"`
			Sealed hexBytes `json:"encrypted_shares"` // of some only
			Length int      `json:"encrypted_shares_len"`
			Xs     []int    `json:"decrypted_xs"`
			First  hexBytes `json:"decrypted_first"`
			Last   hexBytes `json:"decrypted_last"`
		} `json:"packages"`
	} `json:"packages"`
}

// shareBytes are the 33 bytes of a share.
func shareBytes(t testing.TB, s Share) []byte {
	t.Helper()
	return append([]byte{s.X}, raw(t, s.Y)...)
}

// TestVectorsOfPackages computes all 255 shares of every rack of the reference from a threshold of them, packs them
// again, and compares every byte; then it opens each package as a member would.
func TestVectorsOfPackages(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/lrtq.json")
	if err != nil {
		t.Fatal(err)
	}
	var file packageVectors
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Packages) != 6 {
		t.Fatalf("racks: have %d, want 6", len(file.Packages))
	}
	for _, v := range file.Packages {
		t.Run(fmt.Sprint(v.N), func(t *testing.T) {
			t.Parallel()
			s := takeSecret(t, v.Secret)
			if err := keys.WithSpareKey([32]byte(v.Salt), s, v.Rack, func(key []byte) error {
				if !bytes.Equal(key, v.Key) {
					t.Errorf("key: have %x, want %x", key, v.Key)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if got := ThresholdOf(v.N); got != v.Threshold {
				t.Fatalf("threshold: have %d, want %d", got, v.Threshold)
			}
			known := map[byte]*big.Int{0: little(v.Secret)} // the secret is the value at 0
			for _, p := range v.Packages {
				if len(known) < int(v.Threshold) {
					known[p.Share[0]] = little(p.Share[1:])
				}
			}
			var shares []Share
			for x := range TotalShares {
				shares = append(shares, withBytes(t, byte(x+1), slowInterpolate(known, byte(x+1))))
			}
			var members []Board
			var nonces []byte
			for i, m := range v.Members {
				members = append(members, m.board())
				nonces = append(nonces, v.Packages[i].Nonce[:11]...)
			}
			got, err := createDerandomized(secret.Heap{}, v.Rack, members, s, shares, [32]byte(v.Salt), nonces)
			if err != nil {
				t.Fatal(err)
			}
			if d := sha3.Sum256(bytes.Join(digestSlices(got[0].Common.Digests), nil)); !bytes.Equal(d[:], v.Digests) {
				t.Errorf("digests: have %x, want %x", d, v.Digests)
			}
			for i, w := range v.Packages {
				p := got[i]
				if b := shareBytes(t, p.Common.Share); !bytes.Equal(b, w.Share) || !bytes.Equal(p.Nonce[:], w.Nonce) {
					t.Fatalf("package %d: have share %x, nonce %x, want %x, %x", i, b, p.Nonce, w.Share, w.Nonce)
				}
				if len(p.Encrypted) != w.Length || w.Sealed != nil && !bytes.Equal(p.Encrypted, w.Sealed) {
					t.Errorf("package %d: other spare shares, %d bytes", i, len(p.Encrypted))
				}
				if p.Spare() != len(w.Xs) {
					t.Fatalf("package %d: have %d spare shares, want %d", i, p.Spare(), len(w.Xs))
				}
				for j, x := range w.Xs {
					sp, err := p.SpareShare(secret.Heap{}, s, j)
					if err != nil {
						t.Fatal(err)
					}
					if int(sp.X) != x {
						t.Errorf("package %d: spare share %d: have number %d, want %d", i, j, sp.X, x)
					}
					if b := shareBytes(t, sp); j == 0 && !bytes.Equal(b, w.First) || j == len(w.Xs)-1 && !bytes.Equal(b, w.Last) {
						t.Errorf("package %d: spare share %d: have %x", i, j, b)
					}
				}
			}
		})
	}
}

func digestSlices(in [][32]byte) (out [][]byte) {
	for _, d := range in {
		out = append(out, d[:])
	}
	return out
}

// slowInterpolate is Lagrange at x over big integers; share number 0 is the secret.
func slowInterpolate(values map[byte]*big.Int, x byte) *big.Int {
	sum := new(big.Int)
	for i, y := range values {
		term := new(big.Int).Set(y)
		for j := range values {
			if i != j {
				d := new(big.Int).Mod(big.NewInt(int64(i)-int64(j)), order)
				term.Mul(term, big.NewInt(int64(x)-int64(j)))
				term.Mul(term, d.ModInverse(d, order))
			}
		}
		sum.Add(sum, term)
	}
	return sum.Mod(sum, order)
}

// TestPackagesProperty is the reference's own property: threshold, digests, spare shares that fit them, and any
// threshold of shares, own or spare, gives the secret.
func TestPackagesProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 34).Draw(t, "n")
		var members []Board
		for i := range n {
			members = append(members, Board{Kind: BoardKind(i % 2), Identifier: fmt.Sprint(100 - i), Model: "m"})
		}
		seed := [32]byte{byte(n), rapid.Byte().Draw(t, "seed")}
		packages, err := Create(secret.Heap{}, rand.NewChaCha8(seed), ident.RackID{1}, members)
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewSecret(secret.Heap{}, rand.NewChaCha8(seed)) // what Create reads first
		if err != nil {
			t.Fatal(err)
		}
		var all []Share
		for i, p := range packages {
			if err := p.Validate(); err != nil || int(p.Common.Threshold) != n/2+1 || len(p.Common.Digests) != TotalShares || p.Nonce[11] != byte(i) {
				t.Fatalf("package %d: %v, threshold %d, %d digests, nonce %x", i, err, p.Common.Threshold, len(p.Common.Digests), p.Nonce)
			}
			if int(p.Common.Share.X) != i*(TotalShares/n)+1 || p.Spare() != TotalShares/n-1 {
				t.Fatalf("package %d: share %d and %d spare ones", i, p.Common.Share.X, p.Spare())
			}
			all = append(all, p.Common.Share)
			for j := range p.Spare() {
				sp, err := p.SpareShare(secret.Heap{}, s, j)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, sp)
			}
			if _, err := p.SpareShare(secret.Heap{}, s, p.Spare()); !errors.Is(err, ErrNoSpare) {
				t.Fatalf("one spare share too many: %v", err)
			}
		}
		k := n/2 + 1
		chosen := rapid.Permutation(all).Draw(t, "chosen")
		if got, err := Combine(secret.Heap{}, chosen[:k]); err != nil || !got.Equal(s) {
			t.Fatalf("a threshold of shares: %v", err)
		}
		if k > 2 {
			if got, err := Combine(secret.Heap{}, chosen[:k-1]); err != nil || got.Equal(s) {
				t.Fatalf("one share less: %v, equal %v", err, got.Equal(s))
			}
		}
	})
}

func testPackages(t testing.TB, n int) ([]SharePackage, secret.RackSecret) {
	t.Helper()
	var members []Board
	for _, name := range names(n) {
		members = append(members, pc(name))
	}
	packages, err := Create(secret.Heap{}, rand.NewChaCha8([32]byte{9}), rackID(), members)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSecret(secret.Heap{}, rand.NewChaCha8([32]byte{9}))
	if err != nil {
		t.Fatal(err)
	}
	return packages, s
}

func TestSharePackageRefuses(t *testing.T) {
	t.Parallel()
	packages, s := testPackages(t, 4)
	for name, c := range map[string]struct {
		change func(*SharePackage)
		want   string
	}{
		"common":           {func(p *SharePackage) { p.Common.Threshold = 0 }, BadThreshold},
		"one member":       {func(p *SharePackage) { p.Members = p.Members[:1] }, BadMembers},
		"unsorted":         {func(p *SharePackage) { slices.Reverse(p.Members) }, BadMembers},
		"doubled member":   {func(p *SharePackage) { p.Members[1] = p.Members[0] }, BadMembers},
		"unusable member":  {func(p *SharePackage) { p.Members[0].Model = "" }, BadMembers},
		"PC with revision": {func(p *SharePackage) { p.Members[0].Revision = 1 }, BadMembers},
		"unknown kind":     {func(p *SharePackage) { p.Members[3].Kind = 2 }, BadMembers},
		"no tag":           {func(p *SharePackage) { p.Encrypted = nil }, BadSpare},
		"a byte less":      {func(p *SharePackage) { p.Encrypted = p.Encrypted[1:] }, BadSpare},
		"too many":         {func(p *SharePackage) { p.Encrypted = make([]byte, 255*33+16) }, BadSpare},
	} {
		p, err := packages[2].Clone(secret.Heap{})
		if err != nil {
			t.Fatal(err)
		}
		if !p.Equal(packages[2]) {
			t.Fatal("a clone differs")
		}
		c.change(&p)
		if e, ok := errors.AsType[*PackageError](p.Validate()); !ok || e.Name != c.want {
			t.Errorf("%s: have %v, want %s", name, p.Validate(), c.want)
		}
		if p.Equal(packages[2]) {
			t.Errorf("%s: still equal", name)
		}
	}
	for name, change := range map[string]func(*SharePackage){
		"rack":       func(p *SharePackage) { p.Common.RackID[0] ^= 1 },
		"salt":       func(p *SharePackage) { p.Salt[0] ^= 1 },
		"nonce":      func(p *SharePackage) { p.Nonce[11] ^= 1 },
		"ciphertext": func(p *SharePackage) { p.Encrypted[0] ^= 1 },
	} {
		p, _ := packages[2].Clone(secret.Heap{})
		change(&p)
		if _, err := p.SpareShare(secret.Heap{}, s, 0); !errors.Is(err, ErrDecrypt) {
			t.Errorf("%s: have %v, want %v", name, err, ErrDecrypt)
		}
		if p.Equal(packages[2]) {
			t.Errorf("%s: still equal", name)
		}
	}
	other, err := NewSecret(secret.Heap{}, rand.NewChaCha8([32]byte{10}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := packages[0].SpareShare(secret.Heap{}, other, 0); !errors.Is(err, ErrDecrypt) {
		t.Errorf("another secret: have %v", err)
	}
	foreign, _ := packages[1].Clone(secret.Heap{})
	foreign.Common.Digests = slices.Clone(foreign.Common.Digests[:3])
	if _, err := foreign.SpareShare(secret.Heap{}, s, 0); err == nil {
		t.Error("a spare share without a digest was given out")
	}
	for n, want := range map[int]string{0: BadMembers, 1: BadMembers, 256: BadMembers} {
		if _, err := Create(secret.Heap{}, rand.NewChaCha8([32]byte{}), rackID(), make([]Board, n)); err == nil {
			t.Errorf("%d members: accepted, want %s", n, want)
		}
	}
	if _, err := Create(secret.Heap{}, rand.NewChaCha8([32]byte{}), rackID(), []Board{pc("a"), pc("a")}); err == nil {
		t.Error("one member twice was accepted")
	}
}

func TestOwners(t *testing.T) {
	t.Parallel()
	g := Board{Kind: Gimlet, Identifier: "9", Model: "m", Revision: 3}
	got := Owners(pc("b"), []Board{pc("c"), pc("a"), g, pc("b")})
	if want := []Board{pc("b"), g, pc("a"), pc("c")}; !slices.Equal(got, want) {
		t.Errorf("have %v, want %v", got, want)
	}
	if g.String() != "gimlet-m:9-r3" || pc("a").String() != "pc-p:a" {
		t.Errorf("texts: %s, %s", g, pc("a"))
	}
	h := g
	h.Revision++
	if g.Compare(h) >= 0 || h.Compare(pc("0")) >= 0 {
		t.Error("order of boards")
	}
}
