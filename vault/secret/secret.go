// Package secret holds bytes that must not be seen.
//
// A secret lives in pages that an injected [Allocator] provides (locked and not dumpable in the daemons, plain heap in
// tests), behind a closure, so that no formatting verb, log handler, encoder or stack trace can reach it. It is lent
// through Use, compared in constant time, and wiped by Destroy; one that was forgotten is wiped when the collector finds
// it. Copying the Go value copies the reference, not the bytes.
//
// Only vault/wire and vault/unlock write secret bytes out, through functions named for it.
// What Go cannot promise about memory is written in docs/threat-model.md.
package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Allocator provides the pages of secrets.
type Allocator interface {
	// Alloc returns n zeroed bytes, not nil, and a function that wipes and releases them. It is called once, on any
	// goroutine.
	Alloc(n int) (b []byte, free func(), err error)
}

// Heap allocates on the ordinary Go heap. For tests and command-line tools without long-lived secrets.
type Heap struct{}

// Alloc implements [Allocator].
func (Heap) Alloc(n int) ([]byte, func(), error) {
	b := make([]byte, n)
	return b, func() { clear(b) }, nil
}

// Errors of this package.
var (
	ErrEmpty  = errors.New("secret: empty or destroyed")
	ErrEncode = errors.New("secret: refused to encode")
	ErrLength = errors.New("secret: wrong length")
)

// Kind tells kinds of secrets apart at compile time.
type Kind interface{ kind() string }

// The kinds, as type arguments for [New] and its siblings.
type (
	RackSecretKind struct{}
	ShareKind      struct{}
	PRKKind        struct{}
	DiskKeyKind    struct{}
	SealKeyKind    struct{}
	SeedKind       struct{}
	AuthValueKind  struct{}
	PlaintextKind  struct{}
)

func (RackSecretKind) kind() string { return "rack secret" }
func (ShareKind) kind() string      { return "share" }
func (PRKKind) kind() string        { return "pseudo-random key" }
func (DiskKeyKind) kind() string    { return "disk key" }
func (SealKeyKind) kind() string    { return "sealing key" }
func (SeedKind) kind() string       { return "seed" }
func (AuthValueKind) kind() string  { return "auth value" }
func (PlaintextKind) kind() string  { return "plaintext" }

// The kinds of secrets in sledvault.
type (
	RackSecret = Bytes[RackSecretKind] // 32 bytes: one per epoch
	Share      = Bytes[ShareKind]      // the y coordinates of one key share
	PRK        = Bytes[PRKKind]        // 32 bytes: HKDF pseudo-random key of one epoch
	DiskKey    = Bytes[DiskKeyKind]    // 32 bytes: key of one disk at one epoch
	SealKey    = Bytes[SealKeyKind]    // 32 bytes: encrypts the ledger
	Seed       = Bytes[SeedKind]       // 32 bytes: source of the keys that authorise policies and counters
	AuthValue  = Bytes[AuthValueKind]  // auth value of a TPM object
	Plaintext  = Bytes[PlaintextKind]  // a decrypted ledger or key stream on its way
)

// Bytes is a secret of kind K. Values cannot be compared with ==, printed or encoded. The zero value is empty.
// It is safe for concurrent use, Destroy included.
type Bytes[K Kind] struct {
	cell func() *cell // a closure: printers see an address, and == does not compile
}

// New makes a secret of n bytes, filled in place. If fill fails, nothing remains.
func New[K Kind](a Allocator, n int, fill func([]byte) error) (Bytes[K], error) {
	if n < 0 {
		return Bytes[K]{}, fmt.Errorf("%w: have %d, want at least 0", ErrLength, n)
	}
	b, free, err := a.Alloc(n)
	if err != nil {
		return Bytes[K]{}, fmt.Errorf("secret: allocate %d bytes: %w", n, err)
	}
	c := newCell(b, free)
	filled := false
	defer func() {
		if !filled { // an error or a panic
			c.destroy()
		}
	}()
	if err := fill(b); err != nil {
		return Bytes[K]{}, err
	}
	filled = true
	return Bytes[K]{cell: func() *cell { return c }}, nil
}

// Random makes a secret of n bytes read from r.
func Random[K Kind](a Allocator, r io.Reader, n int) (Bytes[K], error) {
	return New[K](a, n, func(b []byte) error {
		_, err := io.ReadFull(r, b)
		return err
	})
}

// Take moves bytes into a secret and wipes the source.
func Take[K Kind](a Allocator, src []byte) (Bytes[K], error) {
	defer clear(src)
	return New[K](a, len(src), func(b []byte) error { copy(b, src); return nil })
}

// Convert moves a secret to another kind; the source is destroyed.
func Convert[To, From Kind](a Allocator, s Bytes[From]) (out Bytes[To], err error) {
	defer s.Destroy()
	err = s.Use(func(src []byte) error {
		out, err = New[To](a, len(src), func(b []byte) error { copy(b, src); return nil })
		return err
	})
	return out, err
}

// acquire returns the cell for use, or nil if there is nothing to use. Whoever gets it must release it.
func (s Bytes[K]) acquire() *cell {
	if s.cell == nil {
		return nil
	}
	if c := s.cell(); c.acquire() {
		return c
	}
	return nil
}

// Use lends the bytes to f, which must not keep or change them. An empty or destroyed secret refuses with [ErrEmpty].
func (s Bytes[K]) Use(f func([]byte) error) error {
	c := s.acquire()
	if c == nil {
		return ErrEmpty
	}
	defer c.release()
	return f(c.b)
}

// Len is the number of bytes, 0 if empty.
func (s Bytes[K]) Len() int {
	if s.IsEmpty() {
		return 0
	}
	return s.cell().n
}

// IsEmpty reports whether there is nothing to use.
func (s Bytes[K]) IsEmpty() bool { return s.cell == nil || !s.cell().live() }

// Clone copies the secret into new pages.
func (s Bytes[K]) Clone(a Allocator) (out Bytes[K], err error) {
	err = s.Use(func(src []byte) error {
		out, err = New[K](a, len(src), func(b []byte) error { copy(b, src); return nil })
		return err
	})
	return out, err
}

// Equal compares in time that depends on the lengths only. Empty secrets equal nothing.
func (s Bytes[K]) Equal(o Bytes[K]) bool {
	a, b := s.acquire(), o.acquire()
	if a != nil {
		defer a.release()
	}
	if b != nil {
		defer b.release()
	}
	return a != nil && b != nil && subtle.ConstantTimeCompare(a.b, b.b) == 1
}

// Destroy makes all copies of the value empty, then wipes the bytes and releases the pages: at once, or when the last
// Use that is still running returns. It may be called again.
func (s Bytes[K]) Destroy() {
	if s.cell != nil {
		s.cell().destroy()
	}
}

func (s Bytes[K]) redacted() string {
	var k K
	return "(" + k.kind() + ")"
}

// Format prints the kind, never the bytes, for every verb.
func (s Bytes[K]) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.redacted()) }

// LogValue gives log handlers the kind only.
func (s Bytes[K]) LogValue() slog.Value { return slog.StringValue(s.redacted()) }

// MarshalText refuses.
func (s Bytes[K]) MarshalText() ([]byte, error) { return nil, ErrEncode }

// MarshalJSON refuses.
func (s Bytes[K]) MarshalJSON() ([]byte, error) { return nil, ErrEncode }

// MarshalBinary refuses.
func (s Bytes[K]) MarshalBinary() ([]byte, error) { return nil, ErrEncode }

// MarshalCBOR refuses.
func (s Bytes[K]) MarshalCBOR() ([]byte, error) { return nil, ErrEncode }

// GobEncode refuses.
func (s Bytes[K]) GobEncode() ([]byte, error) { return nil, ErrEncode }
