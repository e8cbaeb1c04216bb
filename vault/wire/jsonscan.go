package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// maxJSONDepth is deeper than any file is.
const maxJSONDepth = 16

// jsonReader decodes with a sticky error, like reader. It takes values apart without copying them, so that no share
// stays behind in the memory of a decoder.
type jsonReader struct {
	hint  string
	alloc secret.Allocator
	undo  []func()
	err   *reason.Error
}

func (d *jsonReader) fail(code reason.Code, format string, args ...any) {
	if d.err == nil {
		d.err = reason.New(code, d.hint, "wire: decode json: "+format, args...)
	}
}

// finish destroys the secrets made so far if anything was refused.
func (d *jsonReader) finish() error {
	if d.err == nil {
		return nil
	}
	for _, f := range d.undo {
		f()
	}
	return d.err
}

func blanks(b []byte) []byte { return bytes.TrimLeft(b, " \t\r\n") }

// next takes the next value off b. A value that is cut off is told apart from one that is wrong.
func (d *jsonReader) next(b []byte) (value, rest []byte) {
	b = blanks(b)
	n := scanValue(b, 0)
	switch {
	case d.err != nil:
		return nil, nil
	case n == scanShort:
		d.fail(CodeShort, "input ends early")
		return nil, nil
	case n == scanDeep:
		d.fail(CodeDepth, "nested deeper than %d", maxJSONDepth)
		return nil, nil
	case n < 0:
		d.fail(CodeType, "not JSON")
		return nil, nil
	}
	return b[:n], blanks(b[n:])
}

// whole takes the only value of b.
func (d *jsonReader) whole(b []byte) []byte {
	v, rest := d.next(b)
	if d.err == nil && len(rest) != 0 {
		d.fail(CodeTrailing, "something follows the value")
		return nil
	}
	return v
}

const (
	scanShort = -1
	scanBad   = -2
	scanDeep  = -3
)

// scanValue is the length of the JSON value that b begins with, or one of the codes above.
func scanValue(b []byte, depth int) int {
	if len(b) == 0 {
		return scanShort
	}
	switch c := b[0]; {
	case depth > maxJSONDepth:
		return scanDeep
	case c == '{':
		return scanList(b, depth, '}', scanPair)
	case c == '[':
		return scanList(b, depth, ']', scanValue)
	case c == '"':
		return scanString(b)
	case c == '-' || '0' <= c && c <= '9':
		return scanNumber(b)
	}
	for _, word := range []string{"null", "true", "false"} {
		if n := len(word); bytes.HasPrefix(b, []byte(word)) {
			return n
		} else if len(b) < n && word[:len(b)] == string(b) {
			return scanShort
		}
	}
	return scanBad
}

// scanList scans elements between commas up to the closing bracket.
func scanList(b []byte, depth int, closing byte, element func([]byte, int) int) int {
	rest := blanks(b[1:])
	if len(rest) > 0 && rest[0] == closing {
		return len(b) - len(rest) + 1
	}
	for {
		n := element(rest, depth+1)
		if n < 0 {
			return n
		}
		rest = blanks(rest[n:])
		switch {
		case len(rest) == 0:
			return scanShort
		case rest[0] == closing:
			return len(b) - len(rest) + 1
		case rest[0] != ',':
			return scanBad
		}
		rest = blanks(rest[1:])
	}
}

// scanPair scans a key with its value.
func scanPair(b []byte, depth int) int {
	switch {
	case len(b) == 0:
		return scanShort
	case b[0] != '"':
		return scanBad
	}
	n := scanString(b)
	if n < 0 {
		return n
	}
	rest := blanks(b[n:])
	switch {
	case len(rest) == 0:
		return scanShort
	case rest[0] != ':':
		return scanBad
	}
	value := blanks(rest[1:])
	m := scanValue(value, depth)
	if m < 0 {
		return m
	}
	return len(b) - len(value) + m
}

func scanNumber(b []byte) int {
	n, plain := 0, true
	for ; n < len(b) && (isDigit(b[n]) || bytes.IndexByte([]byte("+-.eE"), b[n]) >= 0); n++ {
		plain = plain && isDigit(b[n])
	}
	if plain && (n == 1 || b[0] != '0') || json.Valid(b[:n]) {
		return n
	}
	return scanBad
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func scanString(b []byte) int {
	plain := true
	for i := 1; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			if !plain && !json.Valid(b[:i+1]) {
				return scanBad
			}
			return i + 1
		case c == '\\':
			plain = false
			i++
		case c < ' ':
			return scanBad
		}
	}
	return scanShort
}

// object reads an object that has exactly the given keys, each once, and returns their values in the keys' order. Keys
// that end in "?" may be absent.
func (d *jsonReader) object(b []byte, names ...string) [][]byte {
	out := make([][]byte, len(names))
	v := d.whole(b)
	if d.err == nil && v[0] != '{' {
		d.fail(CodeType, "want an object with %q", names)
	}
	if d.err != nil {
		return out
	}
	for v = blanks(v[1:]); d.err == nil && v[0] != '}'; {
		key, rest := d.next(v)
		name := d.text("key", key)
		at := slices.IndexFunc(names, func(n string) bool { return n == name || n == name+"?" })
		var value []byte
		value, v = d.next(rest[1:]) // after the colon
		switch {
		case d.err != nil:
		case at < 0:
			d.fail(CodeUnknownKey, "unknown key %.60q", name)
		case out[at] != nil:
			d.fail(CodeDuplicate, "key %q occurs twice", name)
		default:
			out[at] = value
			v = afterComma(v)
		}
	}
	for i, name := range names {
		if out[i] == nil && !strings.HasSuffix(name, "?") {
			d.fail(CodeMissing, "key %q is missing", name)
		}
	}
	return out
}

// afterComma passes over what the scanner has found to be a comma, if it is not the end of a list.
func afterComma(b []byte) []byte {
	if b[0] == ',' {
		return blanks(b[1:])
	}
	return b
}

// list reads an array of at most max elements.
func (d *jsonReader) list(b []byte, max int) (out [][]byte) {
	v := d.whole(b)
	if d.err == nil && v[0] != '[' {
		d.fail(CodeType, "want an array")
	}
	if d.err != nil {
		return nil
	}
	for v = blanks(v[1:]); d.err == nil && v[0] != ']'; v = afterComma(v) {
		if len(out) == max {
			d.fail(CodeLength, "have more than %d elements", max)
			return out
		}
		var one []byte
		one, v = d.next(v)
		out = append(out, one)
		if d.err != nil {
			return nil
		}
	}
	return out
}

func (d *jsonReader) value(name string, b []byte, to any) {
	if d.err != nil {
		return
	}
	if err := json.Unmarshal(b, to); err != nil || string(b) == "null" {
		d.fail(CodeType, "%s: have %.40q, want %T", name, b, to)
	}
}

func (d *jsonReader) text(name string, b []byte) (s string) {
	d.value(name, b, &s)
	return s
}

// isNull reports whether a value is null, or absent where it may be.
func isNull(b []byte) bool { return b == nil || string(b) == "null" }

// hex reads lower-case hex. If size is not negative, it is the number of bytes.
func (d *jsonReader) hex(name string, b []byte, size int) []byte {
	s := d.text(name, b)
	out, err := hex.DecodeString(s)
	switch {
	case d.err != nil:
	case err != nil || hex.EncodeToString(out) != s:
		d.fail(CodeText, "%s: want lower-case hex", name)
	case size >= 0 && len(out) != size:
		d.fail(CodeLength, "%s: have %d bytes, want %d", name, len(out), size)
	}
	return out
}

func (d *jsonReader) digest(name string, b []byte) (out [32]byte) {
	copy(out[:], d.hex(name, b, len(out)))
	return out
}

// intBytes reads an array of numbers of one byte each into memory that it is given; it never says what they are. If want
// is not negative, it is how many there must be, and max otherwise the most.
func (d *jsonReader) intBytes(name string, b []byte, want, max int, into func(n int) []byte) {
	v := d.whole(b)
	if d.err != nil {
		return
	}
	if v[0] != '[' {
		d.fail(CodeType, "%s: want an array of numbers", name)
		return
	}
	n := countElements(v)
	if want >= 0 && n != want {
		d.fail(CodeLength, "%s: have %d numbers, want %d", name, n, want)
		return
	}
	if want < 0 && n > max {
		d.fail(CodeLength, "%s: have %d numbers, want at most %d", name, n, max)
		return
	}
	out := into(n)
	v = blanks(v[1:])
	for i := range out {
		var ok bool
		if out[i], v, ok = oneByte(v); !ok {
			d.fail(CodeRange, "%s: want whole numbers from 0 to 255", name)
			return
		}
		v = afterComma(blanks(v))
	}
}

// countElements counts the elements of a flat array; nested ones make numbers that are refused later.
func countElements(b []byte) int {
	if len(blanks(b[1:])) == 1 {
		return 0
	}
	return 1 + bytes.Count(b, []byte{','})
}

// oneByte reads a decimal number of one byte: no sign, no leading zero.
func oneByte(b []byte) (v byte, rest []byte, ok bool) {
	n, i := 0, 0
	for ; i < len(b) && i < 4 && '0' <= b[i] && b[i] <= '9'; i++ {
		n = 10*n + int(b[i]-'0')
	}
	return byte(n), b[i:], i > 0 && n <= 255
}

// ints reads exactly n public numbers of one byte each; any number up to max if n is negative.
func (d *jsonReader) ints(name string, b []byte, n, max int) (out []byte) {
	d.intBytes(name, b, n, max, func(n int) []byte { out = make([]byte, n); return out })
	return out
}

// shareY reads the bytes of a share straight into its pages, after as many public ones as before has. They are destroyed
// if anything later is refused.
func (d *jsonReader) shareY(name string, b, before []byte) secret.Share {
	s, err := secret.New[secret.ShareKind](d.alloc, ShareSize, func(out []byte) error {
		all := make([]byte, len(before)+ShareSize) // one buffer for both
		defer clear(all)
		d.intBytes(name, b, len(all), 0, func(int) []byte { return all })
		if d.err != nil {
			return d.err
		}
		copy(before, all)
		copy(out, all[len(before):])
		return nil
	})
	if err != nil {
		if d.err == nil {
			d.err = reason.Wrap(err, CodeAllocate, "raise the limit of locked memory", "wire: decode json: take memory for a share")
		}
		return secret.Share{}
	}
	d.undo = append(d.undo, s.Destroy)
	return s
}

func (d *jsonReader) rackID(name string, b []byte) ident.RackID {
	s := d.text(name, b)
	id, err := ident.ParseRackID(s)
	if d.err == nil && (err != nil || id.String() != s) {
		d.fail(CodeText, "%s: have %.60q, want a hyphenated lower-case UUID", name, s)
	}
	return id
}
