package ident_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/ident"
)

func TestParseBaseboard(t *testing.T) {
	long := strings.Repeat("x", ident.MaxField)
	for _, s := range []string{"913-0000019:BRM42220051", "p:1", long + ":" + long} {
		b, err := ident.ParseBaseboard(s)
		if err != nil || b.String() != s || b.IsZero() {
			t.Errorf("%q: have %v, %v", s, b, err)
		}
	}
	for _, s := range []string{"", ":", "a:", ":b", "a", "a:b:c", "a b:c", "a:b\n", "ä:b", "a:\x00", long + "x:1"} {
		if b, err := ident.ParseBaseboard(s); !errors.Is(err, ident.ErrBaseboard) || !b.IsZero() {
			t.Errorf("%q: have %v, %v, want a refusal", s, b, err)
		}
	}
}

// The order is by bytes: "10" comes before "2".
func TestOrder(t *testing.T) {
	in := []ident.Baseboard{{Part: "p", Serial: "2"}, {Part: "p", Serial: "10"}, {Part: "o", Serial: "9"}}
	got := ident.SortBaseboards(in)
	want := []ident.Baseboard{{Part: "o", Serial: "9"}, {Part: "p", Serial: "10"}, {Part: "p", Serial: "2"}}
	if !slices.Equal(got, want) {
		t.Errorf("have %v, want %v", got, want)
	}
	if in[0].Serial != "2" {
		t.Error("the argument was changed")
	}
}

func TestTextForms(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		field := rapid.StringMatching(`[!-9;-~]{1,51}`)
		type both struct {
			Board ident.Baseboard
			Rack  ident.RackID
		}
		v := both{
			ident.Baseboard{Part: field.Draw(t, "part"), Serial: field.Draw(t, "serial")},
			ident.RackID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "rack")),
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var back both
		if err := json.Unmarshal(b, &back); err != nil || back != v {
			t.Fatalf("have %v, %v, want %v", back, err, v)
		}
	})
}

func TestParseRackID(t *testing.T) {
	const s = "00112233-4455-4677-8899-aabbccddeeff"
	r, err := ident.ParseRackID(s)
	if err != nil || r.String() != s || r[0] != 0 || r[15] != 0xff || r.IsZero() {
		t.Errorf("have %v, %v", r, err)
	}
	for _, s := range []string{"", "0", "00112233445546778899aabbccddeeff", "{00112233-4455-4677-8899-aabbccddeef}", s + "0"} {
		if _, err := ident.ParseRackID(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}
