// Boot path 2/9: after README.md, before vault/boot.go.

// Sledvaultd is the daemon of one sled: it proves the sled to its peers, takes part in the rack's trust quorum and opens
// the sled's disks. See sledvaultd(8) and docs/boot-path.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// unreleased is the version of a program that nobody packaged.
const unreleased = "devel"

// version is set by the linker.
var version = unreleased

func main() {
	start := time.Now()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, start, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
