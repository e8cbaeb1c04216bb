package ident_test

import (
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
)

// FuzzParse: what is read as an identity is written as it was, but for the case of a rack id, and nothing is read as a
// baseboard that would be refused later.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"913-0000019:BRM42220014", ":", "a:b:c", "part with blank:1", "00112233-4455-4677-8899-aabbccddeeff", "00112233-4455-4677-8899-AABBCCDDEEFF"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := ident.ParseBaseboard(s); err == nil && (b.String() != s || b.Validate() != nil || b.Compare(b) != 0) {
			t.Errorf("baseboard %q: read as %q, %v", s, b, b.Validate())
		}
		if r, err := ident.ParseRackID(s); err == nil {
			if again, err := ident.ParseRackID(r.String()); err != nil || again != r || !strings.EqualFold(r.String(), s) {
				t.Errorf("rack id %q: read as %q", s, r)
			}
		}
	})
}
