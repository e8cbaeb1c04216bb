//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/hwtest/peers"
	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/internal/doctor"
	"github.com/sledvault/sledvault/vault/reason"
)

// benchOptions are the flags of the bench commands.
type benchOptions struct {
	sleds, reps int
	install     bool
	bin, plot   string
	sizes       []int
}

func (o *benchOptions) checked() error {
	for _, n := range append(o.sizes, o.sleds) {
		if n < simrack.MinSleds || n > simrack.MaxSleds {
			return cli.UsageError("sleds: have %d, want %d to %d", n, simrack.MinSleds, simrack.MaxSleds)
		}
	}
	if o.reps < 1 || o.reps > 1000 {
		return cli.UsageError("--reps: have %d, want 1 to 1000", o.reps)
	}
	return nil
}

func (a *app) benchPeersCommand() *cobra.Command {
	o := &benchOptions{}
	c := &cobra.Command{
		Use: "bench-peers", Short: "sledvault beside clevis, tang, tpm2-tools and systemd-creds", Args: noArgs,
		Long: "Runs racks of sledvault and the programs that people use for the same job on this machine, in turns, and\n" +
			"prints medians and ratios (docs/benchmarks.md). Takes about four minutes, and needs the Debian packages of the\n" +
			"peers: --install gets them.",
		Example: "  go run ./cmd/hwtest bench-peers --install\n  go run ./cmd/hwtest bench-peers --json",
		RunE:    func(c *cobra.Command, _ []string) error { return a.benchPeers(c.Context(), o) },
	}
	c.Flags().IntVar(&o.sleds, "sleds", simrack.MaxSleds, "size of the large rack")
	c.Flags().IntVar(&o.reps, "reps", 9, "repetitions of what is short")
	c.Flags().BoolVar(&o.install, "install", false, "first install what this machine lacks (Debian, as root)")
	c.Flags().StringVar(&o.bin, "bin", "", "folder with sledvaultd and sledvault; built from this source tree if not given")
	return c
}

func (a *app) benchPeers(ctx context.Context, o *benchOptions) error {
	if err := o.checked(); err != nil {
		return err
	}
	if o.install {
		if err := peers.Install(ctx, a.err); err != nil {
			return err
		}
	}
	if err := peers.Check(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("hwtest: own program: %w", err)
	}
	return a.withBinaries(ctx, o, func(p peers.Options) error {
		p.Sleds, p.Unseal = o.sleds, []string{self, "unseal"}
		rep, err := peers.Run(ctx, p)
		if err != nil {
			return err
		}
		if a.json {
			return cli.JSON(a.out, rep)
		}
		return rep.Text(a.out)
	})
}

func (a *app) benchBootCommand() *cobra.Command {
	o := &benchOptions{sleds: simrack.MinSleds}
	c := &cobra.Command{
		Use: "bench-boot", Short: "cold boots of racks of several sizes, as a table and a plot", Args: noArgs,
		Example: "  go run ./cmd/hwtest bench-boot --plot docs/boot-to-unlocked.svg",
		RunE:    func(c *cobra.Command, _ []string) error { return a.benchBoot(c.Context(), o) },
	}
	c.Flags().IntSliceVar(&o.sizes, "sizes", []int{3, 5, 7, 11, 15, 19, 23, 27, 31}, "sizes of racks")
	c.Flags().IntVar(&o.reps, "reps", 3, "cold boots of each")
	c.Flags().StringVar(&o.plot, "plot", "", "write an SVG image to this file")
	c.Flags().StringVar(&o.bin, "bin", "", "folder with sledvaultd and sledvault; built from this source tree if not given")
	return c
}

func (a *app) benchBoot(ctx context.Context, o *benchOptions) error {
	if err := o.checked(); err != nil {
		return err
	}
	if err := doctor.Check(doctor.ForDemo); err != nil {
		return err
	}
	return a.withBinaries(ctx, o, func(p peers.Options) error {
		figures, err := peers.Boots(ctx, p, o.sizes)
		if err != nil {
			return err
		}
		if o.plot != "" {
			var b bytes.Buffer
			if err := peers.Plot(&b, "From process start to open disk", figures); err != nil {
				return err
			}
			if err := os.WriteFile(o.plot, b.Bytes(), 0o644); err != nil {
				return fmt.Errorf("hwtest: plot: %w", err)
			}
		}
		if a.json {
			return cli.JSON(a.out, figures)
		}
		return peers.BootTable(a.out, figures)
	})
}

// withBinaries runs f with the programs to measure, built as releases are.
func (a *app) withBinaries(ctx context.Context, o *benchOptions, f func(peers.Options) error) error {
	dir := o.bin
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "svbench-bin-"); err != nil {
			return fmt.Errorf("hwtest: folder for programs: %w", err)
		}
		defer func() { _ = os.RemoveAll(dir) }() // a folder of our own in the temporary folder
		if err := build(ctx, a.err, dir); err != nil {
			return err
		}
	}
	return f(peers.Options{
		Reps: o.reps, Daemon: filepath.Join(dir, "sledvaultd"), Command: filepath.Join(dir, "sledvault"),
		Tell: func(what string) { _, _ = fmt.Fprintln(a.err, "measuring:", what) },
	})
}

func build(ctx context.Context, progress io.Writer, dir string) error {
	_, _ = fmt.Fprintln(progress, "building sledvaultd and sledvault")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", dir+"/", "./cmd/sledvaultd", "./cmd/sledvault")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return reason.Wrap(err, peers.CodeBuild, "run it at the top of the source tree, or name a folder with --bin", "hwtest: build: %.2000s", bytes.TrimSpace(out))
	}
	return nil
}

// unsealCommand is one side of a comparison: a process that opens a seal and ends.
func (a *app) unsealCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unseal FILE", Short: "open the seal that bench-peers made, and end", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			took, err := peers.UnsealFile(c.Context(), args[0])
			if err == nil {
				_, err = io.WriteString(a.out, strconv.FormatInt(took.Microseconds(), 10)+"\n")
			}
			return err
		},
	}
}
