package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/secret"
)

// maxRecoveryText bounds what is read as a recovery key: its characters with blanks and line ends between.
const maxRecoveryText = 1024

func (a *app) rackRecoverCommand(o *rackOptions) *cobra.Command {
	var file string
	var under, newRecovery bool
	c := &cobra.Command{
		Use: "recover", Short: "replace the membership key, with the recovery key", Args: noArgs,
		Long: "Makes a new membership key, has the recovery key sign the enrolment set that names it, hands that to every\n" +
			"sled, and certifies anew what the members have committed. The old key is moved aside and opens nothing any\n" +
			"more. The recovery key is read from stdin, or from a file, and is never stored. The folder must hold\n" +
			"rack.toml and the newest enrolment.cbor. The new key is put under a new passphrase if the old one was under\n" +
			"one, or with --passphrase. With --new-recovery-key the recovery key is replaced as well: the new one is printed\n" +
			"once, before anything is written; write it down. " + againHelp,
		Example: "  sledvault rack recover --rack /root/rack/rack.toml\n  sledvault rack recover --recovery-key-file /dev/fd/3",
		RunE: func(c *cobra.Command, _ []string) error {
			if o.timeout <= 0 {
				return cli.UsageError("--timeout must be positive")
			}
			ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
			defer cancel()
			defer o.pass.wipe()
			access, err := o.recoverAccess(under)
			if err != nil {
				return err
			}
			if newRecovery {
				if a.json {
					return cli.UsageError("--new-recovery-key shows a key in between: leave --json away")
				}
				access.NewRecovery = a.showRecovery
			}
			out, err := access.Recover(ctx, o.file, func() (enroll.Key, error) { return a.recoveryKey(file) }, a.tell)
			if out == nil {
				return err
			}
			return errors.Join(err, a.print(out, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "fingerprint   %s\n\nPut it into [claim] of every sled's configuration.\n", out.Fingerprint)
			}))
		},
	}
	c.Flags().StringVar(&file, "recovery-key-file", "", "read the recovery key from this file instead of stdin")
	c.Flags().BoolVar(&under, "passphrase", false, "put the new membership key under a passphrase, also if the old one was not")
	c.Flags().BoolVar(&newRecovery, "new-recovery-key", false, "replace the recovery key, too, and print the new one")
	o.pass.newFlag(c)
	return c
}

// showRecovery prints a recovery key: once, here, and nowhere else. It is never turned into a string.
func (a *app) showRecovery(text []byte) error {
	_, err := io.WriteString(a.out, "recovery key  ")
	_, err2 := a.out.Write(text)
	_, err3 := io.WriteString(a.out, "\n\nWrite it down and keep it away from the rack. The old one is worth nothing once the command has gone on.\n\n")
	return errors.Join(err, err2, err3)
}

// recoverAccess has the new key's file made as the old one was. If the passphrase of both is to be read from one
// descriptor, it is that of the new one: the old file is not opened.
func (o *rackOptions) recoverAccess(under bool) (controller.Access, error) {
	access := o.pass.access()
	was, err := controller.KeyUnderPassphrase(o.file)
	if err != nil {
		return access, err
	}
	if under || was {
		access.Fresh = o.pass.fresh
	}
	return access, nil
}

// recoveryKey reads what a person typed or a file holds, and wipes it.
func (a *app) recoveryKey(file string) (enroll.Key, error) {
	in := a.in
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return enroll.Key{}, cli.UsageError("recovery key: %v", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	} else if f, ok := in.(*os.File); ok {
		if fi, err := f.Stat(); err == nil && fi.Mode()&os.ModeCharDevice != 0 {
			_, _ = fmt.Fprint(a.err, "Recovery key: ")
		}
	}
	text := make([]byte, maxRecoveryText)
	defer clear(text)
	n := 0
	for n < len(text) {
		k, err := in.Read(text[n : n+1]) // not beyond the line: what follows is not ours
		n += k
		if errors.Is(err, io.EOF) || k > 0 && text[n-1] == '\n' {
			break
		}
		if err != nil {
			return enroll.Key{}, cli.UsageError("recovery key: %v", err)
		}
	}
	return enroll.ParseRecovery(secret.Heap{}, text[:n])
}

func (a *app) rackRevokeCommand(o *rackOptions) *cobra.Command {
	return &cobra.Command{
		Use: "revoke", Short: "revoke every client certificate issued so far", Args: noArgs,
		Long: "Raises the least generation of client certificates that the sleds accept, and hands them the enrolment set\n" +
			"that says so. This controller makes itself a new one at every run. Each run revokes once more.",
		Example: "  sledvault rack revoke --rack /root/rack/rack.toml",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withRack(c, o, func(ctx context.Context, ctl *controller.Controller) error {
				sleds, err := ctl.Revoke(ctx)
				if sleds == nil {
					return err
				}
				out := struct {
					Sleds []controller.Told `json:"sleds"`
				}{sleds}
				return errors.Join(err, a.print(out, func(w io.Writer) {
					t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
					for _, s := range sleds {
						state, why := "told", ""
						if s.Error != nil {
							state, why = "waiting", s.Error.Text
						}
						_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", s.Sled, state, why)
					}
					_ = t.Flush()
				}))
			})
		},
	}
}
