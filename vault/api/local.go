package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sledvault/sledvault/vault/reason"
)

// Role is what a local caller may do.
type Role string

// The roles. Each includes none of the others.
const (
	RoleObserve Role = "observe" // read status and device identities
	RoleUnlock  Role = "unlock"  // open and format disks, fetch disk keys
	RoleAgent   Role = "agent"   // set peers and the network configuration
	RoleOperate Role = "operate" // quorum calls
)

// Roles lists every role.
func Roles() []Role { return []Role{RoleObserve, RoleUnlock, RoleAgent, RoleOperate} }

// RoleRule gives a role to users and groups.
type RoleRule struct {
	Role Role     `toml:"name"`
	UIDs []uint32 `toml:"uids"`
	GIDs []uint32 `toml:"gids"`
}

// LocalConfig configures the local API.
type LocalConfig struct {
	Socket  string     // absolute path of the unix socket
	Rules   []RoleRule // empty: root and the daemon's own user have every role
	Node    Node
	Reasons *reason.Log
}

// Local is the local API of one sled.
type Local struct {
	cfg LocalConfig
	srv *http.Server
	ln  net.Listener
}

// route is one line of the API: method and path, the role it needs, what it does.
type route struct {
	pattern string
	role    Role
	handle  handler
}

// ListenLocal opens the socket. A socket left behind by an earlier life is replaced; one that answers is an error.
func ListenLocal(cfg LocalConfig) (*Local, error) {
	if c, err := net.Dial("unix", cfg.Socket); err == nil {
		_ = c.Close()
		return nil, reason.New("api-socket-busy", "stop the other sledvaultd, or give this one another [api] socket",
			"api: listen on %s: another process answers there", cfg.Socket)
	}
	if err := os.MkdirAll(filepath.Dir(cfg.Socket), 0o755); err != nil { //nolint:gosec // callers of every role must reach the socket
		return nil, reason.Wrap(err, "api-listen", "check [api] socket in the configuration", "api: make the socket's folder")
	}
	if err := os.Remove(cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, reason.Wrap(err, "api-listen", "remove the file by hand", "api: remove the old socket")
	}
	ln, err := net.Listen("unix", cfg.Socket)
	if err != nil {
		return nil, reason.Wrap(err, "api-listen", "check [api] socket in the configuration", "api: listen")
	}
	if err := os.Chmod(cfg.Socket, 0o666); err != nil { //nolint:gosec // who may do what is decided by peer credentials
		_ = ln.Close()
		return nil, reason.Wrap(err, "api-listen", "check the folder's permissions", "api: open the socket to callers")
	}
	l := &Local{cfg: cfg, ln: ln}
	l.srv = httpServer(l.mux(), cfg.Reasons, CodeNoHTTP, localName, func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, callerKey{}, peerOf(c))
	}, nil)
	return l, nil
}

// Serve answers until ctx ends.
func (l *Local) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = l.srv.Close() })
	defer stop()
	ln := newLimitListener(l.ln, maxConns, maxConnsEach, localName, func(who string) { l.cfg.Reasons.Count(CodeBusy, who, "too many connections") })
	if err := l.srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("api: serve %s: %w", l.cfg.Socket, err)
	}
	return nil
}

type callerKey struct{}

// peerOf asks the kernel who connected. Without an answer nobody is allowed anything.
func peerOf(c net.Conn) *Caller {
	if lc, ok := c.(*limitConn); ok {
		c = lc.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || credErr != nil {
		return nil
	}
	return &Caller{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}
}

// allows reports whether the rules give the caller the role.
func (l *Local) allows(c *Caller, role Role) bool {
	if c == nil {
		return false
	}
	if len(l.cfg.Rules) == 0 {
		return c.UID == 0 || int(c.UID) == os.Geteuid()
	}
	return slices.ContainsFunc(l.cfg.Rules, func(r RoleRule) bool {
		return r.Role == role && (slices.Contains(r.UIDs, c.UID) || slices.Contains(r.GIDs, c.GID))
	})
}

func (l *Local) mux() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range l.routes() {
		mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) {
			l.guard(w, r, rt.role, func(c Caller) { serveJSON(l.cfg.Reasons, c.name(), w, r, rt.handle) })
		})
	}
	mux.HandleFunc(routeKey, func(w http.ResponseWriter, r *http.Request) {
		l.guard(w, r, RoleUnlock, func(c Caller) { l.releaseKey(w, r, c) })
	})
	mux.HandleFunc(routeReset, func(w http.ResponseWriter, r *http.Request) {
		l.guard(w, r, RoleOperate, func(c Caller) { l.reset(w, r, c) })
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		received(w, r)
		c, _ := r.Context().Value(callerKey{}).(*Caller)
		writeError(l.cfg.Reasons, c.name(), w, r, &reason.Error{Code: CodeNotFound, Text: "api: no such route", Remedy: reason.Usage})
	})
	return mux
}

// localName names the process at the other end by its user.
func localName(c net.Conn) string { return peerOf(c).name() }

func (c *Caller) name() string {
	if c == nil {
		return "unknown caller"
	}
	return fmt.Sprintf("uid %d", c.UID)
}

// guard lets a request through if its caller has the role.
func (l *Local) guard(w http.ResponseWriter, r *http.Request, role Role, f func(Caller)) {
	received(w, r)
	c, _ := r.Context().Value(callerKey{}).(*Caller)
	if !l.allows(c, role) {
		writeError(l.cfg.Reasons, c.name(), w, r, reason.New(CodeForbidden,
			"give the user the role in an [[api.role]] table of the daemon's configuration", "api: %s lacks the role %q", c.name(), role))
		return
	}
	caller := *c
	caller.Role = role
	f(caller)
}

// maxWaitMS bounds how long an unlock may wait: a day.
const maxWaitMS = 24 * 60 * 60 * 1000

func (l *Local) routes() []route {
	n := l.cfg.Node
	rs := []route{
		{"GET /v1/status", RoleObserve, l.status},
		{"GET /v1/disks", RoleObserve, func(ctx context.Context, _ *http.Request) (any, error) {
			return DisksReply{Disks: n.Disks(ctx)}, nil
		}},
		{"GET /v1/tpm", RoleObserve, func(ctx context.Context, _ *http.Request) (any, error) { return n.TPMIdentity(ctx) }},
		{"GET /v1/sp", RoleObserve, func(ctx context.Context, _ *http.Request) (any, error) { return n.SPIdentity(ctx) }},
		{"POST /v1/unlock", RoleUnlock, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[UnlockRequest](r)
			if err != nil {
				return nil, err
			}
			if req.WaitMS < 0 || req.WaitMS > maxWaitMS {
				return nil, badField("wait_ms", fmt.Errorf("have %d, want 0 to %d", req.WaitMS, maxWaitMS))
			}
			disks, err := n.Unlock(ctx, req)
			return DisksReply{Disks: disks}, err
		}},
		{"POST /v1/disks/{id}/format", RoleUnlock, l.formatDisk},
		{"DELETE /v1/alarms", RoleOperate, func(ctx context.Context, _ *http.Request) (any, error) {
			return nil, n.ClearAlarms(ctx, callerOf(ctx, RoleOperate))
		}},
		{"PUT /v1/peers", RoleAgent, func(ctx context.Context, r *http.Request) (any, error) {
			req, err := body[PeersRequest](r)
			if err != nil {
				return nil, err
			}
			return nil, n.SetPeers(ctx, req.Peers)
		}},
	}
	rs = append(rs, networkRoutes(n)...)
	return append(rs, quorumRoutes(n, RoleOperate)...)
}

func (l *Local) formatDisk(ctx context.Context, r *http.Request) (any, error) {
	req, err := body[FormatRequest](r)
	if err != nil {
		return nil, err
	}
	return l.cfg.Node.FormatDisk(ctx, callerOf(ctx, RoleUnlock), r.PathValue("id"), req)
}

// callerOf is who made a request that was let through under a role.
func callerOf(ctx context.Context, role Role) Caller {
	c, _ := ctx.Value(callerKey{}).(*Caller)
	who := *c
	who.Role = role
	return who
}

// Patterns lists the local API's routes as "METHOD path", for the test that holds openapi.json against them.
func (l *Local) Patterns() []string {
	out := []string{routeKey, routeReset}
	for _, r := range l.routes() {
		out = append(out, r.pattern)
	}
	slices.SortFunc(out, strings.Compare)
	return out
}
