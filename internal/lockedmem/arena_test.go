package lockedmem

import (
	"bytes"
	"errors"
	"math"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/secret"
)

var _ secret.Allocator = (*Arena)(nil)

// heapMapper maps nothing, so that tests can run out of memory cheaply. It counts what was not given back.
func heapMapper(open *int) mapper {
	return func(n int) (mapping, error) {
		*open++
		return mapping{make([]byte, n), GoHeap, false, func() error { *open--; return nil }}, nil
	}
}

func mustAlloc(t testing.TB, a *Arena, n int) ([]byte, func()) {
	t.Helper()
	b, free, err := a.Alloc(n)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != n || cap(b) != n || b == nil || !bytes.Equal(b, make([]byte, n)) {
		t.Fatalf("have %d bytes, capacity %d, zero %v; want %d zeroed", len(b), cap(b), bytes.Equal(b, make([]byte, n)), n)
	}
	return b, free
}

func TestSecretsLiveInTheArena(t *testing.T) {
	t.Parallel()
	a, err := New()
	if err != nil {
		t.Fatal(err)
	}
	s, err := secret.Take[secret.SeedKind](a, []byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	empty, err := secret.New[secret.SeedKind](a, 0, func([]byte) error { return nil })
	if err != nil || empty.IsEmpty() {
		t.Errorf("a secret of no bytes: %v, empty %v", err, empty.IsEmpty())
	}
	if st := a.Stats(); st.InUse != 2*granule || st.Pieces != 2 || st.Pages*st.PageSize < slabSize {
		t.Errorf("have %+v", st)
	}
	if err := a.Close(); !errors.Is(err, ErrInUse) {
		t.Errorf("close in use: %v", err)
	}
	s.Destroy()
	empty.Destroy()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := a.Alloc(1); !errors.Is(err, ErrClosed) {
		t.Errorf("alloc after close: %v", err)
	}
	if st := a.Stats(); st.Pages != 0 || st.InUse != 0 {
		t.Errorf("after close: %+v", st)
	}
}

func TestFreeWipesAndIsRepeatable(t *testing.T) {
	t.Parallel()
	open := 0
	a, err := newArena(1<<20, heapMapper(&open))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 32, 33, maxSmall, maxSmall + 1, slabSize * 3} {
		b, free := mustAlloc(t, a, n)
		for i := range b {
			b[i] = 0xa5
		}
		free()
		free()
		if !bytes.Equal(b, make([]byte, n)) {
			t.Errorf("%d bytes: not wiped", n)
		}
	}
	if st := a.Stats(); st.InUse != 0 || st.Pieces != 0 || open != len(a.slabs) {
		t.Errorf("have %+v, %d mappings open of %d slabs", st, open, len(a.slabs))
	}
}

func TestBounded(t *testing.T) {
	t.Parallel()
	open := 0
	a, err := newArena(2*slabSize, heapMapper(&open))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{-1, 2*slabSize + 1, math.MaxInt} {
		if _, _, err := a.Alloc(n); !errors.Is(err, ErrFull) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	_, freeLarge := mustAlloc(t, a, slabSize)
	var frees []func()
	for {
		_, free, err := a.Alloc(granule)
		if err != nil {
			if !errors.Is(err, ErrFull) {
				t.Error(err)
			}
			break
		}
		frees = append(frees, free)
	}
	if len(frees) != slots {
		t.Errorf("have %d pieces, want %d", len(frees), slots)
	}
	freeLarge()
	mustAlloc(t, a, granule) // the pages that came back serve as a slab
	frees[7]()
	frees[8]()
	if st := a.Stats(); st.Pieces != slots-1 {
		t.Errorf("have %d pieces, want %d", st.Pieces, slots-1)
	}
}

func TestMappingFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("no pages")
	if _, err := newArena(1<<20, func(int) (mapping, error) { return mapping{}, broken }); !errors.Is(err, broken) {
		t.Errorf("have %v", err)
	}
}

// Pieces never overlap, stay what their owner wrote, come zeroed, and the books are right after every step.
func TestPiecesAreIndependent(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		open := 0
		a, err := newArena(16*slabSize, heapMapper(&open))
		if err != nil {
			t.Fatal(err)
		}
		type piece struct {
			b    []byte
			mark byte
			free func()
		}
		var live []piece
		for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(live) > 0 && rapid.Bool().Draw(t, "free") {
				i := rapid.IntRange(0, len(live)-1).Draw(t, "which")
				live[i].free()
				live = append(live[:i], live[i+1:]...)
			} else if b, free, err := a.Alloc(rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, 3*slabSize)).Draw(t, "n")); err == nil {
				if !bytes.Equal(b, make([]byte, len(b))) {
					t.Fatal("not zeroed")
				}
				p := piece{b, byte(step + 1), free}
				for i := range b {
					b[i] = p.mark
				}
				live = append(live, p)
			}
			for _, p := range live {
				if bytes.Count(p.b, []byte{p.mark}) != len(p.b) {
					t.Fatal("a piece was overwritten")
				}
			}
			if st := a.Stats(); st.Pieces != len(live) || st.Pages*st.PageSize > st.Limit {
				t.Fatalf("have %+v with %d pieces", st, len(live))
			}
		}
		for _, p := range live {
			p.free()
		}
		if st := a.Stats(); st.InUse != 0 {
			t.Fatalf("have %+v", st)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	a, err := New()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				b, free, err := a.Alloc(n * 7 % 5000)
				if err != nil {
					t.Error(err)
					return
				}
				for j := range b {
					b[j] = byte(i + 1)
				}
				if bytes.Count(b, []byte{byte(i + 1)}) != len(b) {
					t.Error("shared with another goroutine")
				}
				free()
			}
		})
	}
	wg.Wait()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func BenchmarkAlloc(b *testing.B) {
	a, err := New()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		_, free, err := a.Alloc(32)
		if err != nil {
			b.Fatal(err)
		}
		free()
	}
}
