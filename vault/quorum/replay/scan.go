package replay

import (
	"bytes"
	"errors"
	"fmt"
	"io"

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
