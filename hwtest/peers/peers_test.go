//go:build linux

package peers

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/vault/api"
)

func TestFigure(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		samples                []time.Duration
		median, min, max, last float64
	}{
		{nil, 0, 0, 0, 0},
		{[]time.Duration{4e6}, 4, 4, 4, 4},
		{[]time.Duration{9e6, 1e6, 2e6}, 2, 1, 9, 9},
		{[]time.Duration{4e6, 1e6, 2e6, 3e6}, 2.5, 1, 4, 4},
	} {
		f := NewFigure("P1", "who", "what", c.samples)
		if f.N != len(c.samples) || f.Median != c.median || f.Min != c.min || f.Max != c.max || f.P99 != c.last {
			t.Errorf("%v: have %+v", c.samples, f)
		}
	}
	many := make([]time.Duration, 200)
	for i := range many {
		many[i] = time.Duration(i+1) * time.Millisecond
	}
	if f := NewFigure("", "", "", many); f.P99 != 198 {
		t.Errorf("p99 of 1 to 200: have %v, want 198", f.P99)
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	r := Report{
		Figures: []Figure{{Case: "P1", Who: "a", What: "b", N: 3, Median: 0.1234, Min: 1.234, Max: 123.4}},
		Ratios:  []Ratio{{"P1", "a ÷ b", 12.34, "10 or more", true}, {"P2", "c", 1, "2", false}},
		Memory:  []Memory{{5, 2048, 4096, 1024}},
	}
	var b bytes.Buffer
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 0.123 ", "| 1.23 ", "| 123 ", "12.3", "reached", "MISSED", "one of 5 sleds", "2.0 MiB"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
}

func TestBootOf(t *testing.T) {
	t.Parallel()
	st := api.Status{Boot: api.Boot{MSToUnlocked: 60, Steps: []api.Step{
		{Name: "tpm", MS: 5, AtMS: 9},
		{Name: "seal", MS: 3, AtMS: 12},
		{Name: "peers", MS: 1, AtMS: 13},
		{Name: "quorum", MS: 1, AtMS: 14},
		{Name: "shares", MS: 16, AtMS: 30},
		{Name: "disks", MS: 30, AtMS: 60},
	}}}
	want := boot{threshold: 21 * time.Millisecond, seal: 3 * time.Millisecond, secret: 30 * time.Millisecond, unlocked: 60 * time.Millisecond}
	if have := bootOf(st); have != want {
		t.Errorf("have %+v, want %+v", have, want)
	}
}

func TestPlot(t *testing.T) {
	t.Parallel()
	f := []Figure{{Who: "3", Median: 50, Min: 40, Max: 80}, {Who: "31", Median: 900, Min: 700, Max: 1234}}
	var a, b bytes.Buffer
	for _, w := range []io.Writer{&a, &b} {
		if err := Plot(w, "a <title>", f); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("equal figures, unequal bytes")
	}
	if !strings.Contains(a.String(), ">1400</text>") {
		t.Error("the axis does not end above the largest value")
	}
	for d := xml.NewDecoder(&a); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := Plot(io.Discard, "", []Figure{{Who: "many"}}); err == nil {
		t.Error("a rack of \"many\" sleds was drawn")
	}
}

func TestLastShare(t *testing.T) {
	t.Parallel()
	c, err := committed(5, 3)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // it can be repeated
		if took, err := lastShare(c, 3); err != nil || took <= 0 {
			t.Fatalf("have %v, %v", took, err)
		}
	}
	if _, err := lastShare(c, 2); err == nil {
		t.Error("two of three shares gave a secret")
	}
}
