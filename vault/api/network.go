package api

import (
	"context"
	"net/http"
	"strconv"

	"github.com/sledvault/sledvault/vault/ident"
)

// NetworkConfig is the rack's network configuration as this sled knows it.
type NetworkConfig struct {
	Generation uint64 `json:"generation"` // the newest counts; 0 = none yet
	SHA256     string `json:"sha256"`     // of the blob, hex; "" without one
	Blob       []byte `json:"blob"`       // opaque to sledvault; null in the answer to PUT
}

// NetworkConfigRequest gives the rack another network configuration.
type NetworkConfigRequest struct {
	Generation uint64 `json:"generation"` // at least 1, and more than the one before
	Blob       []byte `json:"blob"`       // at most 500 KiB
}

// NetworkStatus says which network configuration a sled has, without what is in it. Its digest is for the agent only: anyone
// may read the status, and could try passwords in a known form.
type NetworkStatus struct {
	Generation uint64           `json:"generation"`
	Bytes      int              `json:"bytes"`
	From       *ident.Baseboard `json:"from"` // the peer that gave it; null if it was the agent, or before the last start
}

// networkRoutes are for the bootstrap agent.
func networkRoutes(n Node) []route {
	return []route{
		{"GET /v1/network-config", RoleAgent, func(ctx context.Context, r *http.Request) (any, error) {
			after, asked, err := afterOf(r)
			if err != nil {
				return nil, err
			}
			if !asked { // at once, also if there is none
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(ctx)
				cancel()
				return n.NetworkConfig(ctx, 0)
			}
			ctx, cancel := context.WithTimeout(ctx, maxWatch)
			defer cancel()
			return n.NetworkConfig(ctx, after)
		}},
		{"PUT /v1/network-config", RoleAgent, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[NetworkConfigRequest](r)
			if err != nil {
				return nil, err
			}
			return n.SetNetworkConfig(ctx, req.Generation, req.Blob)
		}},
	}
}

// afterOf reads ?after=.
func afterOf(r *http.Request) (after uint64, asked bool, err error) {
	s := r.URL.Query().Get("after")
	if s == "" {
		return 0, false, nil
	}
	if after, err = strconv.ParseUint(s, 10, 64); err != nil {
		return 0, false, badField("after", err)
	}
	return after, true, nil
}
