package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/controller"
)

const againHelp = "May be broken off and run again at any point: it goes on where it stopped. What it waits for is told on stderr."

// changeCommand is a command that runs one membership change.
func (a *app) changeCommand(o *rackOptions, c *cobra.Command, f func(context.Context, *controller.Controller, []string) (*rack.Change, error)) *cobra.Command {
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.withRack(c, o, func(ctx context.Context, ctl *controller.Controller) error {
			ch, err := f(ctx, ctl, args)
			if err != nil {
				return err
			}
			return a.print(ch, func(w io.Writer) { writeChange(w, ch) })
		})
	}
	return c
}

func (a *app) rackAddCommand(o *rackOptions) *cobra.Command {
	return a.changeCommand(o, &cobra.Command{
		Use: "add NAME…", Short: "make sleds of the rack file members", Args: someNames,
		Long: "Enrolls the named sleds if they are unclaimed, makes a new secret that they share, and commits it at every\n" +
			"member. Add their tables to the rack file first. " + againHelp,
		Example: "  sledvault rack add right-2 --rack /root/rack/rack.toml",
	}, func(ctx context.Context, ctl *controller.Controller, args []string) (*rack.Change, error) {
		return ctl.Add(ctx, args...)
	})
}

func (a *app) rackRemoveCommand(o *rackOptions) *cobra.Command {
	var yes bool
	c := a.changeCommand(o, &cobra.Command{
		Use: "remove NAME…", Short: "take members out of the rack", Args: someNames,
		Long: "Makes a new secret without the named sleds and commits it at the others. What the removed sleds hold opens no\n" +
			"disk that moved to the new secret, and they are told so with proof. They may be off. A name may be part:serial,\n" +
			"also when its table is gone from the rack file. " + againHelp,
		Example: "  sledvault rack remove left-1 --yes",
	}, func(ctx context.Context, ctl *controller.Controller, args []string) (*rack.Change, error) {
		if !yes {
			if err := a.typed("takes "+strings.Join(args, " ")+" out of the rack", args...); err != nil {
				return nil, err
			}
		}
		return ctl.Remove(ctx, args...)
	})
	c.Flags().BoolVar(&yes, "yes", false, "do it without asking for the names again")
	return c
}

func (a *app) rackRotateCommand(o *rackOptions) *cobra.Command {
	return a.changeCommand(o, &cobra.Command{
		Use: "rotate", Short: "give the same members a new secret", Args: noArgs,
		Long:    "Makes a new secret and commits it at every member; the disks then move to it by themselves. " + againHelp,
		Example: "  sledvault rack rotate",
	}, func(ctx context.Context, ctl *controller.Controller, _ []string) (*rack.Change, error) {
		return ctl.Rotate(ctx)
	})
}

func (a *app) rackPruneCommand(o *rackOptions) *cobra.Command {
	var keep uint64
	var yes, dry bool
	c := &cobra.Command{
		Use: "prune", Short: "drop older secrets, for good", Args: noArgs,
		Long: "Every configuration carries the secrets of all older epochs, so that a disk that was last here long ago still\n" +
			"opens. This makes a new secret and drops those of epochs before the given one. It is refused while a disk in the\n" +
			"rack needs one of them; a disk that lies in a drawer is known to nobody: if it was last here in a dropped epoch,\n" +
			"nothing opens it any more. " + againHelp,
		Example: "  sledvault rack prune --keep-from 12 --dry-run\n  sledvault rack prune --keep-from 12",
		RunE: func(c *cobra.Command, _ []string) error {
			if keep == 0 {
				return cli.UsageError("--keep-from EPOCH is needed: see sledvault rack status")
			}
			return a.withRack(c, o, func(ctx context.Context, ctl *controller.Controller) error {
				return a.prune(ctx, ctl, ident.Epoch(keep), yes, dry)
			})
		},
	}
	c.Flags().Uint64Var(&keep, "keep-from", 0, "the first epoch whose secret is kept")
	c.Flags().BoolVar(&dry, "dry-run", false, "only tell what would be dropped")
	c.Flags().BoolVar(&yes, "yes", false, "do it without asking")
	return c
}

func (a *app) prune(ctx context.Context, ctl *controller.Controller, keep ident.Epoch, yes, dry bool) error {
	p, err := ctl.PlanPrune(ctx, keep)
	if err != nil {
		return err
	}
	if dry {
		return a.print(p, func(w io.Writer) { writePruning(w, p) })
	}
	if len(p.Dropped) > 0 {
		writePruning(a.err, p)
	}
	if !yes && len(p.Dropped) > 0 {
		if err := a.typed("cannot be undone", "drop"); err != nil {
			return err
		}
	}
	ch, err := ctl.Prune(ctx, keep)
	if err != nil {
		return err
	}
	return a.print(ch, func(w io.Writer) { writeChange(w, ch) })
}

func writePruning(w io.Writer, p *controller.Pruning) {
	_, _ = fmt.Fprintf(w, "secrets of %d epochs are dropped for good: %v\n", len(p.Dropped), p.Dropped)
	_, _ = fmt.Fprintln(w, "a disk that was last unlocked in one of them, and is not in the rack now, can never be opened again")
	for _, d := range p.InUse {
		_, _ = fmt.Fprintf(w, "still needed: disk %s of sled %s is at epoch %d\n", d.Disk, d.Sled, d.Epoch)
	}
	for _, d := range p.Lost {
		_, _ = fmt.Fprintf(w, "lost: disk %s of the removed sled %s is at epoch %d\n", d.Disk, d.Sled, d.Epoch)
	}
}

func (a *app) rackAbortCommand(o *rackOptions) *cobra.Command {
	return a.changeCommand(o, &cobra.Command{
		Use: "abort", Short: "give up the change under way, before its decision", Args: noArgs,
		Long: "Gives up a change that waits for sleds. Its epoch is never used again. Once a change is decided it can only be\n" +
			"finished: some sled may act on it already.",
		Example: "  sledvault rack abort",
	}, func(_ context.Context, ctl *controller.Controller, _ []string) (*rack.Change, error) {
		return ctl.Abort()
	})
}

func someNames(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cli.UsageError("name at least one sled: see sledvault rack status")
	}
	return nil
}

// typed has the operator type the words that name what is about to be done. Without a terminal there is nobody to ask.
func (a *app) typed(what string, words ...string) error {
	want := strings.Join(words, " ")
	f, ok := a.in.(*os.File)
	if ok {
		fi, err := f.Stat()
		ok = err == nil && fi.Mode()&os.ModeCharDevice != 0
	}
	if !ok {
		return cli.UsageError("this %s; add --yes to do it", what)
	}
	_, _ = fmt.Fprintf(a.err, "This %s. Type %q to do it: ", what, want)
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil && line == "" || strings.Join(strings.Fields(line), " ") != want {
		return cli.UsageError("%q was not typed; nothing was done", want)
	}
	return nil
}
