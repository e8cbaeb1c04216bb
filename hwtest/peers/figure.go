//go:build linux

package peers

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// Figure is one measured time, in milliseconds.
type Figure struct {
	Case   string  `json:"case"` // P1 to P7
	Who    string  `json:"who"`
	What   string  `json:"what"` // what is counted
	N      int     `json:"n"`
	Median float64 `json:"median_ms"`
	Min    float64 `json:"min_ms"`
	Max    float64 `json:"max_ms"`
	P99    float64 `json:"p99_ms"` // equals Max below 100 samples
}

// Ratio compares two figures.
type Ratio struct {
	Case  string  `json:"case"`
	What  string  `json:"what"`
	Value float64 `json:"value"`
	Want  string  `json:"want"`
	OK    bool    `json:"ok"`
}

// comparison is what a ratio wants that has no bound.
const comparison = "for comparison"

// Binary is the size of one program.
type Binary struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// Memory is what one daemon holds when its rack has nothing to do.
type Memory struct {
	Sleds     int   `json:"sleds"`
	MedianKiB int64 `json:"median_kib"` // resident
	MaxKiB    int64 `json:"max_kib"`
	AnonKiB   int64 `json:"anon_kib"` // the median's part that is not the program's file
}

// NewFigure sums samples up.
func NewFigure(id, who, what string, samples []time.Duration) Figure {
	f := Figure{Case: id, Who: who, What: what, N: len(samples)}
	if len(samples) == 0 {
		return f
	}
	s := slices.Sorted(slices.Values(samples))
	f.Median, f.Min, f.Max = middle(s), millis(s[0]), millis(s[len(s)-1])
	f.P99 = millis(s[int(math.Ceil(float64(len(s))*0.99))-1])
	return f
}

// middle is the median of sorted samples.
func middle(s []time.Duration) float64 {
	return (millis(s[(len(s)-1)/2]) + millis(s[len(s)/2])) / 2
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func fromMillis(ms float64) time.Duration { return time.Duration(ms * 1e6) }

// text shows a number of milliseconds with three digits that count.
func text(ms float64) string {
	switch {
	case ms >= 100:
		return fmt.Sprintf("%.0f", ms)
	case ms >= 10:
		return fmt.Sprintf("%.1f", ms)
	case ms >= 1:
		return fmt.Sprintf("%.2f", ms)
	}
	return fmt.Sprintf("%.3f", ms)
}

// Text writes the report as Markdown tables.
func (r Report) Text(w io.Writer) error {
	var b strings.Builder
	m := r.Machine
	_, _ = fmt.Fprintf(&b, "%s, %d processors, Linux %s, %s, commit %s\n", m.CPU, m.Processors, m.Kernel, m.Go, m.Commit)
	_, _ = fmt.Fprintf(&b, "load average before and after: %s, %s\n", m.LoadBefore, m.LoadAfter)
	_, _ = fmt.Fprintf(&b, "peers: %s\n\n", strings.Join(m.Packages, ", "))
	figureTable(&b, r.Figures)
	rows := [][]string{{"", "ratio or bound", "have", "want", ""}}
	for _, x := range r.Ratios {
		verdict := "reached"
		switch {
		case !x.OK:
			verdict = "MISSED"
		case x.Want == comparison:
			verdict = ""
		}
		rows = append(rows, []string{x.Case, x.What, text(x.Value), x.Want, verdict})
	}
	table(&b, rows)
	rows = [][]string{{"daemon, idle", "resident, median", "largest", "without the program's file"}}
	for _, x := range r.Memory {
		rows = append(rows, []string{fmt.Sprintf("one of %d sleds", x.Sleds), mib(x.MedianKiB), mib(x.MaxKiB), mib(x.AnonKiB)})
	}
	table(&b, rows)
	for _, x := range r.Binaries {
		_, _ = fmt.Fprintf(&b, "%s: %.1f MiB\n", x.Name, float64(x.Bytes)/(1<<20))
	}
	for _, n := range r.Notes {
		_, _ = fmt.Fprintf(&b, "note: %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func figureTable(b *strings.Builder, figures []Figure) {
	rows := [][]string{{"", "who", "what is counted", "n", "median ms", "min", "max"}}
	for _, f := range figures {
		rows = append(rows, []string{f.Case, f.Who, f.What, fmt.Sprint(f.N), text(f.Median), text(f.Min), text(f.Max)})
	}
	table(b, rows)
}

// BootTable writes the figures of [Boots] as a Markdown table.
func BootTable(w io.Writer, figures []Figure) error {
	rows := [][]string{{"sleds", "boots", "median ms", "fastest", "slowest"}}
	for _, f := range figures {
		rows = append(rows, []string{f.Who, fmt.Sprint(f.N), text(f.Median), text(f.Min), text(f.Max)})
	}
	var b strings.Builder
	table(&b, rows)
	_, err := io.WriteString(w, b.String())
	return err
}

func mib(kib int64) string { return fmt.Sprintf("%.1f MiB", float64(kib)/1024) }

// table writes rows as a Markdown table whose columns line up; the first row is the head.
func table(b *strings.Builder, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, c := range r {
			width[i] = max(width[i], len(c))
		}
	}
	line := func(r []string) {
		for i, c := range r {
			_, _ = fmt.Fprintf(b, "| %-*s ", width[i], c)
		}
		b.WriteString("|\n")
	}
	line(rows[0])
	for _, n := range width {
		b.WriteString("|" + strings.Repeat("-", n+2))
	}
	b.WriteString("|\n")
	for _, r := range rows[1:] {
		line(r)
	}
	b.WriteString("\n")
}
