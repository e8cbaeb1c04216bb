package gfss

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/secret"
)

type vectorShare struct {
	X      byte
	Y      string
	Digest string `json:"sha3_256"`
	XY     string `json:"x_y_hex"`
}

type vectors struct {
	Cases []struct {
		Name, Secret string
		N, K         int
		Coefficients []string
		Shares       []vectorShare
		All          bool `json:"shares_are_all"`
		Combine      []struct {
			XS     []int
			Equals bool `json:"equals_secret"`
			Error  *string
			Secret *string
		}
		Compute []struct {
			From  []int `json:"from_xs"`
			X     byte
			Error *string
			Share *vectorShare
		} `json:"compute_share"`
	}
	Errors []struct {
		Call, Name string
		Error      *string
		N, K       int
		X          *byte
		Shares     []string
		Result     json.RawMessage
	}
}

func loadVectors(t *testing.T) (v vectors) {
	t.Helper()
	raw, err := os.ReadFile("testdata/gfss.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newSecret(t testing.TB, b []byte) secret.RackSecret {
	t.Helper()
	s, err := secret.Take[secret.RackSecretKind](secret.Heap{}, slices.Clone(b))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newShare reads the form x || y.
func newShare(t testing.TB, b []byte) Share {
	t.Helper()
	y, err := secret.Take[secret.ShareKind](secret.Heap{}, slices.Clone(b[1:]))
	if err != nil {
		t.Fatal(err)
	}
	return Share{b[0], y}
}

func reveal[K secret.Kind](t testing.TB, s secret.Bytes[K]) (out []byte) {
	t.Helper()
	if err := s.Use(func(b []byte) error { out = append([]byte{}, b...); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// byDegree turns the vectors' order (per secret byte) into the order in which Split reads.
func byDegree(t *testing.T, perByte []string, k int) []byte {
	t.Helper()
	out := make([]byte, (k-1)*len(perByte))
	for i, c := range perByte {
		for degree, v := range unhex(t, c) {
			out[degree*len(perByte)+i] = v
		}
	}
	return out
}

// ours translates the vectors' names of errors.
func ours(name *string) string {
	if name == nil {
		return ""
	}
	switch head, _, _ := strings.Cut(*name, " "); head {
	case "ThresholdToSmall":
		return ThresholdTooSmall
	default:
		snake := regexp.MustCompile(`([A-Z])`).ReplaceAllString(head, "_${1}")
		return strings.ToLower(snake[1:])
	}
}

func nameOf(err error) string {
	if e, ok := errors.AsType[CombineError](err); ok {
		return e.Name()
	}
	if e, ok := errors.AsType[*SplitError](err); ok {
		return e.Name
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func pick(t *testing.T, all []Share, xs []int) (out []Share) {
	t.Helper()
	for _, x := range xs {
		out = append(out, all[x-1])
	}
	return out
}

func checkShare(t *testing.T, got Share, want vectorShare) {
	t.Helper()
	if y := hex.EncodeToString(reveal(t, got.Y)); got.X != want.X || y != want.Y {
		t.Errorf("share %d: have %s, want %s", want.X, y, want.Y)
	}
	d, err := got.Digest()
	if h := hex.EncodeToString(d[:]); err != nil || h != want.Digest {
		t.Errorf("share %d: digest %s (%v), want %s", want.X, h, err, want.Digest)
	}
}

func TestVectors(t *testing.T) {
	t.Parallel()
	for _, c := range loadVectors(t).Cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			sec := newSecret(t, unhex(t, c.Secret))
			rand := bytes.NewReader(byDegree(t, c.Coefficients, c.K))
			shares, err := Split(secret.Heap{}, rand, sec, c.N, c.K)
			if err != nil {
				t.Fatal(err)
			}
			if len(shares) != c.N || rand.Len() != 0 || c.All && len(c.Shares) != c.N {
				t.Fatalf("have %d shares and %d bytes unread, want %d and 0", len(shares), rand.Len(), c.N)
			}
			for _, want := range c.Shares {
				checkShare(t, shares[want.X-1], want)
			}
			for _, co := range c.Combine {
				got, err := Combine(secret.Heap{}, pick(t, shares, co.XS))
				if nameOf(err) != ours(co.Error) {
					t.Errorf("combine %v: have %v, want %q", co.XS, err, ours(co.Error))
				} else if err == nil && hex.EncodeToString(reveal(t, got)) != *co.Secret {
					t.Errorf("combine %v: wrong secret", co.XS)
				} else if got.Equal(sec) != co.Equals {
					t.Errorf("combine %v: equal is %v, want %v", co.XS, !co.Equals, co.Equals)
				}
			}
			for _, cs := range c.Compute {
				got, err := ComputeShare(secret.Heap{}, pick(t, shares, cs.From), cs.X)
				if nameOf(err) != ours(cs.Error) {
					t.Errorf("compute %d from %v: have %v, want %q", cs.X, cs.From, err, ours(cs.Error))
				} else if err == nil {
					checkShare(t, got, *cs.Share)
				}
			}
		})
	}
}

func TestVectorErrors(t *testing.T) {
	t.Parallel()
	for i, c := range loadVectors(t).Errors {
		t.Run(fmt.Sprint(i, " ", c.Call, " ", c.Name), func(t *testing.T) {
			t.Parallel()
			var shares []Share
			for _, s := range c.Shares {
				shares = append(shares, newShare(t, unhex(t, s)))
			}
			var err error
			var got []byte
			switch c.Call {
			case "split_secret":
				_, err = Split(secret.Heap{}, bytes.NewReader(make([]byte, 32*255)), newSecret(t, make([]byte, 32)), c.N, c.K)
			case "compute_secret":
				var s secret.RackSecret
				if s, err = Combine(secret.Heap{}, shares); err == nil {
					got = reveal(t, s)
				}
			case "compute_share":
				var s Share
				if s, err = ComputeShare(secret.Heap{}, shares, *c.X); err == nil {
					got = reveal(t, s.Y)
				}
			default:
				t.Fatalf("unknown call %q", c.Call)
			}
			if nameOf(err) != ours(c.Error) {
				t.Fatalf("have %v, want %q", err, ours(c.Error))
			}
			if err == nil && c.Call != "split_secret" && !bytes.Contains(c.Result, []byte(hex.EncodeToString(got))) {
				t.Errorf("have %x, want %s", got, c.Result)
			}
		})
	}
}

// The digests of the whole multiplication table and of all inverses, as published in protocol.md §2.
func TestFieldTables(t *testing.T) {
	t.Parallel()
	var products, inverses []byte
	for a := range 256 {
		for b := range 256 {
			products = append(products, byte(mul(word(a), word(b))))
		}
		inverses = append(inverses, byte(invert(word(a))))
	}
	for _, c := range []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"products", products, "14a1e7e77ca8a30b5bb53e6310748ce0498eb9e04ab78a44dbefb6ebfac8a84b"},
		{"inverses", inverses, "a0b6126fef317bb998059c2fca3dddb40f2422e049866c3df87f1fde4e70a132"},
	} {
		if sum := sha256.Sum256(c.bytes); hex.EncodeToString(sum[:]) != c.want {
			t.Errorf("%s: have %x, want %s", c.name, sum, c.want)
		}
	}
}
