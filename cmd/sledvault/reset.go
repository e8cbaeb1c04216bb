package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
)

func (a *app) resetCommand() *cobra.Command {
	var board string
	var leave bool
	c := &cobra.Command{
		Use: "reset", Short: "make this sled forget its rack", Args: noArgs,
		Long: "Takes the rack's counter and claim from the TPM and moves the sealed state aside, in both folders. No copy of\n" +
			"the state can be opened afterwards. The daemon then ends, with exit code 3; its service manager starts it again,\n" +
			"and the sled is unclaimed. The sled's baseboard must be typed out, so that no other sled is meant. A member, or\n" +
			"a sled that may be one, is refused with a list of what would be lost; --yes-i-know does it all the same.",
		Example: "  sledvault seal reset --baseboard 913-0000019:BRM42220001",
		RunE: func(c *cobra.Command, _ []string) error {
			b, err := ident.ParseBaseboard(board)
			if err != nil {
				return cli.UsageError("--baseboard: have %.120q, want PART:SERIAL, as sledvault status shows it", board)
			}
			ctx, cancel := brief(c)
			defer cancel()
			if err := a.sled().ResetSeal(ctx, api.ResetRequest{Baseboard: b, LeaveRack: leave}); err != nil {
				return err
			}
			return a.print(map[string]any{"baseboard": b, "state": api.StateUnclaimed}, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "%s has forgotten its rack; it is unclaimed when sledvaultd has been started again\n", b)
			})
		},
	}
	c.Flags().StringVar(&board, "baseboard", "", "this sled's baseboard, PART:SERIAL")
	c.Flags().BoolVar(&leave, "yes-i-know", false, "also if the sled is a member: its shares and the keys of its disks are lost")
	return c
}
