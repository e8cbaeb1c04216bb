package tpmtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// minSecret is the shortest secret that is looked for: shorter ones appear by chance.
const minSecret = 8

// Register names bytes that must never pass the bus, in either direction, from now on. The bytes are copied.
func (t *TPM) Register(secret []byte) {
	t.tb.Helper()
	if len(secret) < minSecret {
		t.tb.Fatalf("tap: secret of %d bytes, want at least %d", len(secret), minSecret)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.secrets = append(t.secrets, bytes.Clone(secret))
}

// Leaks says which commands and answers showed a registered secret. Taking them clears the list.
func (t *TPM) Leaks() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.leaks
	t.leaks = nil
	return l
}

// look searches a frame for every secret, whole, halved and reversed, since a part is as bad as the whole.
func (t *TPM) look(what string, frame []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, s := range t.secrets {
		for _, part := range parts(s) {
			if bytes.Contains(frame, part) {
				t.leaks = append(t.leaks, fmt.Sprintf("secret %d in %s 0x%x", i, what, code(frame)))
				break
			}
		}
	}
}

func parts(s []byte) [][]byte {
	reversed := bytes.Clone(s)
	slices.Reverse(reversed)
	p := [][]byte{s, reversed}
	if half := len(s) / 2; half >= minSecret {
		p = append(p, s[:half], s[half:])
	}
	return p
}

func code(frame []byte) uint32 {
	if len(frame) < 10 {
		return 0
	}
	return binary.BigEndian.Uint32(frame[6:10])
}
