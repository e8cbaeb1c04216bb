package channel_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/channel/channeltest"
	"github.com/sledvault/sledvault/rot/rottest"
	"github.com/sledvault/sledvault/vault/reason"
)

func newIdentity(tb testing.TB) *channel.Identity {
	tb.Helper()
	i, err := channel.NewIdentity()
	if err != nil {
		tb.Fatal(err)
	}
	return i
}

// accepting runs one Accept and returns the far end and where its error will be.
func accepting(tb testing.TB, c *channel.Config) (net.Conn, <-chan error) {
	tb.Helper()
	near, far := net.Pipe()
	tb.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	done := make(chan error, 1)
	go func() {
		_, err := c.Accept(tb.Context(), far)
		done <- err
	}()
	return near, done
}

// stranger opens TLS to an acceptor as a sled would, and then leaves the frames to the test.
func stranger(tb testing.TB, c *channel.Config) (*tls.Conn, <-chan error) {
	tb.Helper()
	near, done := accepting(tb, c)
	t := tls.Client(near, newIdentity(tb).TLSConfig())
	if err := t.Handshake(); err != nil {
		tb.Fatal(err)
	}
	return t, done
}

// TestProfile: a peer that does not keep to the TLS profile gets no hello.
func TestProfile(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 1)
	for name, edit := range map[string]func(*tls.Config){
		"TLS 1.2":                func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"classical key exchange": func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256} },
		"no protocol":            func(c *tls.Config) { c.NextProtos = nil },
		"other protocol":         func(c *tls.Config) { c.NextProtos = []string{"h2"} },
		"no certificate": func(c *tls.Config) {
			c.Certificates = nil
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
		},
		"two certificates": func(c *tls.Config) {
			two := c.Certificates[0]
			two.Certificate = [][]byte{two.Certificate[0], two.Certificate[0]}
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &two, nil }
		},
		"other kind of key": func(c *tls.Config) {
			_, key, _ := ed25519.GenerateKey(rand.Reader)
			other := selfSigned(t, key.Public(), key, time.Unix(0, 0), time.Unix(0, 0))
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &other, nil }
		},
	} {
		near, done := accepting(t, r.Sleds[0].Channel)
		c := newIdentity(t).TLSConfig()
		c.VerifyConnection = nil // the stranger minds nothing
		edit(c)
		x := tls.Client(near, c)
		_ = x.HandshakeContext(t.Context())
		go func() { _, _ = io.Copy(io.Discard, x) }()
		if err := <-done; reason.CodeOf(err) != channel.CodeTLS || reason.HintOf(err) == "" {
			t.Errorf("%s: have %v", name, err)
		}
	}
}

func selfSigned(tb testing.TB, public, private any, notBefore, notAfter time.Time) tls.Certificate {
	tb.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: notBefore, NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// TestGarbage: whatever a stranger sends ends in a typed error, in bounded memory.
func TestGarbage(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 1)
	hello := func(edit func(*channel.Hello)) []byte {
		h := channel.Hello{Version: 1}
		edit(&h)
		return frame(channel.Encode(h))
	}
	none := func(*channel.Hello) {}
	for name, row := range map[string]struct {
		send []byte
		want reason.Code
	}{
		"empty frame":           {[]byte{0, 0, 0, 0}, channel.CodeFrame},
		"four GiB announced":    {[]byte{0xff, 0xff, 0xff, 0xff}, channel.CodeFrame},
		"hello too long":        {frame(make([]byte, 513)), channel.CodeFrame},
		"not CBOR":              {frame([]byte("GET / HTTP/1.1")), channel.CodeFrame},
		"bytes after the hello": {frame(append(channel.Encode(channel.Hello{Version: 1}), 0)), channel.CodeFrame},
		"newer version":         {frame(channel.Encode(map[int]any{1: 2, 99: "x"})), channel.CodeVersion},
		"older version":         {hello(func(h *channel.Hello) { h.Version = 0 }), channel.CodeVersion},
		"odd capability":        {hello(func(h *channel.Hello) { h.Capabilities = []string{"a\x1b[2J"} }), channel.CodeFrame},
		"empty capability":      {hello(func(h *channel.Hello) { h.Capabilities = []string{""} }), channel.CodeFrame},
		"key missing":           {frame(channel.Encode(map[int]any{1: 1, 2: make([]byte, 32)})), channel.CodeFrame},
		"garbage as evidence":   {append(hello(none), frame(make([]byte, 4096))...), rot.CodeMalformed},
		"evidence too long":     {append(hello(none), 0, 0x20, 0, 1), channel.CodeFrame},
	} {
		x, done := stranger(t, r.Sleds[0].Channel)
		go func() { _, _ = io.Copy(io.Discard, x) }()
		_, _ = x.Write(row.send)
		if err := <-done; reason.CodeOf(err) != row.want || reason.HintOf(err) == "" {
			t.Errorf("%s: have %v, want %q", name, err, row.want)
		}
	}
	// A megabyte of noise before TLS.
	near, done := accepting(t, r.Sleds[0].Channel)
	go func() { _, _ = io.Copy(io.Discard, near) }()
	_, _ = near.Write(make([]byte, 1<<20))
	wantCode(t, <-done, channel.CodeTLS)
	if r.Sleds[0].TPM.Quotes != 0 {
		t.Errorf("strangers made the TPM work: %d quotes", r.Sleds[0].TPM.Quotes)
	}
}

func frame(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// TestMutePeer: every step has a deadline, and the error says what was waited for.
func TestMutePeer(t *testing.T) {
	t.Parallel()
	for name, speak := range map[string]func(*tls.Conn){
		"before TLS":   nil,
		"before hello": func(*tls.Conn) {},
		"after hello": func(c *tls.Conn) {
			_ = channel.WriteFrame(c, channel.Encode(channel.Hello{Version: 1}))
			_, _ = channel.ReadFrame(c)
		},
		"half a frame": func(c *tls.Conn) { _, _ = c.Write([]byte{0, 0, 1}) },
		"half a body":  func(c *tls.Conn) { _, _ = c.Write([]byte{0, 0, 1, 0, 0xa5}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := channeltest.NewRack(t, 1)
				near, far := net.Pipe()
				defer near.Close()
				done := make(chan error, 1)
				go func() {
					_, err := r.Sleds[0].Channel.Accept(t.Context(), far)
					done <- err
				}()
				if speak != nil {
					x := tls.Client(near, newIdentity(t).TLSConfig())
					if err := x.Handshake(); err != nil {
						t.Error(err)
					}
					speak(x)
				}
				start := time.Now()
				wantCode(t, <-done, channel.CodeTimeout)
				if waited := time.Since(start); waited != channel.DefaultTimeout {
					t.Errorf("waited %v, want %v", waited, channel.DefaultTimeout)
				}
				r.Sleds[0].Prover.Close()
			})
		})
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	near, far := net.Pipe()
	defer near.Close()
	done := make(chan error, 1)
	go func() {
		_, err := r.Sleds[0].Channel.Dial(ctx, far)
		done <- err
	}()
	cancel()
	if err := <-done; err == nil || reason.CodeOf(err) == "" {
		t.Errorf("have %v", err)
	}
}

// TestLyingAcceptor: an acceptor that says "accepted" in place of its evidence, or announces another set than it sends.
func TestLyingAcceptor(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 1)
	near, far := net.Pipe()
	defer near.Close()
	done := make(chan error, 1)
	go func() {
		_, err := r.Sleds[0].Channel.Dial(t.Context(), far)
		done <- err
	}()
	x := tls.Server(near, newIdentity(t).TLSConfig())
	for _, send := range [][]byte{channel.Encode(channel.Hello{Version: 1}), channel.EncodeVerdict(true, "")} {
		if _, err := channel.ReadFrame(x); err != nil {
			t.Fatal(err)
		}
		if err := channel.WriteFrame(x, send); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, <-done, channel.CodeFrame)
}

func TestAttack(t *testing.T) {
	t.Parallel()
	t.Run("relay", attackRelay)
	t.Run("quote-replay", attackReplay)
	t.Run("clock-1970", attackClock)
	t.Run("dtpm-reset-replay", attackTPMReset)
}

// attackRelay: somebody in the middle ends TLS on both sides and passes every frame on. Evidence of the true sleds does
// not serve his connections.
func attackRelay(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	toAcceptor, accepted := stranger(t, r.Sleds[1].Channel)
	near, far := net.Pipe()
	defer near.Close()
	dialled := make(chan error, 1)
	go func() {
		_, err := r.Sleds[0].Channel.Dial(t.Context(), far)
		dialled <- err
	}()
	toDialer := tls.Server(near, newIdentity(t).TLSConfig())
	go func() { _, _ = io.Copy(toAcceptor, toDialer) }()
	go func() { _, _ = io.Copy(toDialer, toAcceptor) }()
	judge, judged := <-accepted, <-dialled
	wantRefused(t, judge, judged, rot.CodeBinding)
	if r.Sleds[1].TPM.Quotes != 0 {
		t.Error("the acceptor proved itself to the man in the middle")
	}
}

// attackReplay: evidence recorded on one connection is shown on another.
func attackReplay(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	d, _ := mustConnect(t, r.Sleds[0], r.Sleds[1])
	recorded, err := d.FreshEvidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	x, done := stranger(t, r.Sleds[1].Channel)
	_ = channel.WriteFrame(x, channel.Encode(channel.Hello{Version: 1}))
	if _, err := channel.ReadFrame(x); err != nil {
		t.Fatal(err)
	}
	_ = channel.WriteFrame(x, recorded)
	answer, err := channel.ReadFrame(x)
	if err != nil {
		t.Fatal(err)
	}
	if accepted, code, err := channel.DecodeVerdict(answer); err != nil || accepted || code != string(rot.CodeBinding) {
		t.Errorf("have %v, %q, %v", accepted, code, err)
	}
	wantCode(t, <-done, rot.CodeBinding)
}

// attackClock: certificates of 1970, of the far future, and with reversed dates connect all the same. That no clock is
// read is asserted on the source, in package rot.
func attackClock(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	for _, dates := range [][2]int64{{0, 1}, {4102444800, 4102444801}, {4102444800, 1}} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := selfSigned(t, key.Public(), key, time.Unix(dates[0], 0), time.Unix(dates[1], 0))
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		r.Sleds[0].Channel.Identity = channel.WithCertificate(c, leaf)
		mustConnect(t, r.Sleds[0], r.Sleds[1])
		mustConnect(t, r.Sleds[1], r.Sleds[0])
	}
}

// attackTPMReset: somebody resets the TPM of a running sled and extends the registers with what the firmware had
// measured. The values are those of a good boot, so it connects; but peers see that its TPM was reset, and from then on
// neither what was quoted before nor a TPM with another history is good enough.
func attackTPMReset(t *testing.T) {
	t.Parallel()
	r := channeltest.NewRack(t, 2)
	victim, judge := r.Sleds[0], r.Sleds[1]
	_, a := mustConnect(t, victim, judge)
	before := a.Verdict
	if err := victim.TPM.Boot(firmware.Options{}); err != nil { // prover and TLS key live on
		t.Fatal(err)
	}
	_, a = mustConnect(t, victim, judge)
	if !a.Verdict.Rebooted || a.Verdict.Seen.ResetCount != before.Seen.ResetCount+1 || a.Verdict.PCRs[7] != before.PCRs[7] {
		t.Errorf("have %+v after %+v, want the same registers and one reset more", a.Verdict, before)
	}
	for name, c := range map[string]struct {
		change func(*rottest.TPM)
		want   reason.Code
	}{
		"a reset count of before":           {func(f *rottest.TPM) { f.Reset-- }, rot.CodeResetCount},
		"a TPM that was cleared":            {func(f *rottest.TPM) { f.Reset = 1 }, rot.CodeResetCount},
		"resumed without a reset":           {func(f *rottest.TPM) { f.Restart++ }, rot.CodeRestartCount},
		"reset, and told other measurement": {func(f *rottest.TPM) { f.Reset++; f.PCRs[12] = [32]byte{1} }, rot.CodePCRPolicy},
	} {
		reset, restart, pcrs := victim.TPM.Reset, victim.TPM.Restart, victim.TPM.PCRs
		victim.TPM.Set(c.change)
		d, a := connect(t, victim.Channel, judge.Channel)
		t.Log(name)
		wantRefused(t, a.err, d.err, c.want)
		victim.TPM.Set(func(f *rottest.TPM) { f.Reset, f.Restart, f.PCRs = reset, restart, pcrs })
	}
	mustConnect(t, victim, judge)
}

// FuzzFrames: hellos and verdicts of strangers: no panic, and what is accepted encodes to the same bytes.
func FuzzFrames(f *testing.F) {
	f.Add(channel.Encode(channel.Hello{Version: 1, Capabilities: []string{"authority/1"}}))
	f.Add(channel.EncodeVerdict(false, "evidence-binding"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := channel.DecodeHello(b); err == nil && string(channel.Encode(h)) != string(b) {
			t.Error("hello encodes differently")
		}
		if ok, code, err := channel.DecodeVerdict(b); err == nil && string(channel.EncodeVerdict(ok, code)) != string(b) {
			t.Error("verdict encodes differently")
		}
	})
}

// BenchmarkHandshake: TLS, two quotes of the fake, two appraisals.
func BenchmarkHandshake(b *testing.B) {
	r := channeltest.NewRack(b, 2)
	b.Run("pipe", func(b *testing.B) {
		for b.Loop() {
			near, far := net.Pipe()
			benchOne(b, r, near, far)
		}
	})
	b.Run("loopback", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		for b.Loop() {
			near, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			far, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			benchOne(b, r, near, far)
		}
	})
}

func benchOne(b *testing.B, r *channeltest.Rack, near, far net.Conn) {
	b.Helper()
	d, a := handshake(b.Context(), r.Sleds[0].Channel, r.Sleds[1].Channel, near, far)
	if err := errors.Join(d.err, a.err); err != nil {
		b.Fatal(err)
	}
	_ = near.Close()
	_ = far.Close()
}
