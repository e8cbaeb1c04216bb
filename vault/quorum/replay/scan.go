package replay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"unicode/utf8"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// Limits of what one value of a log may take in memory.
const (
	maxText  = 1 << 19 // bytes of a string; the longest are older secrets in hexadecimal
	maxItems = 1 << 12 // elements of an array
	maxNames = 1 << 12 // different part and serial numbers
)

// LogError says where a log cannot be read or makes no sense.
type LogError struct {
	Log    string // its name, if it has one
	Line   int    // from 1
	Offset int64  // in bytes, from 0
	Event  int    // number of the event, from 0
	Cause  error  // a [*reason.Error]
}

func (e *LogError) Error() string {
	name := e.Log
	if name != "" {
		name += ":"
	}
	if e.Line == 0 {
		return fmt.Sprintf("replay: %s %v", name, e.Cause)
	}
	return fmt.Sprintf("replay: %s%d: event %d, byte %d: %v", name, e.Line, e.Event, e.Offset, e.Cause)
}

// Unwrap returns the cause.
func (e *LogError) Unwrap() error { return e.Cause }

// scanner reads JSON from a stream, strictly: every expected field once and no other, whole numbers only, valid UTF-8.
// The first error stays and makes every further call return at once with a zero value.
type scanner struct {
	in    io.Reader
	buf   []byte
	pos   int   // next byte of buf
	end   int   // of what was read into buf
	base  int64 // offset of buf[0] in the stream
	lines int   // line feeds before buf[0]
	event int   // number of the event under way
	err   error
	text  []byte            // of the last string
	names map[string]string // part and serial numbers, each valid and only once in memory
}

func newScanner(in io.Reader) *scanner {
	return &scanner{in: in, buf: make([]byte, 1<<16), names: map[string]string{}}
}

// fail records the first error, with the place that has been reached.
func (s *scanner) fail(code reason.Code, hint, format string, args ...any) {
	if s.err == nil {
		s.err = s.at(reason.New(code, hint, format, args...))
	}
}

func (s *scanner) syntax(format string, args ...any) { s.fail(CodeSyntax, hintSyntax, format, args...) }

// at gives an error the place that has been reached.
func (s *scanner) at(cause error) *LogError {
	return &LogError{
		Line: 1 + s.lines + bytes.Count(s.buf[:s.pos], []byte{'\n'}), Offset: s.base + int64(s.pos), Event: s.event, Cause: cause,
	}
}

// fill reads more. It reports false at the end of the stream or on an error.
func (s *scanner) fill() bool {
	if s.err != nil {
		return false
	}
	s.base += int64(s.end)
	s.lines += bytes.Count(s.buf[:s.end], []byte{'\n'})
	s.pos, s.end = 0, 0
	for range 100 { // a reader may give nothing now and then
		n, err := s.in.Read(s.buf)
		s.end = n
		switch {
		case n > 0:
			return true
		case errors.Is(err, io.EOF):
			return false
		case err != nil:
			s.err = s.at(reason.Wrap(err, CodeUnreadable, hintUnreadable, "read"))
			return false
		}
	}
	s.err = s.at(reason.Wrap(io.ErrNoProgress, CodeUnreadable, hintUnreadable, "read"))
	return false
}

// peek skips white space and returns the next byte without taking it; 0 at the end.
func (s *scanner) peek() byte {
	if s.err != nil {
		return 0
	}
	for {
		for ; s.pos < s.end; s.pos++ {
			if c := s.buf[s.pos]; c != ' ' && c != '\n' && c != '\r' && c != '\t' {
				return c
			}
		}
		if !s.fill() {
			return 0
		}
	}
}

// raw takes the next byte, white space or not; 0 at the end.
func (s *scanner) raw() byte {
	if s.pos == s.end && !s.fill() {
		return 0
	}
	s.pos++
	return s.buf[s.pos-1]
}

// wrong says what stands where something else was expected.
func (s *scanner) wrong(want string) {
	switch c := s.peek(); {
	case c == 0 && s.pos == s.end:
		s.fail(CodeTruncated, hintTruncated, "the log ends where %s should be", want)
	default:
		s.syntax("have %q, want %s", rune(c), want)
	}
}

// take expects one byte of punctuation.
func (s *scanner) take(c byte, want string) bool {
	if s.peek() != c {
		s.wrong(want)
		return false
	}
	s.pos++
	return true
}

// array calls item for every element.
func (s *scanner) array(item func()) {
	if !s.take('[', "an array") {
		return
	}
	if s.peek() == ']' {
		s.pos++
		return
	}
	for n := 0; s.err == nil; n++ {
		if n == maxItems {
			s.syntax("more than %d elements in one array", maxItems)
			return
		}
		item()
		if s.peek() == ']' {
			s.pos++
			return
		}
		s.take(',', "a comma or the end of the array")
	}
}

// object calls field with the number of each name, in the order of the log. Every name must be there once, no other may.
func (s *scanner) object(names []string, field func(i int)) {
	if !s.take('{', "an object") {
		return
	}
	var seen uint32
	for next := 0; ; next++ {
		i := s.name(names, next)
		if s.err != nil {
			return
		}
		if seen&(1<<i) != 0 {
			s.syntax("field %q twice", names[i])
		}
		seen |= 1 << i
		field(i)
		if s.peek() == '}' {
			break
		}
		s.take(',', "a comma or the end of the object")
	}
	if s.err != nil {
		return
	}
	s.pos++
	for i, n := range names {
		if seen&(1<<i) == 0 {
			s.syntax("field %q is missing", n)
			return
		}
	}
}

// name reads a field's name and finds its number. next is where it stands if the fields come in order.
func (s *scanner) name(names []string, next int) int {
	b := s.string()
	i := next
	if next >= len(names) || string(b) != names[next] {
		i = index(names, b)
	}
	switch {
	case s.err != nil:
	case i >= 0:
		s.take(':', "a colon")
	case string(b) == "destination": // the form of 2025
		s.fail(CodeOldFormat, hintOldFormat, "field %q is of an older form of log", b)
	default:
		s.syntax("unknown field %.40q", b)
	}
	return i
}

// variant reads an externally tagged value: {"Name": content}. It calls content with the name's number.
func (s *scanner) variant(what string, names []string, content func(i int)) {
	if !s.take('{', what) {
		return
	}
	b := s.string()
	i := index(names, b) // before anything else is read
	if s.err == nil && i < 0 {
		s.fail(CodeUnknown, hintUnknown, "unknown %s %.40q", what, b)
	}
	if !s.take(':', "a colon") {
		return
	}
	content(i)
	s.take('}', "the end of the "+what)
}

func index(names []string, b []byte) int {
	for i, n := range names {
		if string(b) == n {
			return i
		}
	}
	return -1
}

// null takes a null if it is there.
func (s *scanner) null() bool {
	if s.peek() != 'n' {
		return false
	}
	for _, want := range []byte("null") {
		if s.raw() != want {
			s.syntax("have another word, want null")
			return false
		}
	}
	return true
}

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
