package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/controller"
)

// rackOptions are what the rack commands share.
type rackOptions struct {
	file    string
	timeout time.Duration
	pass    passphrases
}

func (a *app) rackCommand() *cobra.Command {
	o := &rackOptions{}
	c := group("rack", "the rack's operator: keys, enrolment, membership",
		a.rackNewCommand(o), a.rackEnrollCommand(o), a.rackInitCommand(o), a.rackUpgradeCommand(o), a.rackStatusCommand(o),
		a.rackAddCommand(o), a.rackRemoveCommand(o), a.rackRotateCommand(o), a.rackPruneCommand(o), a.rackAbortCommand(o),
		a.rackRecoverCommand(o), a.rackRevokeCommand(o), a.rackPassphraseCommand(o))
	c.PersistentFlags().StringVar(&o.file, "rack", controller.RackFile, "the rack file; keys and journal lie in the same folder")
	c.PersistentFlags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "when to give up waiting for sleds")
	o.pass.flags(c)
	return c
}

func (a *app) rackNewCommand(o *rackOptions) *cobra.Command {
	var name, id string
	var under bool
	c := &cobra.Command{
		Use: "new FOLDER", Short: "make the keys and the folder of a new rack", Args: exactArgs(1),
		Long: "Makes FOLDER with the rack's membership key, an empty rack file, and room for the journal. Prints the\n" +
			"fingerprint that goes into every sled's configuration, and the recovery key, which is stored nowhere:\n" +
			"write it down and keep it away from the rack. With --passphrase the file of the membership key is encrypted;\n" +
			"every rack command then asks for the passphrase, at the terminal or from --passphrase-fd.",
		Example: "  sledvault rack new /root/rack --name left\n  sledvault rack new /root/rack --passphrase\n  sledvault rack new /root/rack --rack-id 00112233-4455-4677-8899-aabbccddeeff",
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			if name == "" {
				name = filepath.Base(dir)
			}
			access := controller.Access{}
			if under {
				o.pass.newFD = o.pass.fd
				access.Fresh = o.pass.fresh
				defer o.pass.wipe()
			}
			fp, recovery, err := newRack(access, dir, name, id)
			if err != nil {
				return err
			}
			defer clear(recovery)
			return a.writeNewRack(dir, fp, recovery)
		},
	}
	c.Flags().StringVar(&name, "name", "", "name of the rack (default: the folder's name)")
	c.Flags().StringVar(&id, "rack-id", "", "the id of a rack that comes from the older scheme (default: a new one)")
	c.Flags().BoolVar(&under, "passphrase", false, "put the membership key under a passphrase")
	return c
}

func newRack(access controller.Access, dir, name, id string) (fingerprint string, recovery []byte, err error) {
	if id == "" {
		return access.NewRack(dir, name)
	}
	rackID, err := ident.ParseRackID(id)
	if err != nil || rackID.IsZero() {
		return "", nil, cli.UsageError("--rack-id must be a hyphenated UUID: have %.60q", id)
	}
	return access.NewRackOf(dir, name, rackID)
}

// writeNewRack shows the recovery key: once, here, and nowhere else. It is never turned into a string.
func (a *app) writeNewRack(dir, fp string, recovery []byte) error {
	file := filepath.Join(dir, controller.RackFile)
	head, tail := fmt.Sprintf("rack file     %s\nfingerprint   %s\nrecovery key  ", file, fp),
		"\n\nWrite the recovery key down and keep it away from the rack. Put the fingerprint into [claim] of every\n"+
			"sled's configuration, add the sleds to the rack file, then: sledvault rack enroll --rack "+file+"\n"
	if a.json {
		head, tail = fmt.Sprintf(`{"dir":%s,"rackfile":%s,"fingerprint":%s,"recovery_key":"`, quoted(dir), quoted(file), quoted(fp)), "\"}\n"
	}
	_, err := io.WriteString(a.out, head)
	_, err2 := a.out.Write(recovery)
	_, err3 := io.WriteString(a.out, tail)
	return errors.Join(err, err2, err3)
}

func quoted(s string) []byte {
	b, _ := json.Marshal(s) // a string always encodes
	return b
}

// tell shows progress on stderr.
func (a *app) tell(e controller.Event) {
	if e.Sled != "" {
		_, _ = fmt.Fprintf(a.err, "%s: %s\n", e.Sled, e.Text)
		return
	}
	_, _ = fmt.Fprintln(a.err, e.Text)
}

// withRack runs f on an open controller, with progress on stderr.
func (a *app) withRack(c *cobra.Command, o *rackOptions, f func(context.Context, *controller.Controller) error) error {
	if o.timeout <= 0 {
		return cli.UsageError("--timeout must be positive")
	}
	defer o.pass.wipe()
	ctl, err := o.pass.access().Open(o.file, a.tell)
	if err != nil {
		return err
	}
	defer ctl.Close()
	ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
	defer cancel()
	return f(ctx, ctl)
}

func (a *app) rackEnrollCommand(o *rackOptions) *cobra.Command {
	var again controller.EnrollOptions
	c := &cobra.Command{
		Use: "enroll", Short: "enroll the sleds of the rack file", Args: noArgs,
		Long: "Has every sled prove its TPM, compares it with the rack file, and hands all sleds the new enrolment set.\n" +
			"Sleds that cannot be reached are left for the next run: exit code 3. A sled that lost its seal is enrolled again\n" +
			"only if it is named: its seal is lost because its firmware changed, old state was restored, or somebody tampered.",
		Example: "  sledvault rack enroll --rack /root/rack/rack.toml\n  sledvault rack enroll --again left-1",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withRack(c, o, func(ctx context.Context, ctl *controller.Controller) error {
				sleds, err := ctl.EnrollWith(ctx, again)
				out := struct {
					Sleds []controller.Enrolled `json:"sleds"`
				}{sleds}
				return errors.Join(err, a.print(out, func(w io.Writer) {
					t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
					for _, s := range sleds {
						why := ""
						if s.Error != nil {
							why = s.Error.Text
						}
						_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", s.Sled, s.State, why)
					}
					_ = t.Flush()
				}))
			})
		},
	}
	c.Flags().StringSliceVar(&again.Again, "again", nil, "enroll this sled again, which lost its seal (may be repeated)")
	c.Flags().BoolVar(&again.AcceptMeasurements, "accept-measurements", false, "accept that it shows other measurements than before")
	return c
}

func (a *app) rackInitCommand(o *rackOptions) *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "make the rack's first secret and share it out", Args: noArgs,
		Long: "Has one sled make the first rack secret and hand a share to every sled of the rack file, and commits it\n" +
			"when all of them have stored theirs. May be broken off and run again at any point.",
		Example: "  sledvault rack init --rack /root/rack/rack.toml",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withRack(c, o, func(ctx context.Context, ctl *controller.Controller) error {
				ch, err := ctl.Init(ctx)
				if err != nil {
					return err
				}
				return a.print(ch, func(w io.Writer) { writeChange(w, ch) })
			})
		},
	}
}

func (a *app) rackUpgradeCommand(o *rackOptions) *cobra.Command {
	return a.changeCommand(o, &cobra.Command{
		Use: "upgrade-lrtq", Short: "bring a rack over from the older scheme", Args: noArgs,
		Long: "Instead of init, for a rack whose sleds hold packages of the older scheme (LRTQ), read from the ledgers that\n" +
			"their configurations name. One sled rebuilds the scheme's secret with the others; the rack's first\n" +
			"configuration, epoch 2, carries it as that of epoch 1, so that disks of that time open. It is committed when all\n" +
			"sleds of the rack file have stored their shares; the older scheme ends there. " + againHelp,
		Example: "  sledvault rack upgrade-lrtq --rack /root/rack/rack.toml",
	}, func(ctx context.Context, ctl *controller.Controller, _ []string) (*rack.Change, error) {
		return ctl.UpgradeLRTQ(ctx)
	})
}

func writeChange(w io.Writer, ch *rack.Change) {
	_, _ = fmt.Fprintf(w, "epoch %d: %s, %d members, %d needed to unlock\n", ch.Epoch, ch.Phase, len(ch.Members), ch.Threshold)
}

func (a *app) rackStatusCommand(o *rackOptions) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "every sled of the rack, and what a change waits for", Args: noArgs, Example: "  sledvault rack status",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withRack(c, o, func(ctx context.Context, ctl *controller.Controller) error {
				st, err := ctl.Status(ctx)
				if err != nil {
					return err
				}
				return a.print(st, func(w io.Writer) { writeRack(w, st) })
			})
		},
	}
}

func writeRack(w io.Writer, st controller.RackStatus) {
	_, _ = fmt.Fprintf(w, "rack %s %s, enrolment set %d\n", st.Name, st.RackID, st.SetGeneration)
	if st.Change != nil {
		writeChange(w, st.Change)
		for _, m := range st.Waits {
			_, _ = fmt.Fprintf(w, "  waiting for %s: %s\n", m.Sled, m.Why)
		}
	}
	for _, s := range st.Sleds {
		if s.Status != nil && s.Status.Quorum != nil && s.Status.Quorum.OlderSecrets > 0 {
			_, _ = fmt.Fprintf(w, "%d older secrets of at most %d are carried along, for disks that were last here in their time\n", s.Status.Quorum.OlderSecrets, keys.MaxOldSecrets)
			break
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range st.Sleds {
		if s.Status == nil {
			_, _ = fmt.Fprintf(t, "%s\tunreachable\t%s\n", s.Sled.Label(), s.Error.Text)
			continue
		}
		open := 0
		for _, d := range s.Status.Disks {
			if d.State == "unlocked" {
				open++
			}
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\tboot %s\t%d of %d disks open\t%s\n", s.Sled.Label(), s.Status.State, s.Status.Boot.Step, open, len(s.Status.Disks), s.Status.NextStep)
	}
	_ = t.Flush()
}
