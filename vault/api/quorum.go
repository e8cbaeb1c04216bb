package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// maxWatch bounds how long a request may wait for a change.
const maxWatch = 30 * time.Second

// quorumRoutes are the quorum calls, the same on the local and the underlay API. Writes carry the operator's grant or
// certificate, which the node checks: being allowed to call is not being allowed to change the rack (protocol.md §7).
func quorumRoutes(n Node, role Role) []route {
	return append(proxyRoutes(n, role), []route{
		{"POST /v1/quorum/configuration", role, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[ReconfigureRequest](r)
			if err != nil {
				return nil, err
			}
			in := quorum.Reconfigure{RackID: req.RackID, Epoch: req.Epoch, LastCommitted: req.LastCommitted, Members: req.Members, Threshold: req.Threshold}
			if in.Grant, err = req.Grant.toQuorum(); err != nil {
				return nil, err
			}
			return nil, n.Reconfigure(ctx, in)
		}},
		{"POST /v1/quorum/upgrade", role, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[UpgradeRequest](r)
			if err != nil {
				return nil, err
			}
			in := quorum.UpgradeLRTQ{RackID: req.RackID, Epoch: req.Epoch, Members: req.Members, Threshold: req.Threshold}
			if in.Grant, err = req.Grant.toQuorum(); err != nil {
				return nil, err
			}
			return nil, n.UpgradeLRTQ(ctx, in)
		}},
		{"GET /v1/quorum/coordinator", role, func(ctx context.Context, r *http.Request) (any, error) { return coordinator(ctx, n, r) }},
		{"PUT /v1/quorum/commit", role, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[CommitRequest](r)
			if err != nil {
				return nil, err
			}
			in, err := req.toQuorum()
			if err != nil {
				return nil, err
			}
			st, err := n.Commit(ctx, in)
			return CommitReply{Status: st}, err
		}},
		{"PUT /v1/quorum/prepare-and-commit", role, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[PrepareAndCommitRequest](r)
			if err != nil {
				return nil, err
			}
			in, err := req.toQuorum()
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, maxWatch)
			defer cancel()
			st, err := n.PrepareAndCommit(ctx, in)
			return CommitReply{Status: st}, err
		}},
		{"GET /v1/quorum/config", role, func(ctx context.Context, _ *http.Request) (any, error) {
			cfg, cert, err := n.LatestCommitted(ctx)
			if err != nil || cfg == nil {
				return PrepareAndCommitRequest{}, err
			}
			return ConfigReply(cfg, cert)
		}},
	}...)
}

func (r CommitRequest) toQuorum() (in quorum.Commit, err error) {
	in = quorum.Commit{RackID: r.RackID, Epoch: r.Epoch}
	in.Certificate, err = r.Certificate.toQuorum()
	return in, err
}

func (r PrepareAndCommitRequest) toQuorum() (in quorum.PrepareAndCommit, err error) {
	if in.Config, err = wire.DecodeConfigurationJSON(r.Config); err != nil {
		return in, badField("config", err)
	}
	if in.Config == nil {
		return in, badField("config", errors.New("must not be null"))
	}
	in.Certificate, err = r.Certificate.toQuorum()
	return in, err
}

// ConfigReply puts a committed configuration into its API form.
func ConfigReply(cfg *quorum.Configuration, cert *quorum.Certificate) (PrepareAndCommitRequest, error) {
	raw, err := wire.EncodeConfigurationJSON(cfg)
	return PrepareAndCommitRequest{Config: raw, Certificate: CertificateOf(cert)}, err
}

func coordinator(ctx context.Context, n Node, r *http.Request) (any, error) {
	after, _, err := afterOf(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, maxWatch)
	defer cancel()
	c, err := n.Coordinator(ctx, after)
	if err != nil {
		return nil, err
	}
	out := CoordinatorStatus{Version: c.Version, Acked: c.Acked, Config: json.RawMessage("null")}
	if c.Config != nil {
		out.Epoch = c.Config.Epoch
		if out.Config, err = wire.EncodeConfigurationJSON(c.Config); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func badField(name string, err error) error {
	return &reason.Error{Code: CodeBadRequest, Text: "api: field " + name, Cause: err, Remedy: reason.Usage}
}

func signature(b []byte) (s quorum.Signature, err error) {
	if len(b) != len(s) {
		return s, &reason.Error{Code: CodeBadRequest, Text: "api: signature must have 64 bytes, have " + strconv.Itoa(len(b)), Remedy: reason.Usage}
	}
	return quorum.Signature(b), nil
}

// toQuorum checks the shape only; the node checks the authority.
func (g *Grant) toQuorum() (*quorum.Grant, error) {
	if g == nil {
		return nil, nil
	}
	sig, err := signature(g.Signature)
	return &quorum.Grant{
		RackID: g.RackID, Epoch: g.Epoch, Coordinator: g.Coordinator, Members: g.Members, Threshold: g.Threshold,
		LastCommitted: g.LastCommitted, LRTQUpgrade: g.LRTQUpgrade, KeepFrom: g.KeepFrom, Signature: sig,
	}, err
}

// GrantOf puts a grant into its API form.
func GrantOf(g *quorum.Grant) *Grant {
	if g == nil {
		return nil
	}
	return &Grant{
		RackID: g.RackID, Epoch: g.Epoch, Coordinator: g.Coordinator, Members: g.Members, Threshold: g.Threshold,
		LastCommitted: g.LastCommitted, LRTQUpgrade: g.LRTQUpgrade, KeepFrom: g.KeepFrom, Signature: g.Signature[:],
	}
}

func (c *Certificate) toQuorum() (*quorum.Certificate, error) {
	if c == nil {
		return nil, nil
	}
	if len(c.ConfigDigest) != 32 {
		return nil, &reason.Error{Code: CodeBadRequest, Text: "api: config_digest must have 32 bytes", Remedy: reason.Usage}
	}
	sig, err := signature(c.Signature)
	return &quorum.Certificate{RackID: c.RackID, Epoch: c.Epoch, ConfigDigest: quorum.Digest(c.ConfigDigest), KeepFrom: c.KeepFrom, Signature: sig}, err
}

// CertificateOf puts a certificate into its API form.
func CertificateOf(c *quorum.Certificate) *Certificate {
	if c == nil {
		return nil
	}
	return &Certificate{RackID: c.RackID, Epoch: c.Epoch, ConfigDigest: c.ConfigDigest[:], KeepFrom: c.KeepFrom, Signature: c.Signature[:]}
}

// ToQuorum reads a certificate out of its API form.
func (c *Certificate) ToQuorum() (*quorum.Certificate, error) { return c.toQuorum() }
