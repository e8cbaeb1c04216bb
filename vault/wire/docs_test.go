package wire

import (
	"os"
	"strings"
	"testing"
)

// TestDocs checks that wire.md shows the bytes that we write. <C1>, <C2> and <SH> stand for parts shown once.
func TestDocs(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	var v cborVectors
	loadJSON(t, "cbor.json", &v)
	doc := string(b)
	short := strings.NewReplacer(v.Parts["C1"], "<C1>", v.Parts["C2"], "<C2>", v.Parts["share"], "<SH>")
	for name, want := range frozenOwn() {
		if !strings.Contains(doc, "\n"+short.Replace(want)+"\n") {
			t.Errorf("%s is not in wire.md", name)
		}
	}
	for _, want := range []string{v.Parts["C1"], v.Parts["C2"], v.Parts["share"], v.Parts["baseboard_id"], short.Replace(frozenState)} {
		if !strings.Contains(doc, "\n"+want+"\n") {
			t.Errorf("%.40s… is not in wire.md", want)
		}
	}
	for _, m := range v.Wire {
		p := m.Frame[8:]
		if i := strings.LastIndex(p, "66726573756c74"); i > 0 { // what follows "result"
			p = p[i+14:]
		} else if i := strings.LastIndex(p, "626f70"); i > 0 { // what follows "op"
			p = p[i+6:]
		}
		switch m.Name {
		case "NetworkConfig empty blob", "NetworkConfig 0..255", "ProxyRequest PrepareAndCommit C2", "Ok Status with one alarm of every kind (shows set order)":
		default:
			if !strings.Contains(doc, "`"+short.Replace(p)+"`") {
				t.Errorf("%s is not in wire.md", m.Name)
			}
		}
	}
}
