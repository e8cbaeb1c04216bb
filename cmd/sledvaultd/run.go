package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/vault"
)

const usage = `usage: sledvaultd --config FILE [--check-config]

  --config FILE    the configuration, see sledvaultd(8)
  --check-config   check the configuration and exit
  --version        print the version and exit

Example:
  sledvaultd --config /etc/sledvault/sledvaultd.toml
`

// run is the daemon from arguments to exit code: 0 ended by a signal, 1 failed, 2 wrong usage.
func run(ctx context.Context, start time.Time, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("sledvaultd", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	config := fs.String("config", "", "")
	check := fs.Bool("check-config", false, "")
	showVersion := fs.Bool("version", false, "")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, _ = io.WriteString(stdout, usage)
		return cli.Done
	case err != nil:
		return cli.Fail(stderr, "sledvaultd", cli.UsageError("%s", err))
	case *showVersion:
		_, _ = fmt.Fprintln(stdout, "sledvaultd", version+built())
		return cli.Done
	case *config == "" || fs.NArg() > 0:
		return cli.Fail(stderr, "sledvaultd", cli.UsageError("want --config FILE and nothing else"))
	}
	if err := vault.CheckBuild(version, unreleased); err != nil {
		return cli.Fail(stderr, "sledvaultd", err)
	}
	cfg, err := vault.LoadConfig(*config)
	if err != nil {
		return cli.Fail(stderr, "sledvaultd", err)
	}
	if *check {
		_, _ = fmt.Fprintln(stdout, *config+": ok")
		return cli.Done
	}
	if err := vault.Run(ctx, *cfg, vault.Options{Version: version, Start: start, Log: logger(cfg.Log, stderr), Confine: true}); err != nil {
		return cli.Fail(stderr, "sledvaultd", err)
	}
	return cli.Done
}

// built says how the program was built, where that matters.
func built() string {
	if vault.Packaged {
		return " (packaged: accepts no relaxation)"
	}
	return ""
}

func logger(c vault.LogConfig, w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // checked by the configuration
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
