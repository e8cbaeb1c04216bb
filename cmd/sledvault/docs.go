package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/sledvault/sledvault/internal/configdoc"
)

// docsCommand writes the man pages and completions that are checked in. Hidden: it is for maintainers.
func (a *app) docsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "docs MAN-FOLDER COMPLETION-FOLDER", Short: "write man pages and completions", Args: exactArgs(2), Hidden: true,
		Example: "  sledvault docs docs/man packaging/completions",
		RunE: func(c *cobra.Command, args []string) error {
			for _, dir := range args {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
			}
			return errors.Join(writeManPages(c.Root(), args[0]), writeCompletions(c.Root(), args[1]))
		},
	}
}

// docsDate stands on the man pages. It changes with their form, not with the day on which somebody makes them.
func docsDate() *time.Time {
	d := time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
	return &d
}

func writeManPages(root *cobra.Command, dir string) error {
	root.DisableAutoGenTag = true
	head := &doc.GenManHeader{Title: "SLEDVAULT", Section: "1", Source: "sledvault", Manual: "sledvault", Date: docsDate()}
	if err := doc.GenManTree(root, head, dir); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "sledvaultd.8"), md2man.Render([]byte(configdoc.ManPage())), 0o644)
}

func writeCompletions(root *cobra.Command, dir string) error {
	return errors.Join(root.GenBashCompletionFileV2(filepath.Join(dir, "sledvault.bash"), true),
		root.GenZshCompletionFile(filepath.Join(dir, "_sledvault")),
		root.GenFishCompletionFile(filepath.Join(dir, "sledvault.fish"), true))
}
