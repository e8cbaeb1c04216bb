//go:build linux

// Hwtest measures and tests sledvault on simulated and on real hardware. It is a tool of those who work on sledvault and
// is not installed on sleds.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
