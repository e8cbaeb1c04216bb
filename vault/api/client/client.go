// Package client calls a sled: [Local] through its unix socket, [Session] over the underlay network as the rack
// controller. Errors from a sled come back as the *reason.Error that the sled made, with its code and hint.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
)

// Codes of failures on this side.
const (
	CodeUnreachable reason.Code = "sled-unreachable" // no daemon answers there
	CodeBadAnswer   reason.Code = "sled-bad-answer"  // what answers is not a sledvault daemon
)

// maxAnswer bounds an answer in bytes.
const maxAnswer = 16 << 20

// Local calls the daemon of this machine.
type Local struct {
	socket string
	http   *http.Client
}

// NewLocal makes a client for a unix socket. Nothing is opened before the first call.
func NewLocal(socket string) *Local {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}, DisableKeepAlives: true}
	return &Local{socket: socket, http: &http.Client{Transport: t}}
}

// Status asks for the sled's status.
func (l *Local) Status(ctx context.Context) (s api.Status, err error) {
	return s, l.call(ctx, "GET", "/v1/status", nil, &s)
}

// StatusJSON asks for the sled's status as the sled wrote it.
func (l *Local) StatusJSON(ctx context.Context) (raw json.RawMessage, err error) {
	return raw, l.call(ctx, "GET", "/v1/status", nil, &raw)
}

// Disks lists the sled's disks.
func (l *Local) Disks(ctx context.Context) ([]api.Disk, error) {
	var r api.DisksReply
	err := l.call(ctx, "GET", "/v1/disks", nil, &r)
	return r.Disks, err
}

// Unlock opens every locked disk; below the threshold it waits up to wait.
func (l *Local) Unlock(ctx context.Context, wait time.Duration) ([]api.Disk, error) {
	var r api.DisksReply
	err := l.call(ctx, "POST", "/v1/unlock", api.UnlockRequest{WaitMS: wait.Milliseconds()}, &r)
	return r.Disks, err
}

// Format encrypts a disk under the rack's newest epoch.
func (l *Local) Format(ctx context.Context, id string, r api.FormatRequest) (d api.Disk, err error) {
	return d, l.call(ctx, "POST", "/v1/disks/"+url.PathEscape(id)+"/format", r, &d)
}

// TPM names the keys of the sled's TPM.
func (l *Local) TPM(ctx context.Context) (t api.TPMIdentity, err error) {
	return t, l.call(ctx, "GET", "/v1/tpm", nil, &t)
}

// SP asks the service processor who the sled is.
func (l *Local) SP(ctx context.Context) (s api.SPIdentity, err error) {
	return s, l.call(ctx, "GET", "/v1/sp", nil, &s)
}

// SetPeers replaces the list of peer addresses.
func (l *Local) SetPeers(ctx context.Context, peers []string) error {
	return l.call(ctx, "PUT", "/v1/peers", api.PeersRequest{Peers: peers}, nil)
}

// Config returns the latest committed configuration; null if there is none.
func (l *Local) Config(ctx context.Context) (c api.PrepareAndCommitRequest, err error) {
	return c, l.call(ctx, "GET", "/v1/quorum/config", nil, &c)
}

// call runs one request. Out is nil or a value for JSON.
func (l *Local) call(ctx context.Context, method, path string, in, out any) error {
	req, err := request(ctx, method, "http://sled"+path, in)
	if err != nil {
		return err
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return unreachable(l.socket, err)
	}
	return answer(resp, out)
}

func unreachable(where string, err error) error {
	e := reason.Later(CodeUnreachable, "start sledvaultd, or name its socket with --socket", "client: no daemon answers at %s", where)
	switch {
	case errors.Is(err, fs.ErrPermission):
		e = reason.New(CodeUnreachable, "run as a user that may reach the socket and has a role in the daemon's configuration", "client: %s may not be opened by this user", where)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e = reason.Later(api.CodeTimeout, "see sledvault status", "client: %s did not answer in time", where)
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED):
		e.Cause = err
	}
	return e
}

func request(ctx context.Context, method, target string, in any) (*http.Request, error) {
	var body io.Reader
	switch v := in.(type) {
	case nil:
	case []byte:
		body = bytes.NewReader(v)
	default:
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("client: encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	return http.NewRequestWithContext(ctx, method, target, body)
}

func answer(resp *http.Response, out any) error {
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return reason.Wrap(err, CodeBadAnswer, "try again", "client: read answer")
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return reason.Wrap(err, CodeBadAnswer, "compare the versions of sledvault and sledvaultd", "client: decode answer")
	}
	return nil
}

// refusal turns an error answer back into the error that the sled made.
func refusal(resp *http.Response) error {
	var e api.Error
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err := json.Unmarshal(b, &e); err != nil || e.Code == "" {
		return reason.New(CodeBadAnswer, "check the address", "client: answer with HTTP status %d is not from a sledvault daemon", resp.StatusCode)
	}
	out := &reason.Error{Code: e.Code, Text: e.Text, Hint: e.Hint}
	switch {
	case e.Retry:
		out.Remedy = reason.Retry
	case resp.StatusCode == http.StatusBadRequest, resp.StatusCode == http.StatusNotFound:
		out.Remedy = reason.Usage
	}
	return out
}

// reader is what http.ReadResponse wants of a connection.
func reader(c net.Conn) *bufio.Reader { return bufio.NewReaderSize(c, 64<<10) }
