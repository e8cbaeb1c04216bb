package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/vault/api"
)

// How often the live table looks at the sleds, and how long it waits for one.
const (
	viewPeriod = 250 * time.Millisecond
	viewWait   = 200 * time.Millisecond
)

// tailBytes is how much of a failed sled's log is shown.
const tailBytes = 4096

// demoView shows a demo to people: a table that is drawn again in place on a terminal, plain lines elsewhere.
type demoView struct {
	w      io.Writer
	live   bool
	width  int
	scenes []string

	mu     sync.Mutex
	done   []sceneResult
	now    string // scene under way
	since  time.Time
	last   string // last event
	lines  int    // height of the table on the screen
	rows   []string
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newDemoView(w io.Writer, scenes []string) *demoView {
	v := &demoView{w: w, scenes: scenes, cancel: func() {}}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if width, height, err := term.GetSize(int(f.Fd())); err == nil && width >= 60 && height >= 16 && os.Getenv("TERM") != "dumb" {
			v.live, v.width = true, width
		}
	}
	return v
}

// watch starts drawing the sleds, if this is a terminal.
func (v *demoView) watch(r *simrack.Rack) {
	if !v.live {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	v.wg.Go(func() {
		t := time.NewTicker(viewPeriod)
		defer t.Stop()
		for {
			rows := sledRows(ctx, r.Sleds())
			v.mu.Lock()
			v.rows = rows
			v.draw()
			v.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
	})
}

// sledRows asks every sled for its status.
func sledRows(ctx context.Context, sleds []*simrack.Sled) []string {
	cells := make([]string, len(sleds))
	var wg sync.WaitGroup
	for i, s := range sleds {
		wg.Go(func() {
			pid := s.Pid()
			if pid == 0 {
				cells[i] = fmt.Sprintf("  %s\t-\tdown\t\t", s.Name)
				return
			}
			ctx, cancel := context.WithTimeout(ctx, viewWait)
			defer cancel()
			st, err := s.Client().Status(ctx)
			if err != nil {
				cells[i] = fmt.Sprintf("  %s\t%d\tstarting\t\t", s.Name, pid)
				return
			}
			cells[i] = fmt.Sprintf("  %s\t%d\t%s\t%s\t%s", s.Name, pid, st.State, st.Boot.Step, sledNote(st))
		})
	}
	wg.Wait()
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "  SLED\tPID\tSTATE\tBOOT\t")
	for _, c := range cells {
		_, _ = fmt.Fprintln(t, c)
	}
	_ = t.Flush()
	return strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
}

func sledNote(st api.Status) string {
	var parts []string
	for _, d := range st.Disks {
		parts = append(parts, d.ID+" "+d.State)
	}
	switch {
	case st.Boot.Error != nil:
		parts = append(parts, string(st.Boot.Error.Code))
	case st.Boot.MSToUnlocked > 0:
		parts = append(parts, fmt.Sprintf("%.0f ms", st.Boot.MSToUnlocked))
	}
	return strings.Join(parts, ", ")
}

// draw puts the table where the last one was. The caller holds the lock.
func (v *demoView) draw() {
	if !v.live {
		return
	}
	var out []string
	for _, d := range v.done {
		out = append(out, resultLine(d))
	}
	if v.now != "" {
		out = append(out, fmt.Sprintf("....  %-16s %6.1f s  %s", v.now, time.Since(v.since).Seconds(), v.last))
	}
	out = append(out, v.rows...)
	v.erase()
	for _, l := range out {
		_, _ = fmt.Fprintln(v.w, clip(l, v.width-1))
	}
	v.lines = len(out)
}

// erase clears the table on the screen. The caller holds the lock.
func (v *demoView) erase() {
	if v.lines > 0 {
		_, _ = fmt.Fprintf(v.w, "\x1b[%dA\x1b[J", v.lines)
	}
	v.lines = 0
}

func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n])
}

func resultLine(d sceneResult) string {
	mark, text := "ok", d.Detail
	if !d.OK {
		mark, text = "FAIL", d.Error
	}
	return fmt.Sprintf("%-4s  %-16s %6.1f s  %s", mark, d.Name, float64(d.MS)/1000, text)
}

// event takes in what happens. Only the live table shows it: in lines it would drown the results.
func (v *demoView) event(e simrack.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = strings.TrimPrefix(e.Sled+": "+e.Text, ": ")
}

func (v *demoView) begin(scene string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.now, v.since, v.last = scene, time.Now(), ""
	v.draw()
}

func (v *demoView) finish(res sceneResult, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done, v.now = append(v.done, res), ""
	if !v.live {
		_, _ = fmt.Fprintln(v.w, resultLine(res))
	}
	v.draw()
	if err == nil {
		return
	}
	v.lines, v.live = 0, false // leave the table and write below it
	if e, ok := errors.AsType[*simrack.SledError](err); ok {
		_, _ = fmt.Fprintf(v.w, "sledvault: error: scene %s: %v\n--- end of %s\n%s---\n", res.Name, err, e.Sled.Log, e.Sled.LogTail(tailBytes))
		return
	}
	_, _ = fmt.Fprintf(v.w, "sledvault: error: scene %s: %v\n", res.Name, err)
}

// close ends the drawing and leaves the results on the screen.
func (v *demoView) close() {
	v.cancel()
	v.wg.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.live && v.lines > 0 {
		v.draw()
		v.lines = 0
	}
}
