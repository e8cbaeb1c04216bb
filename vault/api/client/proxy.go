package client

import (
	"context"
	"net/url"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// ProxyCommit asks the sled to pass a commit on to another one.
func (s *Session) ProxyCommit(ctx context.Context, to ident.Baseboard, r api.CommitRequest) (quorum.CommitStatus, error) {
	var rep api.CommitReply
	err := s.call(ctx, "PUT", "/v1/quorum/proxy/commit", api.ProxyCommitRequest{Destination: to, Request: r}, &rep)
	return rep.Status, err
}

// ProxyPrepareAndCommit asks the sled to pass a committed configuration on to another one.
func (s *Session) ProxyPrepareAndCommit(ctx context.Context, to ident.Baseboard, r api.PrepareAndCommitRequest) (quorum.CommitStatus, error) {
	var rep api.CommitReply
	err := s.call(ctx, "PUT", "/v1/quorum/proxy/prepare-and-commit", api.ProxyPrepareAndCommitRequest{Destination: to, Request: r}, &rep)
	return rep.Status, err
}

// ProxyStatus asks the sled what another one's node says about itself.
func (s *Session) ProxyStatus(ctx context.Context, of ident.Baseboard) (st api.NodeStatus, err error) {
	return st, s.call(ctx, "GET", "/v1/quorum/proxy/status?"+proxyQuery(of), nil, &st)
}

func proxyQuery(of ident.Baseboard) string {
	return url.Values{"part_number": {of.Part}, "serial_number": {of.Serial}}.Encode()
}

// ProxyStatus asks the sled what another one's node says about itself.
func (l *Local) ProxyStatus(ctx context.Context, of ident.Baseboard) (st api.NodeStatus, err error) {
	return st, l.call(ctx, "GET", "/v1/quorum/proxy/status?"+proxyQuery(of), nil, &st)
}
