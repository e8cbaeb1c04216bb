package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

func yield() { runtime.Gosched() }

func unixTransport(socket string) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
}

// raw sends a request as it is and returns the HTTP status and the error, if the answer is one.
func raw(t *testing.T, socket, method, path, body string) (int, api.Error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://sled"+path, strings.NewReader(body))
	must(t, err)
	resp, err := unixTransport(socket).RoundTrip(req)
	must(t, err)
	return statusAndError(t, resp)
}

func statusAndError(t *testing.T, resp *http.Response) (int, api.Error) {
	t.Helper()
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	var e api.Error
	if resp.StatusCode != http.StatusOK {
		if err := json.Unmarshal(b, &e); err != nil || e.Code == "" || e.Text == "" {
			t.Errorf("refusal without form: %d %s", resp.StatusCode, b)
		}
	}
	return resp.StatusCode, e
}

// sample is a request that each route accepts.
func sample(pattern string) (method, path, body string) {
	method, path, _ = strings.Cut(pattern, " ")
	path = strings.ReplaceAll(path, "{id}", "data0")
	sig := `"` + strings.Repeat("A", 86) + `=="`
	cert := `{"rack_id":"01000000-0000-0000-0000-000000000000","epoch":1,"config_digest":"` + strings.Repeat("A", 43) + `=","signature":` + sig + `}`
	switch path {
	case "/v1/quorum/configuration":
		body = `{"rack_id":"01000000-0000-0000-0000-000000000000","epoch":1,"members":["a:1","a:2","a:3"],"threshold":2,"last_committed_epoch":null,"grant":null}`
	case "/v1/quorum/upgrade":
		body = `{"rack_id":"01000000-0000-0000-0000-000000000000","epoch":2,"members":["a:1","a:2","a:3"],"threshold":2,"grant":null}`
	case "/v1/quorum/commit":
		body = `{"rack_id":"01000000-0000-0000-0000-000000000000","epoch":1,"certificate":` + cert + `}`
	case "/v1/network-config":
		if method == "PUT" {
			body = `{"generation":7,"blob":"e30="}`
		}
	case "/v1/quorum/proxy/commit":
		body = `{"destination":"a:1","request":{"rack_id":"01000000-0000-0000-0000-000000000000","epoch":1,"certificate":` + cert + `}}`
	case "/v1/quorum/proxy/prepare-and-commit":
		body = `{"destination":"a:1","request":{"config":` + configJSON() + `,"certificate":` + cert + `}}`
	case "/v1/quorum/proxy/status":
		path += "?part_number=a&serial_number=1"
	case "/v1/peers":
		body = `{"peers":[]}`
	case "/v1/seal/reset":
		body = `{"baseboard":"` + sled.String() + `","leave_rack":false}`
	case "/v1/unlock", "/v1/disks/data0/format", "/v1/disks/data0/key":
		body = `{}`
	case "/v1/quorum/prepare-and-commit":
		body = `{"config":` + configJSON() + `,"certificate":` + cert + `}`
	case "/v1/attest", "/v1/enroll/begin":
		body = `{"nonce":"` + strings.Repeat("A", 43) + `="}`
	case "/v1/enroll/activate":
		body = `{}`
	case "/v1/enroll/set":
		body = "cbor"
	}
	return method, path, body
}

// TestRoles holds every route against every role: exactly the callers with the right role get through.
func TestRoles(t *testing.T) {
	t.Parallel()
	need := routeDocs()
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	for _, have := range append(api.Roles(), "") {
		f := newFake()
		rules := []api.RoleRule{{Role: api.RoleObserve, UIDs: []uint32{uid + 1}, GIDs: []uint32{gid + 1}}} // somebody else
		switch have {
		case "":
		case api.RoleUnlock: // by group
			rules = append(rules, api.RoleRule{Role: have, GIDs: []uint32{gid}})
		default:
			rules = append(rules, api.RoleRule{Role: have, UIDs: []uint32{uid}})
		}
		l, socket := serveLocal(t, f, rules...)
		for _, p := range l.Patterns() {
			before := f.reasons.Total(api.CodeForbidden)
			method, path, body := sample(p)
			status, e := raw(t, socket, method, path, body)
			if need[p].role == have {
				if status != http.StatusOK {
					t.Errorf("%s with role %q: have %d %+v", p, have, status, e)
				}
				continue
			}
			if status != http.StatusForbidden || e.Code != api.CodeForbidden || e.Hint == "" || e.Retry || f.reasons.Total(api.CodeForbidden) != before+1 {
				t.Errorf("%s with role %q: have %d %+v, want a counted refusal", p, have, status, e)
			}
		}
		if have == "" && len(f.made()) != 0 {
			t.Errorf("a caller without a role reached %v", f.made())
		}
	}
}

// TestNoRules: root and the daemon's own user may do everything.
func TestNoRules(t *testing.T) {
	t.Parallel()
	f := newFake()
	l, socket := serveLocal(t, f)
	for _, p := range l.Patterns() {
		method, path, body := sample(p)
		if status, e := raw(t, socket, method, path, body); status != http.StatusOK {
			t.Errorf("%s: have %d %+v", p, status, e)
		}
	}
	for _, c := range f.callers {
		if c.Role != api.RoleUnlock && c.Role != api.RoleOperate || c.UID != uint32(os.Getuid()) || c.PID != int32(os.Getpid()) {
			t.Errorf("caller: have %+v", c)
		}
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, socket := serveLocal(t, f)
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code               reason.Code
	}{
		"no such route":      {"GET", "/v1/nothing", "", 404, api.CodeNotFound},
		"other method":       {"DELETE", "/v1/status", "", 404, api.CodeNotFound},
		"no version":         {"GET", "/status", "", 404, api.CodeNotFound},
		"underlay route":     {"POST", "/v1/enroll/begin", "{}", 404, api.CodeNotFound},
		"no body":            {"POST", "/v1/unlock", "", 400, api.CodeBadRequest},
		"not JSON":           {"POST", "/v1/unlock", "wait please", 400, api.CodeBadRequest},
		"unknown field":      {"POST", "/v1/unlock", `{"wait_ms":1,"force":true}`, 400, api.CodeBadRequest},
		"trailing data":      {"POST", "/v1/unlock", `{"wait_ms":1} {}`, 400, api.CodeBadRequest},
		"trailing noise":     {"POST", "/v1/unlock", `{"wait_ms":1}]`, 400, api.CodeBadRequest},
		"wrong type":         {"POST", "/v1/unlock", `{"wait_ms":"soon"}`, 400, api.CodeBadRequest},
		"array":              {"POST", "/v1/unlock", `[]`, 400, api.CodeBadRequest},
		"negative wait":      {"POST", "/v1/unlock", `{"wait_ms":-1}`, 400, api.CodeBadRequest},
		"endless wait":       {"POST", "/v1/unlock", `{"wait_ms":9223372036854775807}`, 400, api.CodeBadRequest},
		"too large":          {"POST", "/v1/unlock", `{"wait_ms":1` + strings.Repeat(" ", 5<<20) + `}`, 400, api.CodeBadRequest},
		"deep nesting":       {"POST", "/v1/unlock", strings.Repeat("[", 1<<20), 400, api.CodeBadRequest},
		"bad rack id":        {"PUT", "/v1/quorum/commit", `{"rack_id":"x"}`, 400, api.CodeBadRequest},
		"short signature":    {"PUT", "/v1/quorum/commit", `{"certificate":{"config_digest":"` + strings.Repeat("A", 43) + `=","signature":"AA=="}}`, 400, api.CodeBadRequest},
		"short digest":       {"PUT", "/v1/quorum/commit", `{"certificate":{"config_digest":"AA=="}}`, 400, api.CodeBadRequest},
		"bad baseboard":      {"POST", "/v1/quorum/configuration", `{"members":["no colon"]}`, 400, api.CodeBadRequest},
		"bad configuration":  {"PUT", "/v1/quorum/prepare-and-commit", `{"config":{"epoch":1}}`, 400, api.CodeBadRequest},
		"null configuration": {"PUT", "/v1/quorum/prepare-and-commit", `{"config":null}`, 400, api.CodeBadRequest},
		"bad after":          {"GET", "/v1/quorum/coordinator?after=-1", "", 400, api.CodeBadRequest},
	} {
		before := f.reasons.Total(c.code)
		status, e := raw(t, socket, c.method, c.path, c.body)
		if status != c.status || e.Code != c.code || f.reasons.Total(c.code) != before+1 {
			t.Errorf("%s: have %d %+v, want %d %s, counted", name, status, e, c.status, c.code)
		}
	}
	if got := f.made(); len(got) != 0 {
		t.Errorf("bad requests reached the node: %v", got)
	}
}

// TestErrorForms: what the node refuses keeps its code and hint on the way to the caller.
func TestErrorForms(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, socket := serveLocal(t, f)
	for name, c := range map[string]struct {
		err    error
		status int
		want   api.Error
	}{
		"operator": {reason.New("a-code", "do this", "it failed"), 409, api.Error{Code: "a-code", Text: "it failed", Hint: "do this"}},
		"retry":    {reason.Later("below-threshold", "wait", "have 1, want 2: missing a:1"), 503, api.Error{Code: "below-threshold", Text: "have 1, want 2: missing a:1", Hint: "wait", Retry: true}},
		"usage":    {&reason.Error{Code: "odd", Text: "no", Remedy: reason.Usage}, 400, api.Error{Code: "odd", Text: "no"}},
		"unknown":  {reason.New(api.CodeUnknownDisk, "", "no disk"), 404, api.Error{Code: api.CodeUnknownDisk, Text: "no disk"}},
		"plain":    {errors.New("broken"), 500, api.Error{Code: api.CodeInternal, Text: "broken"}},
		"deadline": {fmt.Errorf("waiting: %w", context.DeadlineExceeded), 503, api.Error{Code: api.CodeTimeout, Text: "waiting: context deadline exceeded", Retry: true}},
	} {
		f.setFail(func(string) error { return c.err })
		status, e := raw(t, socket, "POST", "/v1/unlock", `{}`)
		if status != c.status || e != c.want {
			t.Errorf("%s: have %d %+v, want %d %+v", name, status, e, c.status, c.want)
		}
		_, err := client.NewLocal(socket).Unlock(t.Context(), 0)
		if reason.CodeOf(err) != c.want.Code || reason.HintOf(err) != c.want.Hint || (reason.RemedyOf(err) == reason.Retry) != c.want.Retry {
			t.Errorf("%s: client: have %#v", name, err)
		}
	}
}

// TestNoise: a megabyte of noise, and callers that say nothing, are counted and change nothing.
func TestNoise(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, socket := serveLocal(t, f)
	noise(t, "unix", socket)
	awaitCount(t, f.reasons, api.CodeNoHTTP, 1)
	c, err := net.Dial("unix", socket)
	must(t, err)
	must(t, c.Close())
	awaitCount(t, f.reasons, api.CodeNoHTTP, 2)
	_, err = client.NewLocal(socket).Status(t.Context())
	must(t, err)
	entries := f.reasons.Entries()
	if len(entries) != 1 || entries[0].Peer != fmt.Sprintf("uid %d", os.Getuid()) || f.reasons.Total(api.CodeNoHTTP) != 2 {
		t.Errorf("have %+v", entries)
	}
}

// noise writes a megabyte of it and reads whatever comes.
func noise(t *testing.T, network, addr string) {
	t.Helper()
	c, err := net.Dial(network, addr)
	must(t, err)
	defer func() { _ = c.Close() }()
	b := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(b)
	go func() { _, _ = c.Write(b) }()
	_, _ = io.Copy(io.Discard, c) // until the server hangs up
}

// TestConnectionShare: one caller cannot take all places, and places come back.
func TestConnectionShare(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, socket := serveLocal(t, f)
	var held []net.Conn
	for range 64 {
		c, err := net.Dial("unix", socket)
		must(t, err)
		held = append(held, c)
	}
	extra, err := net.Dial("unix", socket)
	must(t, err)
	if _, err := extra.Read(make([]byte, 1)); err == nil {
		t.Error("a connection beyond the share was served")
	}
	awaitCount(t, f.reasons, api.CodeBusy, 1)
	for _, c := range held {
		must(t, c.Close())
	}
	awaitCount(t, f.reasons, api.CodeNoHTTP, 64)
	for range 200 { // more than there are places: each request gives its own back, keys too
		must(t, client.NewLocal(socket).Key(t.Context(), "data0", io.Discard))
	}
	if n := f.reasons.Total(api.CodeBusy); n != 1 {
		t.Errorf("have %d busy answers, want 1", n)
	}
}

func TestKeyRelease(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, socket := serveLocal(t, f)
	c, err := net.Dial("unix", socket)
	must(t, err)
	_, err = io.WriteString(c, "POST /v1/disks/data0/key HTTP/1.1\r\nHost: sled\r\nContent-Length: 2\r\n\r\n{}")
	must(t, err)
	got, err := io.ReadAll(c) // the connection ends behind the last byte
	must(t, err)
	want := append([]byte("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Length: 32\r\n\r\n"), f.key...)
	if !bytes.Equal(got, want) {
		t.Errorf("have %q, want %q", got, want)
	}
	var b bytes.Buffer
	must(t, client.NewLocal(socket).Key(t.Context(), "data0", &b))
	if !bytes.Equal(b.Bytes(), f.key) {
		t.Errorf("client: have %x", b.Bytes())
	}
	f.setFail(func(string) error {
		return reason.New("release-record", "free space", "the release could not be recorded")
	})
	b.Reset()
	err = client.NewLocal(socket).Key(t.Context(), "data0", &b)
	if reason.CodeOf(err) != "release-record" || b.Len() != 0 {
		t.Errorf("unrecorded release: have %v and %d bytes", err, b.Len())
	}
	if f.reasons.Total("release-record") != 1 {
		t.Error("the refusal was not counted")
	}
}

// emptyKey releases a key that was wiped meanwhile.
type emptyKey struct{ *fakeNode }

func (emptyKey) ReleaseKey(context.Context, api.Caller, string) (secret.DiskKey, error) {
	return secret.DiskKey{}, nil
}

// TestKeyWiped: a key that is gone before it is sent gives an error, never a short or empty answer that passes as one.
func TestKeyWiped(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "sv")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := api.ListenLocal(api.LocalConfig{Socket: dir + "/s", Node: emptyKey{newFake()}, Reasons: reason.NewLog()})
	must(t, err)
	serve(t, l.Serve)
	var b bytes.Buffer
	if err := client.NewLocal(dir+"/s").Key(t.Context(), "data0", &b); err == nil || b.Len() != 0 {
		t.Errorf("have %v and %d bytes", err, b.Len())
	}
}

// TestCallerGone: a caller that hangs up ends its request.
func TestCallerGone(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.block, f.inside = make(chan struct{}), make(chan struct{})
	_, socket := serveLocal(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := client.NewLocal(socket).Unlock(ctx, time.Hour); done <- err }()
	<-f.inside
	cancel()
	if err := <-done; reason.CodeOf(err) != api.CodeTimeout {
		t.Errorf("have %v", err)
	}
	for len(f.made()) == 0 { // the handler came back although nobody unblocked it
		yield()
	}
}

// TestPanic: a defect ends the connection, is counted, and nothing else happens.
func TestPanic(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, socket := serveLocal(t, f)
	f.setFail(func(call string) error {
		if call == "unlock" {
			panic("defect")
		}
		return nil
	})
	if _, err := client.NewLocal(socket).Unlock(t.Context(), 0); err == nil {
		t.Error("want an error")
	}
	awaitCount(t, f.reasons, api.CodeInternal, 1)
	f.setFail(nil)
	_, err := client.NewLocal(socket).Status(t.Context())
	must(t, err)
}

func TestSocket(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, socket := serveLocal(t, f)
	if _, err := api.ListenLocal(api.LocalConfig{Socket: socket, Node: f, Reasons: f.reasons}); reason.CodeOf(err) != "api-socket-busy" || reason.HintOf(err) == "" {
		t.Errorf("second daemon: have %v", err)
	}
	fi, err := os.Stat(socket)
	must(t, err)
	if fi.Mode().Perm() != 0o666 {
		t.Errorf("have mode %v: who may do what is decided by peer credentials", fi.Mode())
	}
	stale := socket + "2"
	ln, err := net.Listen("unix", stale)
	must(t, err)
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, ln.Close())
	l, err := api.ListenLocal(api.LocalConfig{Socket: stale, Node: f, Reasons: f.reasons})
	must(t, err)
	serve(t, l.Serve)
}

func TestQuorumForms(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, socket := serveLocal(t, f)
	c, err := client.NewLocal(socket).Config(t.Context())
	must(t, err)
	if c.Certificate != nil || string(c.Config) != "null" {
		t.Errorf("nothing committed: have %+v", c)
	}
	f.config = config()
	f.cert = &quorum.Certificate{RackID: f.config.RackID, Epoch: f.config.Epoch, Signature: quorum.Signature{9}}
	c, err = client.NewLocal(socket).Config(t.Context())
	must(t, err)
	back, err := c.Certificate.ToQuorum()
	must(t, err)
	if *back != *f.cert || string(c.Config) != configJSON() {
		t.Errorf("have %s %+v", c.Config, back)
	}
}
