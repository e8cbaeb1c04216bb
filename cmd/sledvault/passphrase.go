package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/rack/controller"
	"github.com/sledvault/sledvault/vault/reason"
)

// A passphrase is typed at the terminal or read from a descriptor; it is never an argument or in the environment, where
// others can read it.
type passphrases struct {
	fd    int    // of the key file there is; -1: the terminal
	newFD int    // of the one to be made; -1: the terminal
	kept  []byte // what was asked for once is not asked for again
}

const noDescriptor = -1

// flags adds what every command that opens the key has.
func (p *passphrases) flags(c *cobra.Command) {
	c.PersistentFlags().IntVar(&p.fd, "passphrase-fd", noDescriptor, "read the passphrase of the membership key from this file descriptor")
}

func (p *passphrases) newFlag(c *cobra.Command) {
	p.newFD = noDescriptor
	c.Flags().IntVar(&p.newFD, "new-passphrase-fd", noDescriptor, "read the passphrase of the new key file from this file descriptor")
}

// ask is [controller.Access.Passphrase].
func (p *passphrases) ask() ([]byte, error) {
	if p.kept == nil {
		got, err := read(p.fd, "Passphrase of the membership key: ")
		if err != nil {
			return nil, err
		}
		p.kept = got
	}
	return bytes.Clone(p.kept), nil
}

// fresh is [controller.Access.Fresh]. At a terminal it is typed twice.
func (p *passphrases) fresh() ([]byte, error) {
	got, err := read(p.newFD, "New passphrase: ")
	if err != nil {
		return nil, err
	}
	if p.newFD == noDescriptor {
		again, err := read(p.newFD, "The same again: ")
		defer clear(again)
		if err == nil && !bytes.Equal(got, again) {
			err = cli.UsageError("the two passphrases differ; nothing was written")
		}
		if err != nil {
			clear(got)
			return nil, err
		}
	}
	clear(p.kept)
	p.kept = bytes.Clone(got) // the new file is opened again at once
	return got, nil
}

// wipe forgets.
func (p *passphrases) wipe() {
	clear(p.kept)
	p.kept = nil
}

// access opens key files, and writes new ones without a passphrase.
func (p *passphrases) access() controller.Access { return controller.Access{Passphrase: p.ask} }

// read reads one line from a descriptor, or from the terminal, unseen.
func read(fd int, prompt string) ([]byte, error) {
	if fd != noDescriptor {
		f := os.NewFile(uintptr(fd), "passphrase")
		if f == nil {
			return nil, cli.UsageError("--passphrase-fd: have %d, want a descriptor", fd)
		}
		return line(f)
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, reason.New(enroll.CodePassphrase, "run the command at a terminal, or give it with --passphrase-fd (a new one with --new-passphrase-fd)",
			"a passphrase is needed, and there is no terminal to ask for it")
	}
	defer func() { _ = tty.Close() }()
	_, _ = io.WriteString(tty, prompt)
	got, err := term.ReadPassword(int(tty.Fd()))
	_, _ = io.WriteString(tty, "\n")
	return got, err
}

// line reads up to a line end, and not beyond: what follows belongs to the next question.
func line(r io.Reader) ([]byte, error) {
	out := make([]byte, 0, enroll.MaxPassphrase+1)
	for len(out) < cap(out) {
		b := out[len(out) : len(out)+1]
		n, err := r.Read(b)
		switch {
		case n > 0 && b[0] == '\n':
			return out, nil
		case n > 0:
			out = out[:len(out)+1]
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			clear(out[:cap(out)])
			return nil, cli.UsageError("passphrase: %v", err)
		}
	}
	return out, nil // too long, and refused as such
}

func (a *app) rackPassphraseCommand(o *rackOptions) *cobra.Command {
	var remove bool
	c := &cobra.Command{
		Use: "passphrase", Short: "put the membership key under a passphrase, or change it", Args: noArgs,
		Long: "Writes the file of the membership key anew, encrypted under a passphrase that is typed twice at the terminal, or\n" +
			"read from a file descriptor. The key and its fingerprint stay the same. From then on every rack command asks for\n" +
			"it. With --remove the file is written without one. Copies of the old file stay usable as they were.",
		Example: "  sledvault rack passphrase --rack /root/rack/rack.toml\n  sledvault rack passphrase --new-passphrase-fd 3 3<secret",
		RunE: func(*cobra.Command, []string) error {
			defer o.pass.wipe()
			access := o.pass.access()
			if !remove {
				access.Fresh = o.pass.fresh
			}
			file, err := filepath.Abs(o.file)
			if err != nil {
				return err
			}
			fp, err := access.ChangePassphrase(file)
			if err != nil {
				return err
			}
			return a.print(map[string]any{"fingerprint": fp, "passphrase": !remove}, func(w io.Writer) {
				state := "is under the passphrase"
				if remove {
					state = "has no passphrase"
				}
				_, _ = fmt.Fprintf(w, "key %s %s\n", fp, state)
			})
		},
	}
	o.pass.newFlag(c)
	c.Flags().BoolVar(&remove, "remove", false, "write the file without a passphrase")
	return c
}
