package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "what this sled does, waits for and has refused", Args: noArgs,
		Example: "  sledvault status\n  sledvault status --json | jq .boot",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := brief(c)
			defer cancel()
			if a.json {
				raw, err := a.sled().StatusJSON(ctx)
				if err != nil {
					return err
				}
				return cli.JSON(a.out, raw)
			}
			s, err := a.sled().Status(ctx)
			if err != nil {
				return err
			}
			writeStatus(a.out, s)
			return nil
		},
	}
}

func writeStatus(w io.Writer, s api.Status) {
	name := "(unknown)"
	if s.Baseboard != nil {
		name = s.Baseboard.String()
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(k, format string, args ...any) {
		_, _ = fmt.Fprintf(t, "%s\t%s\n", k, fmt.Sprintf(format, args...))
	}
	row("sled", "%s", name)
	row("state", "%s", s.State)
	for _, r := range s.Relaxed {
		row("RELAXED", "%s", r)
	}
	switch {
	case s.Boot.Step == "done" && s.Boot.MSToUnlocked > 0:
		row("boot", "done, unlocked %.0f ms after start", s.Boot.MSToUnlocked)
	case s.Boot.Waiting != "":
		row("boot", "at step %s for %.1f s, waiting for %s", s.Boot.Step, s.Boot.SinceMS/1000, s.Boot.Waiting)
	default:
		row("boot", "at step %s for %.1f s", s.Boot.Step, s.Boot.SinceMS/1000)
	}
	if e := s.Boot.Error; e != nil {
		row("because", "%s (%s)", e.Text, e.Code)
	}
	if s.Rack != nil {
		row("rack", "%s, enrolment set %d with %d sleds", s.Rack.ID, s.Rack.SetGeneration, len(s.Rack.Sleds))
	}
	for _, c := range degraded(s.Seal) {
		row("DEGRADED", "%s", c)
	}
	if q := s.Quorum; q != nil {
		row("quorum", "%s", quorumLine(q))
		row("peers", "%d connected", len(q.ConnectedPeers))
	}
	if s.LRTQ != nil {
		row("SERVING", "the older scheme: shares go to whoever asks, until the rack is upgraded")
	}
	if n := s.Network; n != nil {
		row("network", "generation %d, %d bytes", n.Generation, n.Bytes)
	}
	for _, d := range s.Disks {
		row("disk "+d.ID, "%s", diskLine(d))
	}
	for _, al := range s.Alarms {
		row("ALARM", "%s", alarmLine(al))
	}
	if s.NextStep != "" {
		row("next", "%s", s.NextStep)
	}
	_ = t.Flush()
	writeReasons(w, s.Reasons)
}

// degraded names the copies of the sealed ledger that do not stand.
func degraded(s *api.Seal) (out []string) {
	if s == nil {
		return nil
	}
	var l struct {
		Copies []struct{ State, Reason string }
	}
	if b, err := json.Marshal(s.Ledger); err != nil || json.Unmarshal(b, &l) != nil { // of another version
		return nil
	}
	for i, c := range l.Copies {
		if c.State != "ok" {
			out = append(out, strings.TrimSuffix(fmt.Sprintf("copy %c of the sealed state: %s: %s", 'A'+i, c.State, c.Reason), ": "))
		}
	}
	return out
}

func alarmLine(al api.Alarm) string {
	out := al.Kind
	if al.Epoch != 0 {
		out += fmt.Sprintf(", epoch %d", al.Epoch)
	}
	if al.From != nil {
		out += ", from " + al.From.String()
	}
	if al.Earlier {
		out += ", before this start"
	}
	return out + ": " + al.Text
}

func quorumLine(q *api.Quorum) string {
	var parts []string
	if n := len(q.Commits); n > 0 {
		parts = append(parts, fmt.Sprintf("epoch %d committed, %d of %d shares needed", q.Commits[n-1], q.Threshold, len(q.Members)))
	} else {
		parts = append(parts, "nothing committed")
	}
	if c := q.Collecting; c != nil {
		parts = append(parts, fmt.Sprintf("collecting %s of epoch %d: have %d, want %d", c.Purpose, c.Epoch, c.Have, c.Want))
	}
	if q.Expunged != nil {
		parts = append(parts, fmt.Sprintf("expunged at epoch %d", q.Expunged.Epoch))
	}
	return strings.Join(parts, "; ")
}

func diskLine(d api.Disk) string {
	s := d.State
	if d.Epoch != 0 {
		s += fmt.Sprintf(", epoch %d", d.Epoch)
	}
	switch {
	case d.Proof == "test-passphrase":
		s += ", key proved (no device-mapper here)"
	case d.Mapping != "":
		s += ", /dev/mapper/" + d.Mapping
	}
	if d.Error != nil {
		s += ": " + d.Error.Text + " (" + string(d.Error.Code) + ")"
	}
	if d.Rotation != "" {
		s += "; rotation " + d.Rotation
	}
	return s
}

// writeReasons leaves out what happens every day; --json has it.
func writeReasons(w io.Writer, rs []reason.Entry) {
	rs = slices.DeleteFunc(slices.Clone(rs), func(r reason.Entry) bool { return r.Routine })
	if len(rs) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "\nrefused or failed\ttimes\twith\tlast")
	for _, r := range rs {
		_, _ = fmt.Fprintf(t, "%s\t%d\t%s\t%.100s\n", r.Code, r.Count, cmp.Or(r.Peer, "-"), r.Last)
	}
	_ = t.Flush()
}

func writeDisks(w io.Writer, disks []api.Disk) {
	if len(disks) == 0 {
		_, _ = fmt.Fprintln(w, "no disks are configured")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "disk\tback end\tpath\tstate")
	for _, d := range disks {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", d.ID, d.Backend, d.Path, diskLine(d))
	}
	_ = t.Flush()
}

func (a *app) disksCommand() *cobra.Command {
	list := func(c *cobra.Command, _ []string) error {
		ctx, cancel := brief(c)
		defer cancel()
		disks, err := a.sled().Disks(ctx)
		if err != nil {
			return err
		}
		return a.print(api.DisksReply{Disks: disks}, func(w io.Writer) { writeDisks(w, disks) })
	}
	c := &cobra.Command{
		Use: "disks", Short: "the disks of this sled and whether they are open", Args: noArgs, RunE: list,
		Example: "  sledvault disks\n  sledvault disks format data0 --keep-data --yes",
	}
	c.AddCommand(a.formatCommand(), a.keyCommand())
	return c
}

func (a *app) formatCommand() *cobra.Command {
	var keep, yes, resume, overwrite bool
	c := &cobra.Command{
		Use: "format DISK", Short: "encrypt a disk under the rack's newest secret", Args: exactArgs(1),
		Long: "Makes the disk a LUKS2 container whose key only the rack can derive, and opens it.\n" +
			"With --keep-data what is on the disk is encrypted in place; its last 32 MiB are cut off for the header.\n" +
			"Without it everything on the disk is lost. A disk that opens with the rack's key already is adopted as it is.",
		Example: "  sledvault disks format data0 --yes",
		RunE: func(c *cobra.Command, args []string) error {
			if !yes {
				what := "destroys everything on"
				if keep {
					what = "cuts 32 MiB off the end of, and encrypts,"
				}
				return cli.UsageError("this %s disk %s; add --yes to do it", what, args[0])
			}
			d, err := a.sled().Format(c.Context(), args[0], api.FormatRequest{KeepData: keep, Resume: resume, Overwrite: overwrite})
			if err != nil {
				return err
			}
			return a.print(d, func(w io.Writer) { writeDisks(w, []api.Disk{d}) })
		},
	}
	c.Flags().BoolVar(&keep, "keep-data", false, "encrypt what is on the disk in place")
	c.Flags().BoolVar(&resume, "resume", false, "go on with an encryption in place that was cut off")
	c.Flags().BoolVar(&overwrite, "overwrite", false, "give up whatever is on the disk, an encrypted container included")
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	return c
}

func (a *app) keyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "key DISK", Short: "write the 32 bytes of a disk's key to stdout", Args: exactArgs(1),
		Long: "Writes the raw key to stdout, for tools that open the disk themselves. The sled records the release first.\n" +
			"The key is never printed to a terminal.",
		Example: "  sledvault disks key data0 | cryptsetup open --key-file - /dev/nvme0n1 data0",
		RunE: func(c *cobra.Command, args []string) error {
			if f, ok := a.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return cli.UsageError("a key is not printed to a terminal: pipe it into the tool that needs it")
			}
			return a.sled().Key(c.Context(), args[0], a.out)
		},
	}
}

// Limits of unlock. The daemon keeps to the first; the second is for opening the disks once there is a key.
const (
	maxUnlockWait = 24 * time.Hour
	openTimeout   = 5 * time.Minute
)

func (a *app) unlockCommand() *cobra.Command {
	var wait bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: "unlock", Short: "open every locked disk of this sled", Args: noArgs,
		Long: "Opens every formatted disk that is still locked. Below the threshold it says who is missing: at once,\n" +
			"or with --wait when the timeout has passed. Exit code 3 means: not yet, try again.",
		Example: "  sledvault unlock\n  sledvault unlock --wait --timeout 5m",
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case !wait && c.Flags().Changed("timeout"):
				return cli.UsageError("--timeout means nothing without --wait")
			case timeout <= 0 || timeout > maxUnlockWait:
				return cli.UsageError("--timeout: have %s, want more than 0 and at most %s", timeout, maxUnlockWait)
			case !wait:
				timeout = 0
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout+openTimeout)
			defer cancel()
			disks, err := a.unlock(ctx, timeout)
			if err != nil {
				return err
			}
			return a.print(api.DisksReply{Disks: disks}, func(w io.Writer) { writeDisks(w, disks) })
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait for the daemon and for enough sleds")
	c.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait")
	return c
}

// Pauses between attempts to reach a daemon that is still starting, or being started again.
const (
	redialFirst = 10 * time.Millisecond
	redialLast  = 250 * time.Millisecond
)

// unlock asks the daemon to open the disks. A caller that waits, as the sled's boot does, waits for the daemon as well.
func (a *app) unlock(ctx context.Context, wait time.Duration) ([]api.Disk, error) {
	until := time.Now().Add(wait)
	for pause := redialFirst; ; pause = min(2*pause, redialLast) {
		disks, err := a.sled().Unlock(ctx, max(time.Until(until), 0))
		if reason.CodeOf(err) != client.CodeUnreachable || time.Until(until) < pause {
			return disks, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

func (a *app) quorumCommand() *cobra.Command {
	var of string
	status := &cobra.Command{
		Use: "status", Short: "the trust-quorum node of this sled", Args: noArgs,
		Long: "Shows the trust-quorum node of this sled, or, with --of, what the node of another sled says when it is asked over\n" +
			"this sled's connection to it: for a sled that cannot be reached otherwise.",
		Example: "  sledvault quorum status\n  sledvault quorum status --of 913-0000019:BRM42220051",
		RunE: func(c *cobra.Command, _ []string) error {
			if of != "" {
				return a.statusOf(c, of)
			}
			return a.part(c, func(s api.Status) any { return s.Quorum }, func(w io.Writer, s api.Status) {
				if s.Quorum == nil {
					_, _ = fmt.Fprintln(w, "the boot has not reached the quorum yet; see sledvault status")
					return
				}
				_, _ = fmt.Fprintln(w, quorumLine(s.Quorum))
				for _, m := range s.Quorum.Members {
					_, _ = fmt.Fprintf(w, "  member %s%s\n", m, connected(s, m))
				}
			})
		},
	}
	status.Flags().StringVar(&of, "of", "", "ask another sled, PART:SERIAL, over the peer network")
	config := &cobra.Command{
		Use: "config", Short: "the latest committed configuration and its certificate", Args: noArgs, Example: "  sledvault quorum config --json",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := brief(c)
			defer cancel()
			cfg, err := a.sled().Config(ctx)
			if err != nil {
				return err
			}
			return cli.JSON(a.out, cfg)
		},
	}
	return group("quorum", "details of the trust-quorum node", status, config, a.alarmsCommand(), a.replayCommand())
}

func (a *app) alarmsCommand() *cobra.Command {
	var forget bool
	c := &cobra.Command{
		Use: "alarms", Short: "what no honest sled can cause, and was refused here", Args: noArgs,
		Long: "Lists the alarms of this sled, those from before its start included. They change nothing by themselves. --clear\n" +
			"forgets them once you know their cause; the counts in the status stay.",
		Example: "  sledvault quorum alarms\n  sledvault quorum alarms --clear",
		RunE: func(c *cobra.Command, _ []string) error {
			list := func(w io.Writer, s api.Status) {
				for _, al := range s.Alarms {
					_, _ = fmt.Fprintln(w, alarmLine(al))
				}
				if len(s.Alarms) == 0 {
					_, _ = fmt.Fprintln(w, "none")
				}
			}
			if err := a.part(c, func(s api.Status) any { return s.Alarms }, list); err != nil || !forget {
				return err
			}
			ctx, cancel := brief(c)
			defer cancel()
			return a.sled().ClearAlarms(ctx)
		},
	}
	c.Flags().BoolVar(&forget, "clear", false, "forget them after they are shown")
	return c
}

// statusOf asks another sled through this one.
func (a *app) statusOf(c *cobra.Command, of string) error {
	b, err := ident.ParseBaseboard(of)
	if err != nil {
		return cli.UsageError("--of: %v", err)
	}
	ctx, cancel := brief(c)
	defer cancel()
	s, err := a.sled().ProxyStatus(ctx, b)
	if err != nil {
		return err
	}
	return a.print(s, func(w io.Writer) {
		p := s.PersistentState
		_, _ = fmt.Fprintf(w, "configurations %v, shares %v, commits %v, %d peers connected\n", p.Configs, p.Shares, p.Commits, len(s.ConnectedPeers))
		if p.Expunged != nil {
			_, _ = fmt.Fprintf(w, "expunged at epoch %d, told by %s\n", p.Expunged.Epoch, p.Expunged.From)
		}
		for _, k := range s.Alarms {
			_, _ = fmt.Fprintf(w, "ALARM %s\n", k)
		}
	})
}

func connected(s api.Status, m ident.Baseboard) string {
	if s.Baseboard != nil && *s.Baseboard == m {
		return " (this sled)"
	}
	if slices.Contains(s.Quorum.ConnectedPeers, m) {
		return " connected"
	}
	return " not connected"
}

func (a *app) sealCommand() *cobra.Command {
	return group("seal", "the sealed state of this sled", &cobra.Command{
		Use: "status", Short: "the sealed ledger, its copies and its counter", Args: noArgs, Example: "  sledvault seal status --json",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.part(c, func(s api.Status) any { return s.Seal }, func(w io.Writer, s api.Status) {
				b, _ := json.MarshalIndent(s.Seal, "", "  ")
				_, _ = fmt.Fprintln(w, string(b))
			})
		},
	}, a.resetCommand())
}

// part prints a part of the status.
func (a *app) part(c *cobra.Command, pick func(api.Status) any, text func(io.Writer, api.Status)) error {
	ctx, cancel := brief(c)
	defer cancel()
	s, err := a.sled().Status(ctx)
	if err != nil {
		return err
	}
	return a.print(pick(s), func(w io.Writer) { text(w, s) })
}

func (a *app) tpmCommand() *cobra.Command {
	return group("tpm", "look at this sled's TPM", &cobra.Command{
		Use: "ek", Short: "the name of the endorsement key, for the rack file", Args: noArgs, Example: "  sledvault tpm ek",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := brief(c)
			defer cancel()
			t, err := a.sled().TPM(ctx)
			if err != nil {
				return err
			}
			return a.print(t, func(w io.Writer) { _, _ = fmt.Fprintln(w, t.EKName) })
		},
	})
}

func (a *app) spCommand() *cobra.Command {
	return group("sp", "look at this sled's service processor", &cobra.Command{
		Use: "identity", Short: "the baseboard identity, read again over the serial line", Args: noArgs, Example: "  sledvault sp identity",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := brief(c)
			defer cancel()
			id, err := a.sled().SP(ctx)
			if err != nil {
				return err
			}
			return a.print(id, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%s revision %d\n", id.Baseboard, id.Revision) })
		},
	})
}
