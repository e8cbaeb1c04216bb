package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// Limits of a session. A sled answers within half a minute even when it waits for a change.
const (
	dialTimeout = 10 * time.Second // connect and handshake
	callTimeout = 45 * time.Second // one call
)

// Session is one connection of the controller to one sled's underlay API. What was proved about the sled (its evidence,
// its activation) was proved about this connection, so a session never reconnects: after an error, open a new one.
type Session struct {
	Exporter   [32]byte // binds evidence to this connection
	ServerSPKI [32]byte // SHA-256 of the sled's subject public key info
	ClientSPKI [32]byte // SHA-256 of our own
	Addr       string

	mu   sync.Mutex
	conn net.Conn
	buf  *bufio.Reader
}

// Open connects to a sled. Nothing about the sled is proved yet.
func Open(ctx context.Context, addr string, cert tls.Certificate) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := tls.Dialer{Config: api.ClientTLS(cert)}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		e := reason.Wrap(err, CodeUnreachable, "power the sled on, or correct its underlay address in the rack file", "client: no daemon answers at %s", addr)
		e.Remedy = reason.Retry
		return nil, e
	}
	s := &Session{Addr: addr, conn: c, buf: reader(c)}
	if err := s.facts(c.(*tls.Conn), cert); err != nil {
		_ = c.Close()
		return nil, err
	}
	return s, nil
}

func (s *Session) facts(c *tls.Conn, own tls.Certificate) error {
	st := c.ConnectionState()
	key, err := channel.Exporter(&st)
	if err != nil {
		return fmt.Errorf("client: export keying material: %w", err)
	}
	leaf, err := x509.ParseCertificate(own.Certificate[0])
	if err != nil {
		return fmt.Errorf("client: own certificate: %w", err)
	}
	s.Exporter = key
	s.ServerSPKI = channel.SPKI(st.PeerCertificates[0])
	s.ClientSPKI = channel.SPKI(leaf)
	return nil
}

// Close ends the connection.
func (s *Session) Close() error { return s.conn.Close() }

// call runs one request. Calls do not overlap.
func (s *Session) call(ctx context.Context, method, path string, in, out any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := request(ctx, method, "https://sled"+path, in)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := req.Write(s.conn); err != nil {
		return s.broken(ctx, err)
	}
	resp, err := http.ReadResponse(s.buf, req)
	if err != nil {
		return s.broken(ctx, err)
	}
	if err := answer(resp, out); ctx.Err() == nil || err == nil {
		return err
	}
	return s.broken(ctx, err)
}

func (s *Session) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return reason.Later(api.CodeTimeout, "see sledvault rack status", "client: %s did not answer in time", s.Addr)
	}
	e := reason.Wrap(err, CodeUnreachable, "see sledvault rack status", "client: connection to %s", s.Addr)
	e.Remedy = reason.Retry
	return e
}

// Status asks for the sled's status. It may be called before anything is proved.
func (s *Session) Status(ctx context.Context) (st api.Status, err error) {
	return st, s.call(ctx, "GET", "/v1/status", nil, &st)
}

// EnrollBegin asks for the sled's public areas, signed by its attestation key.
func (s *Session) EnrollBegin(ctx context.Context, r enroll.BeginRequest) (resp enroll.BeginResponse, err error) {
	return resp, s.call(ctx, "POST", "/v1/enroll/begin", r, &resp)
}

// EnrollActivate makes the sled prove that its attestation key lives in the TPM of its endorsement key.
func (s *Session) EnrollActivate(ctx context.Context, r enroll.ActivateRequest) (resp enroll.ActivateResponse, err error) {
	return resp, s.call(ctx, "POST", "/v1/enroll/activate", r, &resp)
}

// EnrollSet hands the sled an enrolment set.
func (s *Session) EnrollSet(ctx context.Context, envelope []byte) (r api.SetReply, err error) {
	return r, s.call(ctx, "PUT", "/v1/enroll/set", envelope, &r)
}

// Attest asks for evidence bound to this connection.
func (s *Session) Attest(ctx context.Context, nonce [32]byte) ([]byte, error) {
	var r api.AttestReply
	err := s.call(ctx, "POST", "/v1/attest", api.AttestRequest{Nonce: nonce[:]}, &r)
	return r.Evidence, err
}

// Reconfigure asks the sled to coordinate a configuration.
func (s *Session) Reconfigure(ctx context.Context, r api.ReconfigureRequest) error {
	return s.call(ctx, "POST", "/v1/quorum/configuration", r, nil)
}

// UpgradeLRTQ asks the sled to coordinate the first configuration after the older scheme.
func (s *Session) UpgradeLRTQ(ctx context.Context, r api.UpgradeRequest) error {
	return s.call(ctx, "POST", "/v1/quorum/upgrade", r, nil)
}

// Coordinator returns the progress of a coordination once its version exceeds after, or after half a minute.
func (s *Session) Coordinator(ctx context.Context, after uint64) (c api.CoordinatorStatus, err error) {
	return c, s.call(ctx, "GET", "/v1/quorum/coordinator?after="+strconv.FormatUint(after, 10), nil, &c)
}

// Commit asks the sled to commit a prepared epoch.
func (s *Session) Commit(ctx context.Context, r api.CommitRequest) (quorum.CommitStatus, error) {
	var rep api.CommitReply
	err := s.call(ctx, "PUT", "/v1/quorum/commit", r, &rep)
	return rep.Status, err
}

// PrepareAndCommit hands the sled a committed configuration.
func (s *Session) PrepareAndCommit(ctx context.Context, r api.PrepareAndCommitRequest) (quorum.CommitStatus, error) {
	var rep api.CommitReply
	err := s.call(ctx, "PUT", "/v1/quorum/prepare-and-commit", r, &rep)
	return rep.Status, err
}

// Config returns the sled's latest committed configuration; its fields are null if there is none.
func (s *Session) Config(ctx context.Context) (c api.PrepareAndCommitRequest, err error) {
	return c, s.call(ctx, "GET", "/v1/quorum/config", nil, &c)
}
