package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// docsCommand writes the man pages and completions that are checked in. Hidden: it is for maintainers.
func (a *app) docsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "docs MAN-FOLDER COMPLETION-FOLDER", Short: "write man pages and completions", Args: exactArgs(2), Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			for _, dir := range args {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
			}
			root := c.Root()
			root.DisableAutoGenTag = true
			if err := doc.GenManTree(root, &doc.GenManHeader{Title: "SLEDVAULT", Section: "1", Source: "sledvault", Manual: "sledvault"}, args[0]); err != nil {
				return err
			}
			if err := root.GenBashCompletionFileV2(filepath.Join(args[1], "sledvault.bash"), true); err != nil {
				return err
			}
			if err := root.GenZshCompletionFile(filepath.Join(args[1], "_sledvault")); err != nil {
				return err
			}
			return root.GenFishCompletionFile(filepath.Join(args[1], "sledvault.fish"), true)
		},
	}
}
