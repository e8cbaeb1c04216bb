package replay

import (
	"math"
	"unicode/utf8"

	"github.com/sledvault/sledvault/vault/ident"
)

// This file reads the values of a log: numbers, texts, identities.

// uint reads a whole number without sign, fraction or exponent.
func (s *scanner) uint(limit uint64) uint64 {
	c := s.peek()
	if c < '0' || c > '9' {
		s.wrong("a number")
		return 0
	}
	var v uint64
	for digits := 0; ; digits++ {
		if s.pos == s.end && !s.fill() {
			break // the end of the number, too; whoever reads on will see that the log ends
		}
		c := s.buf[s.pos]
		if c < '0' || c > '9' {
			if c == '.' || c == 'e' || c == 'E' {
				s.syntax("have a fraction or exponent, want a whole number")
			}
			break
		}
		if digits > 0 && v == 0 {
			s.syntax("a number begins with zero")
			return 0
		}
		d := uint64(c - '0')
		if v > (math.MaxUint64-d)/10 || v*10+d > limit {
			s.syntax("number too large, want at most %d", limit)
			return 0
		}
		v = v*10 + d
		s.pos++
	}
	return v
}

func (s *scanner) epoch() ident.Epoch { return ident.Epoch(s.uint(math.MaxUint64)) }

// optionalEpoch reads null as nil.
func (s *scanner) optionalEpoch() *ident.Epoch {
	if s.null() {
		return nil
	}
	e := s.epoch()
	return &e
}

// string reads a text. It lies in the buffer: the next call that reads may overwrite it.
func (s *scanner) string() []byte {
	if !s.take('"', "a string") {
		return nil
	}
	// Almost always the whole text lies in the buffer and has no escapes.
	for i := s.pos; i < s.end; i++ {
		c := s.buf[i]
		if c == '"' {
			b := s.buf[s.pos:i]
			s.pos = i + 1
			return b
		}
		if c < ' ' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return s.slowString()
}

// slowString goes on with a text that has escapes, is not ASCII or reaches over the end of the buffer.
func (s *scanner) slowString() []byte {
	s.text = s.text[:0]
	for s.err == nil {
		switch c := s.raw(); {
		case c == '"':
			if !utf8.Valid(s.text) {
				s.syntax("a string is not UTF-8")
				return nil
			}
			return s.text
		case c == '\\':
			s.escape()
		case c < ' ':
			if c == 0 && s.pos == s.end {
				s.wrong("the end of a string")
			}
			s.syntax("a string has a control character")
		case len(s.text) == maxText:
			s.syntax("a string is longer than %d bytes", maxText)
		default:
			s.text = append(s.text, c)
		}
	}
	return nil
}

func (s *scanner) escape() {
	switch c := s.raw(); c {
	case '"', '\\', '/':
		s.text = append(s.text, c)
	case 'b', 'f', 'n', 'r', 't':
		s.text = append(s.text, map[byte]byte{'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}[c])
	case 'u':
		var r rune
		for range 4 {
			d := unhex(s.raw())
			if d > 15 {
				s.syntax("a string has a damaged escape")
				return
			}
			r = r<<4 | rune(d)
		}
		s.text = utf8.AppendRune(s.text, r) // halves of surrogates become U+FFFD: no name contains them
	default:
		s.syntax("a string has an unknown escape")
	}
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// hex reads lower-case hexadecimal digits and returns how many bytes they stand for. Their values do not matter: what
// they encrypt or digest is random in every run.
func (s *scanner) hex() int {
	b := s.string()
	for _, c := range b {
		if unhex(c) > 15 || c >= 'A' && c <= 'F' {
			s.syntax("have %q, want lower-case hexadecimal digits", rune(c))
			return 0
		}
	}
	if len(b)%2 != 0 {
		s.syntax("an odd number of hexadecimal digits")
	}
	return len(b) / 2
}

// bytes reads an array of exactly n numbers below 256 and forgets them: they are shares of secrets.
func (s *scanner) bytes(n int) {
	have := 0
	s.array(func() {
		s.uint(math.MaxUint8)
		have++
	})
	if s.err == nil && have != n {
		s.syntax("have %d bytes, want %d", have, n)
	}
}

// intern reads a part or serial number.
func (s *scanner) intern() string {
	b := s.string()
	if s.err != nil {
		return ""
	}
	if name, ok := s.names[string(b)]; ok {
		return name
	}
	name := string(b)
	switch err := (ident.Baseboard{Part: name, Serial: name}).Validate(); {
	case err != nil:
		s.fail(CodeSyntax, hintSyntax, "%.60q: %v", name, err)
		return ""
	case len(s.names) == maxNames:
		s.syntax("more than %d different part and serial numbers", maxNames)
		return ""
	}
	s.names[name] = name
	return name
}

// id reads a baseboard.
func (s *scanner) id() (b ident.Baseboard) {
	s.object([]string{"part_number", "serial_number"}, func(i int) {
		if i == 0 {
			b.Part = s.intern()
		} else {
			b.Serial = s.intern()
		}
	})
	return b
}

// set reads baseboards in strictly ascending order.
func (s *scanner) set() []ident.Baseboard {
	out := s.list()
	for i := 1; i < len(out); i++ {
		if out[i-1].Compare(out[i]) >= 0 {
			s.syntax("%s is doubled or out of order", out[i])
			return nil
		}
	}
	return out
}

// list reads baseboards in any order.
func (s *scanner) list() []ident.Baseboard {
	out := []ident.Baseboard{}
	s.array(func() { out = append(out, s.id()) })
	return out
}

func (s *scanner) rackID() (r ident.RackID) {
	if err := r.UnmarshalText(s.string()); err != nil && s.err == nil {
		s.fail(CodeSyntax, hintSyntax, "%v", err)
	}
	return r
}
