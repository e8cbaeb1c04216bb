package vault

import (
	"context"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/secret"
)

// WithRotation lets a test watch the steps of rotations, and stand in for the rack's agreement. Both may be nil.
func WithRotation(o Options, reached func(context.Context, string), agree func(context.Context, ident.Epoch) (secret.RackSecret, error)) Options {
	o.rotation = rotationHooks{reached: reached, agree: agree}
	return o
}
