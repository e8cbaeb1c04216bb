package secret_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sledvault/sledvault/vault/secret"
)

// pages is an allocator that remembers what it gave out and what came back.
type pages struct {
	mu          sync.Mutex
	out         [][]byte
	freed, dirt int
	err         error
}

func (p *pages) Alloc(n int) ([]byte, func(), error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, nil, p.err
	}
	b := make([]byte, n)
	p.out = append(p.out, b)
	return b, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.freed++
		if !bytes.Equal(b, make([]byte, n)) {
			p.dirt++
		}
	}, nil
}

func (p *pages) check(t *testing.T, freed int) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.freed != freed || p.dirt != 0 {
		t.Errorf("have %d freed and %d of them not wiped, want %d and 0", p.freed, p.dirt, freed)
	}
}

func TestDestroyWipesOnce(t *testing.T) {
	t.Parallel()
	p := &pages{}
	s, err := secret.Random[secret.SeedKind](p, bytes.NewReader(pattern), 32)
	if err != nil {
		t.Fatal(err)
	}
	copyOf := s
	s.Destroy()
	copyOf.Destroy()
	secret.Seed{}.Destroy()
	if !copyOf.IsEmpty() || copyOf.Len() != 0 || !errors.Is(copyOf.Use(func([]byte) error { return nil }), secret.ErrEmpty) {
		t.Error("a copy of a destroyed secret is not empty")
	}
	if _, err := copyOf.Clone(p); !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("clone of a destroyed secret: %v", err)
	}
	p.check(t, 1)
}

func TestDestroyWaitsForUse(t *testing.T) {
	t.Parallel()
	p := &pages{}
	s, err := secret.Random[secret.SeedKind](p, bytes.NewReader(pattern), 32)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Use(func(b []byte) error {
		s.Destroy()
		p.check(t, 0)
		if !bytes.Equal(b, pattern) {
			t.Error("wiped while lent")
		}
		if !s.IsEmpty() || s.Len() != 0 {
			t.Error("not empty at once")
		}
		return s.Use(func([]byte) error { return nil })
	})
	if !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("second use: %v", err)
	}
	p.check(t, 1)
}

func TestUseAndDestroyTogether(t *testing.T) {
	t.Parallel()
	for range 200 {
		p := &pages{}
		s, err := secret.Random[secret.SeedKind](p, bytes.NewReader(pattern), 32)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var bad atomic.Int64
		for i := range 4 {
			wg.Go(func() {
				if i == 0 {
					s.Destroy()
					return
				}
				_ = s.Use(func(b []byte) error {
					if !bytes.Equal(b, pattern) {
						bad.Add(1)
					}
					return nil
				})
				_ = s.Equal(s)
			})
		}
		wg.Wait()
		if bad.Load() != 0 {
			t.Fatal("wiped while lent")
		}
		p.check(t, 1)
	}
}

func TestFailedFillLeavesNothing(t *testing.T) {
	t.Parallel()
	p := &pages{}
	if _, err := secret.Random[secret.SeedKind](p, bytes.NewReader(pattern), 33); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short source: %v", err)
	}
	p.check(t, 1)
	func() {
		defer func() { _ = recover() }()
		_, _ = secret.New[secret.SeedKind](p, 4, func(b []byte) error { copy(b, pattern); panic("fill") })
	}()
	p.check(t, 2)
	if _, err := secret.New[secret.SeedKind](p, -1, nil); !errors.Is(err, secret.ErrLength) {
		t.Errorf("negative length: %v", err)
	}
	p.err = errors.New("no pages")
	if _, err := secret.New[secret.SeedKind](p, 4, nil); !errors.Is(err, p.err) {
		t.Errorf("no pages: %v", err)
	}
}

func TestTakeWipesTheSource(t *testing.T) {
	t.Parallel()
	for _, p := range []*pages{{}, {err: errors.New("no pages")}} {
		src := bytes.Clone(pattern)
		_, err := secret.Take[secret.SeedKind](p, src)
		if !errors.Is(err, p.err) || !bytes.Equal(src, make([]byte, 32)) {
			t.Errorf("source after Take (%v): %q", err, src)
		}
	}
}

func TestConvertMoves(t *testing.T) {
	t.Parallel()
	p := &pages{}
	share, err := secret.Random[secret.ShareKind](p, bytes.NewReader(pattern), 32)
	if err != nil {
		t.Fatal(err)
	}
	sec, err := secret.Convert[secret.RackSecretKind](p, share)
	if err != nil || sec.Len() != 32 || !share.IsEmpty() || !sec.Equal(make32[secret.RackSecretKind](t)) {
		t.Errorf("converted: %v, %d bytes, source empty %v", err, sec.Len(), share.IsEmpty())
	}
	p.check(t, 1)
	if _, err := secret.Convert[secret.RackSecretKind](p, share); !errors.Is(err, secret.ErrEmpty) {
		t.Errorf("second conversion: %v", err)
	}
}

func TestEqual(t *testing.T) {
	t.Parallel()
	take := func(b string) secret.Share {
		s, err := secret.Take[secret.ShareKind](secret.Heap{}, []byte(b))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	gone := take("abc")
	gone.Destroy()
	for _, c := range []struct {
		a, b secret.Share
		want bool
	}{
		{take("abc"), take("abc"), true},
		{take("abc"), take("abd"), false},
		{take("abc"), take("ab"), false},
		{take(""), take(""), true},
		{take("abc"), secret.Share{}, false},
		{secret.Share{}, secret.Share{}, false},
		{gone, gone, false},
		{gone, take("abc"), false},
	} {
		if c.a.Equal(c.b) != c.want || c.b.Equal(c.a) != c.want {
			t.Errorf("%d and %d bytes: want %v", c.a.Len(), c.b.Len(), c.want)
		}
	}
}

func TestCloneIsIndependent(t *testing.T) {
	t.Parallel()
	s := make32[secret.RackSecretKind](t)
	c, err := s.Clone(secret.Heap{})
	if err != nil {
		t.Fatal(err)
	}
	s.Destroy()
	if !c.Equal(make32[secret.RackSecretKind](t)) {
		t.Error("clone changed with its source")
	}
}

// A secret that nobody destroyed gives its pages back when the collector finds it.
func TestForgottenSecretIsFreed(t *testing.T) {
	t.Parallel()
	freed := make(chan struct{})
	func() {
		_, err := secret.New[secret.SeedKind](announcing(freed), 8, func([]byte) error { return nil })
		if err != nil {
			t.Error(err)
		}
	}()
	for done := false; !done; {
		runtime.GC()
		select {
		case <-freed:
			done = true
		default:
			runtime.Gosched()
		}
	}
}

type announcing chan struct{}

func (a announcing) Alloc(n int) ([]byte, func(), error) {
	return make([]byte, n), func() { close(a) }, nil
}
