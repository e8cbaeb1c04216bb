package client_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/reason"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// says serves one fixed answer to every connection on a unix socket.
func says(t *testing.T, answer string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sv") // short: unix sockets have short names
	must(t, err)
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { _ = l.Close(); _ = os.RemoveAll(dir) })
	go answerAll(l, answer)
	return socket
}

func answerAll(l net.Listener, answer string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = c.Read(make([]byte, 4096)) // the request fits
			_, _ = io.WriteString(c, answer)
			_ = c.Close()
		}()
	}
}

// TestStrangeDaemons: whatever answers at the socket, the caller gets a typed error with a next step, and a key comes
// whole or not at all.
func TestStrangeDaemons(t *testing.T) {
	t.Parallel()
	key := strings.Repeat("K", 32)
	ok := "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\nContent-Length: "
	for name, c := range map[string]struct {
		answer    string
		key, call reason.Code // "" = works
	}{
		"a key":           {ok + "32\r\n\r\n" + key, "", client.CodeBadAnswer},
		"silence":         {"", client.CodeBadAnswer, client.CodeUnreachable},
		"noise":           {"\x00\x01\x02", client.CodeBadAnswer, client.CodeUnreachable},
		"short key":       {ok + "32\r\n\r\n" + key[:31], client.CodeBadAnswer, client.CodeBadAnswer},
		"announced short": {ok + "31\r\n\r\n" + key[:31], client.CodeBadAnswer, client.CodeBadAnswer},
		"announced long":  {ok + "33\r\n\r\n" + key + "K", client.CodeBadAnswer, client.CodeBadAnswer},
		"no length":       {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + key, client.CodeBadAnswer, client.CodeBadAnswer},
		"chunked":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n" + key + "\r\n0\r\n\r\n", client.CodeBadAnswer, client.CodeBadAnswer},
		"endless head":    {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 20<<10), client.CodeBadAnswer, client.CodeUnreachable},
		"other server":    {"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nsorry", client.CodeBadAnswer, client.CodeBadAnswer},
		"refusal":         {"HTTP/1.1 403 Forbidden\r\nContent-Length: 68\r\n\r\n" + `{"code":"api-forbidden","error":"no","hint":"do this","retry":false}`, api.CodeForbidden, api.CodeForbidden},
	} {
		l := client.NewLocal(says(t, c.answer))
		var b bytes.Buffer
		err := l.Key(t.Context(), "data0", &b)
		if reason.CodeOf(err) != c.key || (err == nil) != (b.String() == key) || err != nil && (b.Len() != 0 || reason.HintOf(err) == "") {
			t.Errorf("%s: key: have %v and %d bytes, want %q", name, err, b.Len(), c.key)
		}
		if _, err := l.Status(t.Context()); reason.CodeOf(err) != c.call || reason.HintOf(err) == "" {
			t.Errorf("%s: status: have %v, want %q", name, err, c.call)
		}
	}
}

func TestNobody(t *testing.T) {
	t.Parallel()
	l := client.NewLocal(filepath.Join(t.TempDir(), "absent"))
	for name, err := range map[string]error{
		"status": func() error { _, err := l.Status(t.Context()); return err }(),
		"key":    l.Key(t.Context(), "data0", io.Discard),
	} {
		if reason.CodeOf(err) != client.CodeUnreachable || reason.RemedyOf(err) != reason.Retry || reason.HintOf(err) == "" {
			t.Errorf("%s: have %v", name, err)
		}
	}
}

// TestMute: a daemon that hangs costs no more time than the caller gave.
func TestMute(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "sv")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s")) // accepts into its backlog, never answers
	must(t, err)
	defer func() { _ = l.Close() }()
	for name, f := range map[string]func(context.Context, *client.Local) error{
		"status": func(ctx context.Context, l *client.Local) error { _, err := l.Status(ctx); return err },
		"key":    func(ctx context.Context, l *client.Local) error { return l.Key(ctx, "data0", io.Discard) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := f(ctx, client.NewLocal(filepath.Join(dir, "s")))
		cancel()
		if reason.CodeOf(err) != api.CodeTimeout || reason.RemedyOf(err) != reason.Retry {
			t.Errorf("%s: have %v", name, err)
		}
	}
}

// TestSessionMute: a sled that hangs in the middle of a call ends the call with the caller's deadline, and the session
// with it.
func TestSessionMute(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	l, err := tls.Listen("tcp", "127.0.0.1:0", api.ServerTLS(cert))
	must(t, err)
	defer func() { _ = l.Close() }()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(io.Discard, c) // takes everything, says nothing
		}
	}()
	s, err := client.Open(t.Context(), l.Addr().String(), cert)
	must(t, err)
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Status(ctx); reason.CodeOf(err) != api.CodeTimeout || reason.RemedyOf(err) != reason.Retry {
		t.Errorf("have %v", err)
	}
	if _, err := s.Status(t.Context()); reason.RemedyOf(err) != reason.Retry {
		t.Errorf("a session after a broken call: have %v", err)
	}
	if _, err := client.Open(t.Context(), "127.0.0.1:1", cert); reason.CodeOf(err) != client.CodeUnreachable || reason.RemedyOf(err) != reason.Retry {
		t.Errorf("nobody there: have %v", err)
	}
}
