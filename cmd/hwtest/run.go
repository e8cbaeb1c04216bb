//go:build linux

package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/internal/cli"
)

// app is what the commands share.
type app struct {
	out, err io.Writer
	json     bool
}

// run is the command line from arguments to exit code.
func run(ctx context.Context, args []string, out, errw io.Writer) int {
	a := &app{out: out, err: errw}
	root := &cobra.Command{
		Use: "hwtest", Short: "measure and test sledvault on simulated and real hardware", SilenceErrors: true, SilenceUsage: true,
		Args: noArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print one JSON value instead of text")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return cli.UsageError("%s", err) })
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errw)
	root.AddCommand(a.benchPeersCommand(), a.benchBootCommand(), a.unsealCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		return cli.Fail(errw, "hwtest", err)
	}
	return cli.Done
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return cli.UsageError("unknown command or argument %q for %s", args[0], c.CommandPath())
	}
	return nil
}
