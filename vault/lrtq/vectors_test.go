package lrtq

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/secret"
)

// testdata/lrtq.json was made by running the reference; its key produced_by names the functions.
type vectors struct {
	Splits []struct {
		Name             string     `json:"name"`
		N                int        `json:"n"`
		K                int        `json:"k"`
		Secret           hexBytes   `json:"secret"`
		SecretWide       hexBytes   `json:"secret_wide"`
		CoefficientsWide []hexBytes `json:"coefficients_wide"`
		Shares           []struct {
			Share  hexBytes `json:"share"`
			Digest hexBytes `json:"sha3_256"`
		} `json:"shares"`
		Combine []struct {
			Xs     []int     `json:"xs"`
			Secret *hexBytes `json:"secret"`
			Error  *string   `json:"error"`
			Equals bool      `json:"equals_secret"`
		} `json:"combine"`
	} `json:"splits"`
	CombineEdgeCases []struct {
		Name   string          `json:"name"`
		Shares []hexBytes      `json:"shares"`
		Result json.RawMessage `json:"result"`
	} `json:"combine_edge_cases"`
}

type hexBytes []byte

func (h *hexBytes) UnmarshalText(t []byte) (err error) {
	*h, err = hex.DecodeString(string(t))
	return err
}

func load(t testing.TB) (v vectors) {
	t.Helper()
	b, err := os.ReadFile("testdata/lrtq.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func share(t testing.TB, b []byte) Share {
	t.Helper()
	if len(b) == 0 {
		return Share{X: 1}
	}
	y, err := secret.Take[secret.ShareKind](secret.Heap{}, bytes.Clone(b[1:]))
	if err != nil {
		t.Fatal(err)
	}
	return Share{X: b[0], Y: y}
}

func raw(t rapid.TB, s interface {
	Use(func([]byte) error) error
},
) (out []byte) {
	t.Helper()
	if err := s.Use(func(b []byte) error { out = bytes.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func takeSecret(t testing.TB, b []byte) secret.RackSecret {
	t.Helper()
	s, err := secret.Take[secret.RackSecretKind](secret.Heap{}, bytes.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVectorsOfSplitting(t *testing.T) {
	t.Parallel()
	for _, v := range load(t).Splits {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			s, err := NewSecret(secret.Heap{}, bytes.NewReader(v.SecretWide))
			if err != nil {
				t.Fatal(err)
			}
			if got := raw(t, s); !bytes.Equal(got, v.Secret) {
				t.Fatalf("secret: have %x, want %x", got, v.Secret)
			}
			shares, err := Split(secret.Heap{}, bytes.NewReader(bytes.Join(toSlices(v.CoefficientsWide), nil)), s, v.N, v.K)
			if err != nil {
				t.Fatal(err)
			}
			if len(shares) != v.N {
				t.Fatalf("shares: have %d, want %d", len(shares), v.N)
			}
			for _, w := range v.Shares {
				got := shares[w.Share[0]-1]
				if b := append([]byte{got.X}, raw(t, got.Y)...); !bytes.Equal(b, w.Share) {
					t.Errorf("share %d: have %x, want %x", w.Share[0], b, w.Share)
				}
				if d, err := got.Digest(); err != nil || !bytes.Equal(d[:], w.Digest) {
					t.Errorf("digest of share %d: have %x (%v), want %x", w.Share[0], d, err, w.Digest)
				}
			}
			for _, c := range v.Combine {
				var chosen []Share
				for _, x := range c.Xs {
					chosen = append(chosen, shares[x-1])
				}
				got, err := Combine(secret.Heap{}, chosen)
				if c.Error != nil {
					if !errors.Is(err, ErrTooFewShares) {
						t.Errorf("combine %v: have %v, want the refusal of %s", c.Xs, err, *c.Error)
					}
					continue
				}
				if err != nil {
					t.Fatalf("combine %v: %v", c.Xs, err)
				}
				if b := raw(t, got); !bytes.Equal(b, *c.Secret) || bytes.Equal(b, v.Secret) != c.Equals {
					t.Errorf("combine %v: have %x, want %x", c.Xs, b, *c.Secret)
				}
			}
		})
	}
}

func toSlices(in []hexBytes) (out [][]byte) {
	for _, b := range in {
		out = append(out, b)
	}
	return out
}

// TestVectorsOfCombining holds the reference's edge cases against ours. It reads a share that is not canonical
// backwards and panics on wrong lengths; we refuse both.
func TestVectorsOfCombining(t *testing.T) {
	t.Parallel()
	refusals := map[string]error{
		"none": ErrTooFewShares, "one": ErrTooFewShares, "x = 0": ErrInvalidShareID, "y = 0": ErrZeroShare,
		"short share (32 bytes)": ErrInvalidShareLengths, "long share (34 bytes)": ErrInvalidShareLengths,
		"non canonical y = L": ErrNotCanonical, "empty share": secret.ErrEmpty,
	}
	seen := 0
	for _, v := range load(t).CombineEdgeCases {
		var shares []Share
		for _, b := range v.Shares {
			shares = append(shares, share(t, b))
		}
		got, err := Combine(secret.Heap{}, shares)
		if want, refused := refusals[v.Name]; refused {
			seen++
			if !errors.Is(err, want) {
				t.Errorf("%s: have %v, want %v", v.Name, err, want)
			}
			continue
		}
		var result struct {
			Secret hexBytes `json:"secret"`
		}
		if err := json.Unmarshal(v.Result, &result); err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
		} else if b := raw(t, got); !bytes.Equal(b, result.Secret) {
			t.Errorf("%s: have %x, want %x", v.Name, b, result.Secret)
		}
	}
	if seen != len(refusals) {
		t.Errorf("refusals: have %d, want %d", seen, len(refusals))
	}
}

// TestVectorOfDocument is the vector of docs/lrtq.md: everything comes from three words.
func TestVectorOfDocument(t *testing.T) {
	t.Parallel()
	wideOf := func(word string) []byte { b := sha512.Sum512([]byte(word)); return b[:] }
	s, err := NewSecret(secret.Heap{}, bytes.NewReader(wideOf("lrtq-secret")))
	if err != nil {
		t.Fatal(err)
	}
	shares, err := Split(secret.Heap{}, bytes.NewReader(append(wideOf("lrtq-coef-1"), wideOf("lrtq-coef-2")...)), s, TotalShares, 3)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hex.EncodeToString(raw(t, s)), "31e0b914502ea4bffaaa0b6702914212df9d138c139a81a8b60230b2ca38130f"; got != want {
		t.Errorf("secret: have %s, want %s", got, want)
	}
	for x, want := range map[byte][2]string{
		1:   {"d1c5d704b08b4e3c52d37e2d27aef5866b4878f6df551aad5ae4e42efa6bb707", "fcfbbf27d71b2e004eba20d9e874b0b6dfd845a7016c131532f7743ba927bf86"},
		2:   {"9d2b15f9f748edcb309e206051f0a71637019996b61ac3a3454ab9a3f431740b", "389dd70b45cceecf4a20d83bb7a3f45dc578f279cbce56feb140620840c03e57"},
		64:  {"4c54aa7571d15a3452f2ef74522de73b81712e4e95bdf70c6a1a9ad70b03a409", "901cf74c3b3467aa44c6838a614a13e19f57315c48459f3d96b069ca215c927f"},
		255: {"ef5a39e104a8fa6cfa803dd55bef9303c0b51f29493f2c1bfb5759757e13440a", "bd74c7563dcd76d3df4fa971a9562c42d0c3abea58fb79f7c37f915c2c027232"},
	} {
		d, err := shares[x-1].Digest()
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]string{hex.EncodeToString(raw(t, shares[x-1].Y)), hex.EncodeToString(d[:])}; got != want {
			t.Errorf("share %d and its digest: have %v, want %v", x, got, want)
		}
	}
	if _, err := Split(secret.Heap{}, bytes.NewReader(nil), s, 255, 1); !isSplitError(err, gfss.ThresholdTooSmall) {
		t.Errorf("threshold 1: have %v, want a refusal", err)
	}
}

func isSplitError(err error, name string) bool {
	e, ok := errors.AsType[*gfss.SplitError](err)
	return ok && e.Name == name
}
