package main

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/api/client"
)

// defaultSocket is where sledvaultd listens by default.
const defaultSocket = "/run/sledvault/api.sock"

// callTimeout bounds commands that only read.
const callTimeout = 30 * time.Second

// app is what the commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	json     bool
	socket   string
}

// run is the command line from arguments to exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	a := &app{in: in, out: out, err: errw}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	if err := root.ExecuteContext(ctx); err != nil {
		if _, done := err.(reported); done { //nolint:errorlint // our own marker, never wrapped
			return cli.Failed
		}
		if a.json || slices.Contains(args, "--json") { // also when the arguments could not be read as far as that
			return cli.FailJSON(errw, err)
		}
		return cli.Fail(errw, "sledvault", err)
	}
	return cli.Done
}

// reported is a failure whose result on stdout has said everything.
type reported struct{}

func (reported) Error() string { return "failed" }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "sledvault", Short: "keep a rack's disks locked until enough of its sleds are together", Version: version,
		Long: "Sledvault keeps the disks of a rack's servers (sleds) locked until enough of them are together and have proved\n" +
			"themselves to each other. This is its command line: for the sled it runs on, and for the rack's operator.\n\n" +
			"Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not yet: try\n" +
			"again. With --json results and errors are JSON.",
		Example:       "  sledvault demo\n  sledvault status\n  sledvault unlock --wait",
		SilenceErrors: true, SilenceUsage: true, Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true // packaging/completions has them
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print one JSON value instead of text")
	root.PersistentFlags().StringVar(&a.socket, "socket", defaultSocket, "unix socket of the local sledvaultd")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return cli.UsageError("%s", err) })
	root.AddCommand(a.demoCommand(), a.doctorCommand(), a.statusCommand(), a.watchCommand(), a.disksCommand(), a.unlockCommand(),
		a.rackCommand(), a.quorumCommand(), a.ledgerCommand(), a.networkCommand(), a.sealCommand(), a.tpmCommand(), a.spCommand(), a.docsCommand())
	return root
}

// group is a command that only holds others.
func group(use, short string, sub ...*cobra.Command) *cobra.Command {
	var names, examples []string
	for _, c := range sub {
		names = append(names, c.Name())
		first, _, _ := strings.Cut(c.Example, "\n")
		examples = append(examples, first)
	}
	slices.Sort(names)
	c := &cobra.Command{Use: use, Short: short, Args: noArgs, Example: strings.Join(examples, "\n"), RunE: func(c *cobra.Command, _ []string) error {
		return cli.UsageError("%s needs a command: %s", c.CommandPath(), strings.Join(names, ", "))
	}}
	c.AddCommand(sub...)
	return c
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return cli.UsageError("unknown command or argument %q for %s", args[0], c.CommandPath())
	}
	return nil
}

func exactArgs(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return cli.UsageError("%s: have %d arguments, want %d", c.CommandPath(), len(args), n)
		}
		return nil
	}
}

func (a *app) sled() *client.Local { return client.NewLocal(a.socket) }

// brief bounds a command that only reads.
func brief(c *cobra.Command) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.Context(), callTimeout)
}

// print writes a result: as JSON, or as text by f.
func (a *app) print(v any, f func(w io.Writer)) error {
	if a.json {
		return cli.JSON(a.out, v)
	}
	f(a.out)
	return nil
}
