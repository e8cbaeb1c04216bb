package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sledvault/sledvault/vault/reason"
)

// Reasons of the APIs, counted under the caller's name.
const (
	CodeBadRequest   reason.Code = "api-bad-request"     // not HTTP, or a body that cannot be read
	CodeForbidden    reason.Code = "api-forbidden"       // the caller lacks the role or the certificate
	CodeNotFound     reason.Code = "api-not-found"       // no such route
	CodeUnknownDisk  reason.Code = "disk-unknown"        // no disk of that name is configured
	CodeBusy         reason.Code = "api-busy"            // too many requests at once
	CodeInternal     reason.Code = "internal"            // a defect
	CodeNotStarted   reason.Code = "not-started"         // the boot has not come far enough
	CodeTimeout      reason.Code = "deadline-passed"     // the caller's deadline passed
	CodeNoHTTP       reason.Code = "api-no-request"      // a connection that ended without one valid request
	CodeUnderlayConn reason.Code = "underlay-no-request" // the same on the underlay listener
)

// Limits of both servers.
const (
	maxBody       = 4 << 20          // bytes of a request body; an enrolment set has at most 512 KiB
	maxConns      = 256              // open connections
	maxConnsEach  = 64               // of one uid or one address, so that no stranger can hold them all
	headerTimeout = 10 * time.Second // for the TLS handshake, the request line and headers
	bodyTimeout   = 30 * time.Second // for a request body to arrive
	answerTimeout = 30 * time.Second // for an answer to be taken
	idleTimeout   = 5 * time.Minute
)

// handler is a request handler that returns what to send as JSON, or an error.
type handler func(ctx context.Context, r *http.Request) (any, error)

// connState counts what one connection was good for.
type connState struct {
	requests atomic.Int64
	who      string // as the counters name the far end
	conn     *Conn  // underlay only
	refused  error  // why the request's client certificate is not good, where a route serves it all the same
}

type connKey struct{}

func stateOf(ctx context.Context) *connState {
	s, _ := ctx.Value(connKey{}).(*connState)
	if s == nil {
		return &connState{}
	}
	return s
}

// received notes a request, and bounds how long whatever is left of it may take to arrive, also if it is refused.
func received(w http.ResponseWriter, r *http.Request) {
	stateOf(r.Context()).requests.Add(1)
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
}

// takeBody reads the whole body before a handler runs, bounded in size and time. From then on only the end of the
// connection or the handler itself ends the request.
func takeBody(w http.ResponseWriter, r *http.Request) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return &reason.Error{Code: CodeBadRequest, Text: fmt.Sprintf("api: read request body: %.200v", err), Remedy: reason.Usage}
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	r.Body = io.NopCloser(bytes.NewReader(b))
	return nil
}

// serveJSON runs a handler and writes its result or error. A panic is counted and ends the connection, not the daemon.
func serveJSON(reasons *reason.Log, who string, w http.ResponseWriter, r *http.Request, h handler) {
	defer func() {
		if p := recover(); p != nil {
			reasons.Count(CodeInternal, who, fmt.Sprintf("%s %s: panic: %.200v", r.Method, r.URL.Path, p))
			panic(http.ErrAbortHandler)
		}
	}()
	if err := takeBody(w, r); err != nil {
		writeError(reasons, who, w, r, err)
		return
	}
	v, err := h(r.Context(), r)
	if err != nil {
		writeError(reasons, who, w, r, err)
		return
	}
	if v == nil {
		v = struct{}{}
	}
	writeJSON(w, http.StatusOK, v)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		http.Error(w, "internal", http.StatusInternalServerError)
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(buf.Len())) // a flush sends all of it then: no end of chunks is to follow
	w.WriteHeader(status)
	_, _ = w.Write(buf.Bytes())
}

// ErrorOf turns any error into the form that crosses the API.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Code: reason.CodeOf(err), Text: err.Error(), Hint: reason.HintOf(err), Retry: reason.RemedyOf(err) == reason.Retry}
	if e.Code == "" {
		e.Code = CodeInternal
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			e.Code, e.Retry = CodeTimeout, true
		}
	}
	return e
}

func writeError(reasons *reason.Log, who string, w http.ResponseWriter, r *http.Request, err error) {
	e := ErrorOf(err)
	reasons.Count(e.Code, who, r.Method+" "+r.URL.Path+": "+e.Text)
	writeJSON(w, statusFor(e, err), e)
}

func statusFor(e *Error, err error) int {
	switch {
	case e.Code == CodeForbidden:
		return http.StatusForbidden
	case e.Code == CodeNotFound, e.Code == CodeUnknownDisk:
		return http.StatusNotFound
	case e.Code == CodeInternal:
		return http.StatusInternalServerError
	case e.Retry:
		return http.StatusServiceUnavailable
	case reason.RemedyOf(err) == reason.Usage:
		return http.StatusBadRequest
	}
	return http.StatusConflict
}

// body reads the JSON body of a request: bounded, no unknown fields, nothing behind it.
func body[T any](r *http.Request) (v T, err error) {
	dec := json.NewDecoder(r.Body) // bounded by takeBody
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return v, &reason.Error{Code: CodeBadRequest, Text: fmt.Sprintf("api: read request body: %.200v", err), Remedy: reason.Usage}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return v, &reason.Error{Code: CodeBadRequest, Text: "api: read request body: data behind the JSON value", Remedy: reason.Usage}
	}
	return v, nil
}

// httpServer makes a server with this package's limits. Connections that end without a request are counted.
func httpServer(h http.Handler, reasons *reason.Log, code reason.Code, who func(net.Conn) string, connContext func(context.Context, net.Conn) context.Context, closed func(*connState)) *http.Server {
	states := newConnTable()
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // counted below instead
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			s := &connState{who: who(c)}
			states.put(c, s)
			return connContext(context.WithValue(ctx, connKey{}, s), c)
		},
		ConnState: func(c net.Conn, st http.ConnState) {
			if st != http.StateClosed && st != http.StateHijacked {
				return
			}
			s := states.take(c)
			if s == nil {
				return
			}
			if s.requests.Load() == 0 {
				reasons.Count(code, s.who, "connection ended without one valid request")
			}
			if closed != nil {
				closed(s)
			}
		},
	}
}

// remoteName names the far end without its port, which a stranger can vary.
func remoteName(c net.Conn) string {
	if host, _, err := net.SplitHostPort(c.RemoteAddr().String()); err == nil {
		return host
	}
	return c.RemoteAddr().Network()
}
