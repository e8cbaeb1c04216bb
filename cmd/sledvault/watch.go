package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/api"
)

// redrawAfter is the shortest time between two views, so that a burst of changes is shown once.
const redrawAfter = 100 * time.Millisecond

func (a *app) watchCommand() *cobra.Command {
	return &cobra.Command{
		Use: "watch", Short: "follow what this sled does", Args: noArgs,
		Long: "Shows the status and shows it again whenever it changes: the sled says when, nothing is asked over and over. On a\n" +
			"terminal the view is drawn anew; otherwise, and for each change that it shows, one line is printed. With --json\n" +
			"every status is one line of JSON. It ends when it is interrupted, or with exit code 3 when the daemon ends.",
		Example: "  sledvault watch\n  sledvault watch --json | jq --unbuffered .boot.step",
		RunE: func(c *cobra.Command, _ []string) error {
			f, ok := a.out.(*os.File)
			v := &view{a: a, screen: ok && !a.json && term.IsTerminal(int(f.Fd()))}
			return v.follow(c)
		},
	}
}

// view is what was shown last.
type view struct {
	a      *app
	screen bool
	last   string
}

// follow shows one status after another. An interrupt is the ordinary end.
func (v *view) follow(c *cobra.Command) error {
	ctx := c.Context()
	raw, err := v.a.sled().StatusJSON(ctx)
	for {
		var s api.Status
		if err == nil {
			err = json.Unmarshal(raw, &s)
		}
		if err == nil {
			err = v.show(s, raw)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // what failed, failed because of the interrupt
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(redrawAfter):
		}
		raw, err = v.a.sled().StatusAfter(ctx, s.Revision)
	}
}

// show prints a status if it says something new.
func (v *view) show(s api.Status, raw json.RawMessage) error {
	switch {
	case v.a.json:
		return cli.JSON(v.a.out, raw)
	case v.screen:
		var b bytes.Buffer
		writeStatus(&b, s)
		_, err := fmt.Fprintf(v.a.out, "\x1b[H\x1b[J%s", b.Bytes())
		return err
	}
	line := statusLine(s)
	if line == v.last {
		return nil
	}
	v.last = line
	_, err := fmt.Fprintln(v.a.out, line)
	return err
}

// statusLine is a status on one line, without what changes all the time.
func statusLine(s api.Status) string {
	parts := []string{string(s.State), "boot at " + s.Boot.Step}
	if s.Boot.Step == "done" {
		parts[1] = "boot done"
	}
	if s.Boot.Waiting != "" {
		parts[1] += ", waiting for " + s.Boot.Waiting
	}
	if e := s.Boot.Error; e != nil {
		parts[1] += " (" + string(e.Code) + ")"
	}
	if q := s.Quorum; q != nil {
		parts = append(parts, fmt.Sprintf("%d peers", len(q.ConnectedPeers)), quorumLine(q))
	}
	for _, d := range s.Disks {
		parts = append(parts, d.ID+" "+diskLine(d))
	}
	for _, al := range s.Alarms {
		parts = append(parts, "ALARM "+al.Kind)
	}
	return strings.Join(parts, "; ")
}
