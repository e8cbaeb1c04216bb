package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/internal/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	var install bool
	c := &cobra.Command{
		Use: "doctor", Short: "what this machine lacks, and the command that mends it", Args: noArgs,
		Example: "  sledvault doctor\n  sledvault doctor --install",
		RunE: func(c *cobra.Command, _ []string) error {
			if install {
				if err := doctor.Install(c.Context(), a.err); err != nil {
					return err
				}
			}
			fs := doctor.Examine()
			if err := a.print(struct {
				Findings []doctor.Finding `json:"findings"`
			}{fs}, func(w io.Writer) { writeFindings(w, fs) }); err != nil {
				return err
			}
			return doctor.Check(doctor.ForDemo)
		},
	}
	c.Flags().BoolVar(&install, "install", false, "install what the demo and the tests lack (Debian, as root)")
	return c
}

func writeFindings(w io.Writer, fs []doctor.Finding) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range fs {
		mark := "ok"
		if !f.OK {
			mark = "missing"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\tfor %s\t%s\n", f.Name, mark, f.For, f.Found)
		if f.Remedy != "" {
			_, _ = fmt.Fprintf(t, "\t\t\tmend: %s\n", f.Remedy)
		}
	}
	_ = t.Flush()
}
