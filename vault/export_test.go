package vault

import (
	"context"
	"runtime"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

// WithRotation lets a test watch the steps of rotations, and stand in for the rack's agreement. Both may be nil.
func WithRotation(o Options, reached func(context.Context, string), agree func(context.Context, ident.Epoch) (secret.RackSecret, error)) Options {
	o.rotation.reached, o.rotation.agree = reached, agree
	return o
}

// WithLedger lets a test change what a sled finds in its ledger, as if its rack had done so.
func WithLedger(o Options, loaded func(wire.LedgerState) wire.LedgerState) Options {
	o.rotation.loaded = loaded
	return o
}

// WithSteps lets a test follow the ledger.
func WithSteps(o Options, step func(string) error) Options {
	o.steps = step
	return o
}

// Secrets counts the pieces of locked memory in use, and the rack secrets that the node keeps.
//
// The collector runs first: the ledger's second copy holds the same shares as the first, and nobody but the collector drops them.
func (d *Daemon) Secrets() (pieces, loaded int) {
	runtime.GC()
	st, _, _ := d.getDriver().Status()
	return d.alloc.Stats().Pieces, len(st.Loader.Loaded)
}
