package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/quorum/replay"
)

func (a *app) replayCommand() *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use: "replay [LOG...]", Short: "replay event logs of a trust quorum, or step through one", Args: cobra.ArbitraryArgs,
		Long: "Lets a rack of real trust-quorum nodes live through event logs that the reference implementation's property test\n" +
			"has written, and compares every message, answer and acknowledgement that is not random. Needs no rack and no\n" +
			"daemon. Files may be compressed with gzip; - is standard input.\n\n" +
			"With --json it prints one object per log and line: how many events, how many facts were compared, the\n" +
			"differences, the final state in the reference's form, and how often the log came to a case in which our nodes\n" +
			"deliberately differ, by name (docs/protocol.md §11). Exit code 1 if there is a difference or a log cannot be\n" +
			"replayed. With --check, or with several logs, the same is said in words.\n\n" +
			"A log may also be a failed run of sledvault's own simulation: it is played again, and the difference is the\n" +
			"invariant that it still breaks. Its events are actions; final is null.\n\n" +
			"With one log, or none, it is a debugger. It reads commands from standard input, one per line:\n\n    " +
			strings.Join(replay.Help(), "\n    ") + "\n\n" +
			"EVENT counts from 0; a snapshot N is the state after N events. Secrets are compared by content, never shown. If\n" +
			"standard input is no terminal, the exit code is 1 if a command failed.",
		Example: "  sledvault quorum replay run.events.json\n" +
			"  sledvault quorum replay --json run-*.events.json\n" +
			"  sledvault quorum replay --check run.events.json.gz",
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case check && len(args) == 0, a.json && len(args) == 0:
				return cli.UsageError("sledvault quorum replay: a comparison needs a log")
			case check || a.json || len(args) > 1:
				return a.replayLogs(args)
			}
			return a.debugLog(c.Context(), args)
		},
	}
	c.Flags().BoolVar(&check, "check", false, "only compare, and say in words what differs")
	return c
}

// debugLog runs a debugger until its input ends or it is told to quit.
func (a *app) debugLog(ctx context.Context, logs []string) error {
	s := replay.NewSession(a.out, a.openMachine)
	for _, name := range logs {
		if err := s.Open(name); err != nil {
			return err
		}
	}
	f, ok := a.in.(*os.File)
	terminal := ok && term.IsTerminal(int(f.Fd()))
	lines := readLines(ctx, a.in)
	for failed := false; ; {
		if terminal {
			_, _ = fmt.Fprint(a.out, "replay> ")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case line, more := <-lines:
			if !more {
				if terminal {
					_, _ = fmt.Fprintln(a.out)
				}
				return endSession(failed && !terminal)
			}
			err := s.Do(line)
			if errors.Is(err, replay.ErrQuit) {
				return endSession(failed && !terminal)
			}
			if err != nil {
				failed = true
				cli.Fail(a.err, "sledvault", err)
			}
		}
	}
}

func endSession(failed bool) error {
	if failed {
		return reported{}
	}
	return nil
}

// readLines reads ahead by one line, so that an interrupt does not wait for the user. The reader may outlive the session:
// nothing can wake it from a terminal, and the process ends.
func readLines(ctx context.Context, in io.Reader) <-chan string {
	out := make(chan string)
	go func() {
		defer close(out)
		for sc := bufio.NewScanner(in); sc.Scan(); {
			select {
			case out <- sc.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (a *app) openMachine(name string) (replay.Machine, error) {
	if name == "-" {
		return nil, cli.UsageError("sledvault quorum replay: standard input cannot be the log and the commands")
	}
	f, err := a.openLog(name)
	if err != nil {
		_, err = replay.Unreadable(name, err)
		return nil, err
	}
	defer f.Close()
	if !f.simulated() {
		return replay.NewLogMachine(name, f)
	}
	m, err := openSimulation(f)
	if err != nil {
		_, err = replay.Unreadable(name, err)
		return nil, err
	}
	return m, nil
}

// replayLogs replays every log, also after one that cannot be replayed.
func (a *app) replayLogs(names []string) error {
	failed := false
	for _, name := range names {
		res, err := a.replayLog(name)
		failed = failed || !res.Good()
		if e := a.print(res, func(w io.Writer) { writeReplay(w, res) }); e != nil {
			return e
		}
		if err != nil && !a.json {
			cli.Fail(a.err, "sledvault", err)
		}
	}
	if failed {
		return reported{}
	}
	return nil
}

func (a *app) replayLog(name string) (*replay.Result, error) {
	f, err := a.openLog(name)
	if err != nil {
		return replay.Unreadable(name, err)
	}
	defer f.Close()
	if f.simulated() {
		return replaySimulation(name, f)
	}
	return replay.Run(name, f)
}

// logFile is an open log.
type logFile struct {
	*bufio.Reader
	io.Closer
}

// openLog opens a log, compressed or not.
func (a *app) openLog(name string) (*logFile, error) {
	if name == "-" {
		return &logFile{bufio.NewReader(a.in), io.NopCloser(nil)}, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(name, ".gz") {
		return &logFile{bufio.NewReader(f), f}, nil
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &logFile{bufio.NewReader(z), f}, nil
}

// simulated tells a failed run of our own simulation, which is an object, from a log of the reference, which is an array.
func (f *logFile) simulated() bool {
	for {
		b, err := f.Peek(1)
		switch {
		case err != nil:
			return false
		case !strings.ContainsRune(" \t\r\n", rune(b[0])):
			return b[0] == '{'
		}
		_, _ = f.Discard(1)
	}
}

// maxShown is how many differences of one log are told in words. The first ones matter: the rest follows from them.
const maxShown = 10

func writeReplay(w io.Writer, r *replay.Result) {
	verdict := "equal"
	switch {
	case r.Error != nil:
		verdict = "not replayed to its end"
	case len(r.Differences) > 0:
		verdict = fmt.Sprintf("%d differences", len(r.Differences))
	}
	_, _ = fmt.Fprintf(w, "%s: %d events, %d compared: %s\n", r.Log, r.Events, r.Compared, verdict)
	for i, d := range r.Differences {
		if i == maxShown {
			_, _ = fmt.Fprintf(w, "  and %d more\n", len(r.Differences)-i)
			break
		}
		_, _ = fmt.Fprintf(w, "  event %d, %s\n    want %s\n    have %s\n", d.Event, d.What, replay.Text(d.Want), replay.Text(d.Have))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, rule := range slices.Sorted(maps.Keys(r.Rules)) {
		_, _ = fmt.Fprintf(t, "  %s\t%d\n", rule, r.Rules[rule])
	}
	_ = t.Flush()
}
