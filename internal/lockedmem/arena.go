// Package lockedmem gives out memory for secrets: never swapped, never in a core file, wiped when it comes back.
//
// An [Arena] maps pages of its own outside the Go heap, so that the collector never copies what is in them, and hands
// out small pieces. It prefers memfd_secret, which takes the pages out of the kernel's own map; where the kernel has
// none, ordinary pages are locked and marked. It is bounded: when it is full it refuses with [ErrFull]. [Harden] keeps
// the rest of the process out of core files. docs/threat-model.md says what this does not cover.
package lockedmem

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// Limit is how many bytes an arena of [New] maps at most. Whoever may not lock that much gets unlocked pages, and
// [Stats] says so.
const Limit = 8 << 20

// Errors of this package.
var (
	ErrFull   = errors.New("lockedmem: full")
	ErrInUse  = errors.New("lockedmem: close: memory is still in use")
	ErrClosed = errors.New("lockedmem: closed")
)

// Kind says what the pages are.
type Kind string

// The kinds, best first.
const (
	MemfdSecret Kind = "memfd_secret" // not even in the kernel's map of memory
	Mapped      Kind = "mmap"         // anonymous pages: left out of core files, wiped on fork, locked if allowed
	GoHeap      Kind = "heap"         // no protection; on systems other than Linux, and with [HeapSecrets]
)

const (
	granule  = 32       // every piece is a multiple of this; the size of most secrets
	slabSize = 16 << 10 // what is mapped at a time
	slots    = slabSize / granule
	maxSmall = slabSize / 4 // longer pieces get pages of their own
)

// mapping is one run of pages.
type mapping struct {
	b      []byte
	kind   Kind
	locked bool
	unmap  func() error
}

// mapper provides zeroed pages. n is a multiple of the page size.
type mapper func(n int) (mapping, error)

// Arena hands out memory for secrets. It is safe for concurrent use.
type Arena struct {
	mapPages mapper
	limit    int

	mu     sync.Mutex
	slabs  []*slab
	mapped int // bytes in slabs and in large pieces
	inUse  int // bytes handed out, rounded up to granules or pages
	pieces int
	kind   Kind // the least of all mappings so far
	locked bool // all mappings so far
	closed bool
}

// slab is one mapping cut into granules.
type slab struct {
	mapping
	used [slots]bool
	free int
}

// New makes an arena of at most [Limit] bytes and maps its first pages, so that [Stats] is true from the start.
func New() (*Arena, error) {
	m := platformMapper()
	if HeapSecrets {
		m = mapHeap
	}
	return newArena(Limit, m)
}

// mapHeap gives ordinary memory.
func mapHeap(n int) (mapping, error) {
	return mapping{make([]byte, n), GoHeap, false, func() error { return nil }}, nil
}

func newArena(limit int, m mapper) (*Arena, error) {
	a := &Arena{mapPages: m, limit: limit, locked: true}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.grow(); err != nil {
		return nil, err
	}
	return a, nil
}

// Stats describes an arena. It holds nothing secret.
type Stats struct {
	Kind     Kind `json:"kind"`
	Locked   bool `json:"locked"`    // no page of it can be swapped out
	Pages    int  `json:"pages"`     // mapped now
	PageSize int  `json:"page_size"` // bytes
	InUse    int  `json:"in_use"`    // bytes handed out, as rounded up
	Pieces   int  `json:"pieces"`    // handed out
	Limit    int  `json:"limit"`     // bytes
}

// Stats returns the present figures.
func (a *Arena) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	page := os.Getpagesize()
	return Stats{a.kind, a.locked, a.mapped / page, page, a.inUse, a.pieces, a.limit}
}

// Alloc returns n zeroed bytes and a function that wipes and releases them, which may be called again.
func (a *Arena) Alloc(n int) ([]byte, func(), error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return nil, nil, ErrClosed
	case n < 0 || n > a.limit:
		return nil, nil, fmt.Errorf("%w: have %d of %d bytes, want %d more", ErrFull, a.inUse, a.limit, n)
	case n > maxSmall:
		return a.large(n)
	}
	return a.small(n)
}

func (a *Arena) small(n int) ([]byte, func(), error) {
	need := max(1, (n+granule-1)/granule)
	s, at := a.find(need)
	if s == nil {
		var err error
		if s, err = a.grow(); err != nil {
			return nil, nil, err
		}
	}
	for i := range need {
		s.used[at+i] = true
	}
	s.free -= need
	a.inUse += need * granule
	a.pieces++
	all := s.b[at*granule : (at+need)*granule]
	return all[:n:n], a.once(func() {
		if HeapSecrets { // what was there stays there: nothing else gets the place
			return
		}
		clear(all)
		clear(s.used[at : at+need])
		s.free += need
		a.inUse -= need * granule
	}), nil
}

// find returns the first run of free granules.
func (a *Arena) find(need int) (*slab, int) {
	for _, s := range a.slabs {
		run := 0
		for i := 0; s.free >= need && i < slots; i++ {
			if run++; s.used[i] {
				run = 0
			}
			if run == need {
				return s, i + 1 - need
			}
		}
	}
	return nil, 0
}

// large gives a piece pages of its own, which go back to the system with it.
func (a *Arena) large(n int) ([]byte, func(), error) {
	m, err := a.mapMore(n)
	if err != nil {
		return nil, nil, err
	}
	a.inUse += len(m.b)
	a.pieces++
	return m.b[:n:n], a.once(func() {
		if HeapSecrets {
			return
		}
		clear(m.b)
		a.inUse -= len(m.b)
		if m.unmap() == nil { // pages that did not go back still count
			a.mapped -= len(m.b)
		}
	}), nil
}

// once makes a release function that has an effect the first time only.
func (a *Arena) once(release func()) func() {
	done := false
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !done {
			done = true
			a.pieces--
			release()
		}
	}
}

func (a *Arena) grow() (*slab, error) {
	m, err := a.mapMore(slabSize)
	if err != nil {
		return nil, err
	}
	s := &slab{mapping: m, free: slots}
	a.slabs = append(a.slabs, s)
	return s, nil
}

// mapMore maps at least n bytes within the limit and keeps the books.
func (a *Arena) mapMore(n int) (mapping, error) {
	page := os.Getpagesize()
	size := (n + page - 1) / page * page
	if size > a.limit-a.mapped {
		return mapping{}, fmt.Errorf("%w: have %d of %d bytes mapped, want %d more", ErrFull, a.mapped, a.limit, size)
	}
	m, err := a.mapPages(size)
	if err != nil {
		return mapping{}, fmt.Errorf("lockedmem: map %d bytes: %w", size, err)
	}
	a.mapped += size
	a.locked = a.locked && m.locked
	if a.kind == "" || a.kind == MemfdSecret || m.kind == GoHeap {
		a.kind = m.kind
	}
	return m, nil
}

// Close gives all pages back. It refuses while anything is handed out: a secret must not lose its pages under its user.
func (a *Arena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pieces > 0 {
		return fmt.Errorf("%w: %d pieces", ErrInUse, a.pieces)
	}
	a.closed = true
	var errs []error
	for _, s := range a.slabs {
		if err := s.unmap(); err != nil {
			errs = append(errs, err)
			continue
		}
		a.mapped -= len(s.b)
	}
	a.slabs = nil
	return errors.Join(errs...)
}
