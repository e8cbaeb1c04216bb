//go:build linux

package peers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds one call of a peer.
const patience = 5 * time.Minute

// tangServer serves one tang as systemd's socket unit does: a tangd for every connection.
type tangServer struct {
	db   string
	addr string

	mu   sync.Mutex
	ln   net.Listener
	mute bool // accept and never answer
	held []net.Conn
	wg   sync.WaitGroup
}

// startTang makes keys in a new folder and serves them on loopback.
func startTang(ctx context.Context, db string) (*tangServer, error) {
	if err := os.Mkdir(db, 0o700); err != nil {
		return nil, fmt.Errorf("peers: tang: %w", err)
	}
	if out, err := exec.CommandContext(ctx, tangdKeygen, db).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("peers: tangd-keygen: %w: %.200s", err, out)
	}
	s := &tangServer{db: db, addr: "127.0.0.1:0"}
	return s, s.up()
}

// up listens, at the same address as before.
func (s *tangServer) up() error {
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("peers: tang: %w", err)
	}
	s.ln, s.addr = ln, ln.Addr().String()
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // closed
			}
			s.wg.Go(func() { s.serve(c) })
		}
	})
	return nil
}

// down refuses connections from now on.
func (s *tangServer) down() error {
	err := s.ln.Close()
	s.wg.Wait()
	return err
}

func (s *tangServer) setMute(mute bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mute = mute
	for _, c := range s.held {
		_ = c.Close()
	}
	s.held = nil
}

func (s *tangServer) serve(c net.Conn) {
	s.mu.Lock()
	if s.mute {
		s.held = append(s.held, c)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	defer func() { _ = c.Close() }()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	cmd := exec.Command(tangd, s.db)
	cmd.Stdin, cmd.Stdout = f, f
	_ = cmd.Run() // the client sees what went wrong
}

// advertisement fetches the server's signed keys into a file, so that clevis does not ask whether to trust them.
func (s *tangServer) advertisement(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+"/adv", nil)
	if err != nil {
		return err
	}
	req.Close = true // tangd lives as long as its connection
	rsp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return fmt.Errorf("peers: tang: advertisement: %w", err)
	}
	defer func() { _ = rsp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(rsp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("peers: tang: advertisement: %w", err)
	}
	return os.WriteFile(path, b, 0o600)
}

// tangs are n servers and a secret that clevis has bound to k of them.
type tangs struct {
	servers []*tangServer
	sealed  []byte
	secret  []byte
}

func (b *bench) startTangs(ctx context.Context, name string, k, n int) (t *tangs, err error) {
	t = &tangs{secret: b.secret}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.stop())
		}
	}()
	type pin struct {
		URL string `json:"url"`
		Adv string `json:"adv"`
	}
	var pins []pin
	for i := range n {
		db := filepath.Join(b.dir, fmt.Sprintf("tang-%s-%d", name, i))
		s, err := startTang(ctx, db)
		if err != nil {
			return t, err
		}
		t.servers = append(t.servers, s)
		if err := s.advertisement(ctx, db+".jws"); err != nil {
			return t, err
		}
		pins = append(pins, pin{"http://" + s.addr, db + ".jws"})
	}
	cfg, err := json.Marshal(map[string]any{"t": k, "pins": map[string]any{"tang": pins}})
	if err != nil {
		return t, err
	}
	t.sealed, err = call(ctx, nil, b.secret, "clevis", "encrypt", "sss", string(cfg))
	return t, err
}

func (t *tangs) stop() error {
	var errs []error
	for _, s := range t.servers {
		s.setMute(false)
		errs = append(errs, s.down())
	}
	return errors.Join(errs...)
}

// decrypt has clevis open the secret.
func (t *tangs) decrypt(ctx context.Context) error {
	out, err := call(ctx, nil, t.sealed, "clevis", "decrypt")
	return same(out, t.secret, err)
}

// call runs a peer's program.
func call(ctx context.Context, env []string, stdin []byte, argv ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := scratch()
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	said, err := scratch()
	if err != nil {
		return nil, err
	}
	defer func() { _ = said.Close() }()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), bytes.NewReader(stdin), out, said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("peers: %s: %w: %.300s", argv[0], err, content(said))
	}
	return content(out), nil
}

// scratch is a file without a name. Programs write to files here and not to pipes, because the end of a pipe comes when
// the last helper of a program has ended, and clevis leaves helpers behind that wait for mute servers.
func scratch() (*os.File, error) {
	fd, err := unix.MemfdCreate("svbench", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("peers: memory for output: %w", err)
	}
	return os.NewFile(uintptr(fd), "svbench"), nil
}

// content is the beginning of what was written to a file.
func content(f *os.File) []byte {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		return nil // the caller misses what should be there
	}
	return bytes.TrimSuffix(b, []byte("\n"))
}

// same makes sure that a peer gave the secret back.
func same(have, want []byte, err error) error {
	if err == nil && !bytes.Equal(have, want) {
		err = fmt.Errorf("peers: have %d bytes that are not the secret, want its %d", len(have), len(want))
	}
	return err
}
