package lrtq

import (
	"bytes"
	"errors"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/secret"
)

// aPackage is a sled's package with share number x of a scheme with threshold 3.
func aPackage(t testing.TB, x byte) Package {
	t.Helper()
	s, err := NewSecret(secret.Heap{}, rand.NewChaCha8([32]byte{1}))
	if err != nil {
		t.Fatal(err)
	}
	shares, err := Split(secret.Heap{}, rand.NewChaCha8([32]byte{2}), s, TotalShares, 3)
	if err != nil {
		t.Fatal(err)
	}
	p := Package{RackID: ident.RackID{7}, Threshold: 3, Share: shares[x-1]}
	for _, sh := range shares {
		d, err := sh.Digest()
		if err != nil {
			t.Fatal(err)
		}
		p.Digests = append(p.Digests, d)
	}
	slices.SortFunc(p.Digests, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	return p
}

func TestPackageValidate(t *testing.T) {
	t.Parallel()
	if err := aPackage(t, 9).Validate(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Package)
		want   string
	}{
		"epoch":               {func(p *Package) { p.Epoch = 1 }, BadEpoch},
		"threshold":           {func(p *Package) { p.Threshold = 1 }, BadThreshold},
		"fewer digests":       {func(p *Package) { p.Digests = p.Digests[:2] }, BadDigests},
		"no digests":          {func(p *Package) { p.Digests = nil }, BadDigests},
		"256 digests":         {func(p *Package) { p.Digests = append(p.Digests, [32]byte{}) }, BadDigests},
		"doubled digest":      {func(p *Package) { p.Digests[4] = p.Digests[3] }, BadDigests},
		"unsorted digests":    {func(p *Package) { slices.Reverse(p.Digests) }, BadDigests},
		"number 0":            {func(p *Package) { p.Share.X = 0 }, BadShare},
		"another number":      {func(p *Package) { p.Share.X++ }, ShareNotInDigest},
		"not canonical":       {func(p *Package) { p.Share = withBytes(t, 9, order) }, BadShare},
		"zero":                {func(p *Package) { p.Share = withBytes(t, 9, new(big.Int)) }, BadShare},
		"short":               {func(p *Package) { p.Share = share(t, make([]byte, 32)) }, BadShare},
		"empty":               {func(p *Package) { p.Share.Y = secret.Share{} }, BadShare},
		"share of a stranger": {func(p *Package) { p.Share = withBytes(t, 9, big.NewInt(3)) }, ShareNotInDigest},
	} {
		p := aPackage(t, 9)
		c.change(&p)
		if e, ok := errors.AsType[*PackageError](p.Validate()); !ok || e.Name != c.want {
			t.Errorf("%s: have %v, want %s", name, p.Validate(), c.want)
		}
	}
}

func TestPackageCloneAndDestroy(t *testing.T) {
	t.Parallel()
	p := aPackage(t, 200)
	q, err := p.Clone(secret.Heap{})
	if err != nil {
		t.Fatal(err)
	}
	p.Digests[0] = [32]byte{}
	p.Destroy()
	p.Destroy()
	if err := q.Validate(); err != nil {
		t.Errorf("the clone went with the original: %v", err)
	}
	if _, err := p.Clone(secret.Heap{}); !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("clone of a destroyed package: have %v", err)
	}
	for _, d := range aPackage(t, 1).Digests {
		if !q.Has(d) {
			t.Errorf("digest %x is not in the package", d)
		}
		d[31] ^= 1
		if q.Has(d) {
			t.Errorf("a changed digest %x is in the package", d)
		}
	}
}
