package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// CodeNoNetwork says that nobody gave the rack a network configuration yet.
const CodeNoNetwork reason.Code = "network-config-none" // nobody gave the rack one yet

// networkCommand is for the bootstrap agent, and for people who look after it.
func (a *app) networkCommand() *cobra.Command {
	return group("network-config", "the network configuration that the sleds pass on to each other", a.networkGetCommand(), a.networkSetCommand())
}

func (a *app) networkGetCommand() *cobra.Command {
	var after uint64
	var blob bool
	c := &cobra.Command{
		Use: "get", Short: "the newest network configuration", Args: noArgs,
		Long: "Shows generation, size and SHA-256 of the newest network configuration, or writes what is in it to stdout (--blob);\n" +
			"sledvault does not look into it. With --after it waits, without asking over and over, until there is one of a higher\n" +
			"generation. Exit code 3 says that there is none yet.",
		Example: "  sledvault network-config get\n  sledvault network-config get --blob > network.json\n  sledvault network-config get --after 7",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.networkConfig(c.Context(), after, c.Flags().Changed("after"))
			switch {
			case err != nil:
				return err
			case cfg.Generation == 0:
				return reason.Later(CodeNoNetwork, "give it one: sledvault network-config set FILE --generation 1", "sledvault: no network configuration yet")
			case blob && !a.json:
				_, err := a.out.Write(cfg.Blob)
				return err
			}
			return a.print(cfg, func(w io.Writer) { writeNetwork(w, cfg, len(cfg.Blob)) })
		},
	}
	c.Flags().Uint64Var(&after, "after", 0, "wait for a generation higher than this")
	c.Flags().BoolVar(&blob, "blob", false, "write what is in it to stdout")
	return c
}

func (a *app) networkConfig(ctx context.Context, after uint64, wait bool) (cfg api.NetworkConfig, err error) {
	if !wait {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return a.sled().NetworkConfig(ctx)
	}
	for err == nil && cfg.Generation <= after {
		cfg, err = a.sled().NetworkConfigAfter(ctx, after) // each answers after half a minute at the latest
	}
	return cfg, err
}

func writeNetwork(w io.Writer, c api.NetworkConfig, size int) {
	_, _ = fmt.Fprintf(w, "generation %d, %d bytes, SHA-256 %s\n", c.Generation, size, cmp.Or(c.SHA256, "-"))
}

func (a *app) networkSetCommand() *cobra.Command {
	var generation uint64
	c := &cobra.Command{
		Use: "set FILE", Short: "give the rack a newer network configuration", Args: exactArgs(1),
		Long: "Stores the file's content as the network configuration of a generation, which must be higher than that of the moment,\n" +
			"and hands it to the peers, which store it and pass it on. \"-\" is stdin. At most 500 KiB.",
		Example: "  sledvault network-config set network.json --generation 8",
		RunE: func(c *cobra.Command, args []string) error {
			if !c.Flags().Changed("generation") {
				return cli.UsageError("--generation is needed: one more than sledvault network-config get shows")
			}
			blob, err := a.input(args[0], wire.MaxNetworkBlob)
			if err != nil {
				return err
			}
			ctx, cancel := brief(c)
			defer cancel()
			cfg, err := a.sled().SetNetworkConfig(ctx, generation, blob)
			if err != nil {
				return err
			}
			return a.print(cfg, func(w io.Writer) { writeNetwork(w, cfg, len(blob)) })
		},
	}
	c.Flags().Uint64Var(&generation, "generation", 0, "number of this configuration")
	return c
}

// input reads a file, or stdin for "-".
func (a *app) input(path string, limit int) ([]byte, error) {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, cli.UsageError("%v", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, int64(limit)+1))
	if err != nil {
		return nil, cli.UsageError("read %s: %v", path, err)
	}
	if len(b) > limit {
		return nil, cli.UsageError("%s: more than %d bytes", path, limit)
	}
	return b, nil
}
