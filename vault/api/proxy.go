package api

import (
	"context"
	"net/http"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// What a sled says about a peer that it asked on somebody's behalf. Another sled may do better.
const (
	CodeProxyRefused reason.Code = "proxy-refused"          // the destination refused, for a reason that the message cannot say
	CodeProxyInvalid reason.Code = "proxy-invalid-response" // an answer to another kind of request
)

// ProxyCommitRequest asks a sled to pass a commit on to another one.
type ProxyCommitRequest struct {
	Destination ident.Baseboard `json:"destination"`
	Request     CommitRequest   `json:"request"`
}

// ProxyPrepareAndCommitRequest asks a sled to pass a committed configuration on to another one.
type ProxyPrepareAndCommitRequest struct {
	Destination ident.Baseboard         `json:"destination"`
	Request     PrepareAndCommitRequest `json:"request"`
}

// NodeStatus is what another sled's trust-quorum node says about itself over the peer network.
type NodeStatus struct {
	ConnectedPeers  []ident.Baseboard `json:"connected_peers"`
	Alarms          []string          `json:"alarms"` // kinds
	PersistentState PersistentState   `json:"persistent_state"`
	ProxiedRequests uint64            `json:"proxied_requests"` // of others that it has passed on and waits for
}

// PersistentState is what a node must not forget, without what is secret.
type PersistentState struct {
	HasLRTQShare bool          `json:"has_lrtq_share"`
	Configs      []ident.Epoch `json:"configs"`
	Shares       []ident.Epoch `json:"shares"`
	Commits      []ident.Epoch `json:"commits"`
	Expunged     *Expunged     `json:"expunged"`
}

// Proxy passes quorum calls on to a peer. Each waits for the answer of that peer, at most for a time of its own.
type Proxy interface {
	ProxyCommit(ctx context.Context, to ident.Baseboard, r quorum.Commit) (quorum.CommitStatus, error)
	// ProxyPrepareAndCommit returns what the peer says at once: "pending" if it must first compute its share.
	ProxyPrepareAndCommit(ctx context.Context, to ident.Baseboard, r quorum.PrepareAndCommit) (quorum.CommitStatus, error)
	ProxyStatus(ctx context.Context, to ident.Baseboard) (NodeStatus, error)
}

// proxyRoutes are quorum calls for another sled, over this one's connection to it (peers.md §9). They need what the
// direct ones need.
func proxyRoutes(n Proxy, role Role) []route {
	return []route{
		{"PUT /v1/quorum/proxy/commit", role, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[ProxyCommitRequest](r)
			if err != nil {
				return nil, err
			}
			in, err := req.Request.toQuorum()
			if err != nil {
				return nil, err
			}
			st, err := n.ProxyCommit(ctx, req.Destination, in)
			return CommitReply{Status: st}, err
		}},
		{"PUT /v1/quorum/proxy/prepare-and-commit", role, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[ProxyPrepareAndCommitRequest](r)
			if err != nil {
				return nil, err
			}
			in, err := req.Request.toQuorum()
			if err != nil {
				return nil, err
			}
			st, err := n.ProxyPrepareAndCommit(ctx, req.Destination, in)
			return CommitReply{Status: st}, err
		}},
		{"GET /v1/quorum/proxy/status", role, func(ctx context.Context, r *http.Request) (any, error) {
			q := r.URL.Query()
			to := ident.Baseboard{Part: q.Get("part_number"), Serial: q.Get("serial_number")}
			if err := to.Validate(); err != nil {
				return nil, badField("part_number or serial_number", err)
			}
			return n.ProxyStatus(ctx, to)
		}},
	}
}
