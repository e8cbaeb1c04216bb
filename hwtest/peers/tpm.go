//go:build linux

package peers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/swtpm"
)

// foreignTPM is a software TPM as the peers' tools reach it: on two neighbouring TCP ports.
type foreignTPM struct {
	port int
	dir  string
	cmd  *exec.Cmd
	done chan struct{}
}

// startForeign starts a TPM and waits until its port answers. It dies with this program.
func startForeign(ctx context.Context, dir string) (*foreignTPM, error) {
	bin, err := swtpm.Find()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("peers: TPM: %w", err)
	}
	port, err := twoPorts()
	if err != nil {
		return nil, err
	}
	t := &foreignTPM{port: port, dir: dir, done: make(chan struct{})}
	t.cmd = exec.Command(bin, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--flags", "not-need-init,startup-clear",
		"--server", fmt.Sprintf("type=tcp,bindaddr=127.0.0.1,port=%d", port), "--ctrl", fmt.Sprintf("type=tcp,bindaddr=127.0.0.1,port=%d", port+1))
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig goes by the thread that started the child
		defer runtime.UnlockOSThread()
		err := t.cmd.Start()
		started <- err
		if err == nil {
			_ = t.cmd.Wait() // it is killed in the end
			close(t.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("peers: start a TPM: %w", err)
	}
	if err := t.ready(ctx); err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

// twoPorts finds two free ports in a row. Somebody may take them before the TPM does; the run then fails and says so.
func twoPorts() (int, error) {
	for range 50 {
		a, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := a.Addr().(*net.TCPAddr).Port
		b, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		_ = a.Close()
		if err == nil {
			_ = b.Close()
			return port, nil
		}
	}
	return 0, errors.New("peers: no two free ports in a row on 127.0.0.1")
}

// ready waits until the control port, which is bound last, takes connections.
func (t *foreignTPM) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", t.port+1))
		if err == nil {
			return c.Close()
		}
		select {
		case <-t.done:
			return errors.New("peers: the TPM ended at its start")
		case <-ctx.Done():
			return fmt.Errorf("peers: the TPM is not ready: %w", err)
		case <-time.After(wait):
		}
	}
}

func (t *foreignTPM) stop() {
	_ = t.cmd.Process.Kill() // it may be gone already
	<-t.done
}

func (t *foreignTPM) address() string { return fmt.Sprintf("host=127.0.0.1,port=%d", t.port) }

func (t *foreignTPM) call(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	return call(ctx, []string{"TPM2TOOLS_TCTI=swtpm:" + t.address()}, stdin, argv...)
}

// flush empties the TPM of what the tools leave loaded; without it they fail after a few calls.
func (t *foreignTPM) flush(ctx context.Context) error {
	for _, what := range []string{"-t", "-l", "-s"} {
		if _, err := t.call(ctx, nil, "tpm2_flushcontext", what); err != nil {
			return err
		}
	}
	return nil
}

// contender is a way of locking a secret to a TPM.
type contender struct {
	who, what string
	open      func(context.Context) ([]byte, error)
}

// pcr is the register that the peers bind to, extended so that their policies mean something.
const pcr = "sha256:16"

// contenders has each of the peers lock the secret to the TPM.
func (b *bench) contenders(ctx context.Context, t *foreignTPM) (out []contender, err error) {
	digest := "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	if _, err := t.call(ctx, nil, "tpm2_pcrextend", "16:sha256="+digest); err != nil {
		return nil, err
	}
	for _, prepare := range []func(context.Context, *foreignTPM) (contender, error){b.clevisTPM, b.tpmTools, b.systemdCreds} {
		c, err := prepare(ctx, t)
		if err != nil {
			return nil, err
		}
		if c.open != nil {
			out = append(out, c)
		}
		if err := t.flush(ctx); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (b *bench) clevisTPM(ctx context.Context, t *foreignTPM) (contender, error) {
	jwe, err := t.call(ctx, b.secret, "clevis", "encrypt", "tpm2", `{"pcr_bank":"sha256","pcr_ids":"16"}`)
	return contender{"clevis tpm2", "clevis decrypt", func(ctx context.Context) ([]byte, error) {
		return t.call(ctx, jwe, "clevis", "decrypt")
	}}, err
}

func (b *bench) tpmTools(ctx context.Context, t *foreignTPM) (contender, error) {
	in := func(name string) string { return filepath.Join(t.dir, name) }
	c := contender{"tpm2-tools", "tpm2_load and tpm2_unseal, flushing after each", func(ctx context.Context) ([]byte, error) {
		if _, err := t.call(ctx, nil, "tpm2_load", "-Q", "-C", in("prim.ctx"), "-u", in("pub"), "-r", in("priv"), "-c", in("seal.ctx")); err != nil {
			return nil, err
		}
		if _, err := t.call(ctx, nil, "tpm2_flushcontext", "-t"); err != nil {
			return nil, err
		}
		return t.call(ctx, nil, "tpm2_unseal", "-p", "pcr:"+pcr, "-c", in("seal.ctx"))
	}}
	for _, argv := range [][]string{
		{"tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc256", "-c", in("prim.ctx")},
		{"tpm2_pcrread", "-Q", "-o", in("pcrs"), pcr},
		{"tpm2_createpolicy", "-Q", "--policy-pcr", "-l", pcr, "-f", in("pcrs"), "-L", in("policy")},
		{"tpm2_create", "-Q", "-C", in("prim.ctx"), "-u", in("pub"), "-r", in("priv"), "-L", in("policy"), "-i", "-"},
	} {
		if _, err := t.call(ctx, b.secret, argv...); err != nil {
			return c, err
		}
		if err := t.flush(ctx); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (b *bench) systemdCreds(ctx context.Context, t *foreignTPM) (contender, error) {
	const bin = "/usr/bin/systemd-creds"
	device := "--tpm2-device=swtpm:" + t.address()
	cred, err := t.call(ctx, b.secret, bin, "encrypt", "--with-key=tpm2", device, "--tpm2-pcrs=16", "--name=share", "-", "-")
	if err != nil {
		b.note("systemd-creds is left out: %v", err)
		return contender{}, nil
	}
	return contender{"systemd-creds", "systemd-creds decrypt", func(ctx context.Context) ([]byte, error) {
		return t.call(ctx, cred, bin, "decrypt", device, "--name=share", "-", "-")
	}}, nil
}
