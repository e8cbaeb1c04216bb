package journal_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/sledvault/sledvault/vault/rack/journal"
)

// TestFrozenV1 holds the bytes of version 1. A failure means: revert. A journal written by any release must be read by
// every later one; a new form gets a new version beside this one.
func TestFrozenV1(t *testing.T) {
	t.Parallel()
	for name, st := range states(t) {
		want, err := os.ReadFile(filepath.Join("testdata", "v1-"+name+".json"))
		must(t, err)
		have, err := journal.Encode(st)
		must(t, err)
		if !bytes.Equal(have, want) {
			t.Errorf("%s: written: have\n%s\nwant\n%s", name, have, want)
		}
		back, err := journal.Decode(want)
		must(t, err)
		if !equal(t, back, st) {
			t.Errorf("%s: read: have %+v", name, back)
		}
	}
}
