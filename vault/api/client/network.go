package client

import (
	"context"
	"strconv"

	"github.com/sledvault/sledvault/vault/api"
)

// NetworkConfig returns the rack's network configuration; generation 0 says that there is none.
func (l *Local) NetworkConfig(ctx context.Context) (c api.NetworkConfig, err error) {
	return c, l.call(ctx, "GET", "/v1/network-config", nil, &c)
}

// NetworkConfigAfter waits, at most half a minute, until its generation exceeds the given one, and returns it.
func (l *Local) NetworkConfigAfter(ctx context.Context, generation uint64) (c api.NetworkConfig, err error) {
	return c, l.call(ctx, "GET", "/v1/network-config?after="+strconv.FormatUint(generation, 10), nil, &c)
}

// SetNetworkConfig gives the rack a newer network configuration.
func (l *Local) SetNetworkConfig(ctx context.Context, generation uint64, blob []byte) (c api.NetworkConfig, err error) {
	return c, l.call(ctx, "PUT", "/v1/network-config", api.NetworkConfigRequest{Generation: generation, Blob: blob}, &c)
}
