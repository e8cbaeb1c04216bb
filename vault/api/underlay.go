package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/reason"
)

// underlayALPN keeps both sides at HTTP/1.1: one request at a time, so that a connection means one caller.
const underlayALPN = "http/1.1"

// UnderlayConfig configures the underlay API.
type UnderlayConfig struct {
	Listen      string // "ip:port"
	Certificate tls.Certificate
	Node        Claimant
	Reasons     *reason.Log
}

// Underlay is the API that the rack controller calls. While the sled is unclaimed it serves status and /enroll only, to
// the key that the sled's own configuration names; afterwards everything but status needs a client certificate under
// the rack's membership key (local-api.md §5).
type Underlay struct {
	cfg UnderlayConfig
	srv *http.Server
	ln  net.Listener

	stranger chan struct{} // holds the one place for judging a set that a client without a certificate brought
}

// ServerTLS is the TLS profile of the underlay listener: TLS 1.3, a post-quantum key exchange, a client certificate if
// the client has one. Dates in certificates are never looked at.
func ServerTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, NextProtos: []string{underlayALPN},
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true,
	}
}

// ClientTLS is the controller's side of [ServerTLS]. The sled proves itself through evidence, not through its
// certificate, which is made anew at every start.
func ClientTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, NextProtos: []string{underlayALPN},
		Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, SessionTicketsDisabled: true, //nolint:gosec // evidence replaces the chain, see above
	}
}

// ListenUnderlay opens the listener.
func ListenUnderlay(cfg UnderlayConfig) (*Underlay, error) {
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, reason.Wrap(err, "underlay-listen", "check [underlay] listen in the configuration", "api: listen on the underlay")
	}
	u := &Underlay{cfg: cfg, ln: ln, stranger: make(chan struct{}, 1)}
	u.srv = httpServer(u.mux(), cfg.Reasons, CodeUnderlayConn, remoteName, func(ctx context.Context, _ net.Conn) context.Context { return ctx },
		func(s *connState) {
			if s.conn != nil {
				cfg.Node.ConnClosed(s.conn)
			}
		})
	u.srv.TLSConfig = ServerTLS(cfg.Certificate)
	return u, nil
}

// Serve answers until ctx ends.
func (u *Underlay) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = u.srv.Close() })
	defer stop()
	ln := newLimitListener(u.ln, maxConns, maxConnsEach, remoteName,
		func(who string) { u.cfg.Reasons.Count(CodeBusy, who, "too many connections") })
	if err := u.srv.Serve(tls.NewListener(ln, u.srv.TLSConfig)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("api: serve %s: %w", u.cfg.Listen, err)
	}
	return nil
}

// access is what a route demands of the client.
type access uint8

const (
	anyone     access = iota // TLS only
	claimant                 // the key that may claim the sled, or the membership key once claimed
	setbearer                // claimant; or anyone at a claimed sled who brings a set that the recovery key signed
	controller               // a valid client certificate of the claimed rack
)

type underlayRoute struct {
	pattern string
	access  access
	handle  handler
}

func (u *Underlay) routes() []underlayRoute {
	n := u.cfg.Node
	rs := []underlayRoute{
		{"GET /v1/status", anyone, func(ctx context.Context, _ *http.Request) (any, error) { return n.Status(ctx), nil }},
		{"POST /v1/enroll/begin", claimant, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[enroll.BeginRequest](r)
			if err != nil {
				return nil, err
			}
			return n.EnrollBegin(ctx, stateOf(ctx).conn, req)
		}},
		{"POST /v1/enroll/activate", claimant, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[enroll.ActivateRequest](r)
			if err != nil {
				return nil, err
			}
			return n.EnrollActivate(ctx, stateOf(ctx).conn, req)
		}},
		{"PUT /v1/enroll/set", setbearer, u.putSet},
		{"POST /v1/attest", controller, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[AttestRequest](r)
			if err != nil {
				return nil, err
			}
			if len(req.Nonce) != 32 {
				return nil, badField("nonce", errors.New("must have 32 bytes"))
			}
			ev, err := n.Attest(ctx, stateOf(ctx).conn, [32]byte(req.Nonce))
			return AttestReply{Evidence: ev}, err
		}},
	}
	for _, q := range quorumRoutes(n, RoleOperate) {
		rs = append(rs, underlayRoute{q.pattern, controller, q.handle})
	}
	return rs
}

func (u *Underlay) mux() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range u.routes() {
		mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) {
			received(w, r)
			who, err := u.admit(r, rt.access)
			if err != nil {
				writeError(u.cfg.Reasons, who, w, r, err)
				return
			}
			serveJSON(u.cfg.Reasons, who, w, r, rt.handle)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		received(w, r)
		writeError(u.cfg.Reasons, hostOf(r), w, r, &reason.Error{Code: CodeNotFound, Text: "api: no such route", Remedy: reason.Usage})
	})
	return mux
}

// admit fills in the connection's facts and checks what the route demands.
func (u *Underlay) admit(r *http.Request, need access) (who string, err error) {
	who = hostOf(r)
	st := stateOf(r.Context())
	if st.conn == nil {
		c := &Conn{Remote: who}
		if c.Exporter, err = channel.Exporter(r.TLS); err != nil {
			return who, reason.Wrap(err, CodeInternal, "", "api: export keying material")
		}
		if len(r.TLS.PeerCertificates) > 0 {
			c.ClientSPKI = channel.SPKI(r.TLS.PeerCertificates[0])
		}
		st.conn = c
	}
	if need == anyone {
		return who, nil
	}
	set := u.cfg.Node.Set()
	switch {
	case set != nil:
		err = enroll.VerifyClient(r.TLS.PeerCertificates, set)
	case need == claimant || need == setbearer:
		err = u.admitClaimant(r)
	case u.cfg.Node.Status(r.Context()).State == StateStarting: // it does not know yet whether it is claimed
		return who, reason.Later(CodeNotStarted, "wait for its boot; see its status", "api: the sled is still starting")
	default:
		return who, reason.New(CodeForbidden, "enroll the sled first: sledvault rack enroll", "api: the sled is unclaimed and serves status and enrolment only")
	}
	if err != nil {
		err = &reason.Error{
			Code: CodeForbidden, Text: "api: client certificate refused", Cause: err,
			Hint: "use the folder that holds the rack's membership key",
		}
	}
	st.refused = nil
	if err != nil && need == setbearer && (set != nil || u.cfg.Node.ClaimFingerprint() != "") {
		st.refused, err = err, nil // what it brings may speak for itself: see putSet
	}
	return who, err
}

func (u *Underlay) admitClaimant(r *http.Request) error {
	fp := u.cfg.Node.ClaimFingerprint()
	if fp == "" {
		return reason.New(CodeForbidden, "write the fingerprint that sledvault rack new printed into [claim] fingerprint of the sled's configuration",
			"api: nobody may claim this sled")
	}
	return enroll.VerifyClaimant(r.TLS.PeerCertificates, fp)
}

func hostOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// Patterns lists the underlay API's routes as "METHOD path", for the test that holds openapi.json against them.
func (u *Underlay) Patterns() []string {
	var out []string
	for _, r := range u.routes() {
		out = append(out, r.pattern)
	}
	slices.SortFunc(out, strings.Compare)
	return out
}
