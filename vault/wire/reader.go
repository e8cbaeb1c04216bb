package wire

import (
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// reader decodes one CBOR item with a sticky error: after the first one every method returns zero values, so that the
// decoders read like the encoders. It never allocates by a length that it has not checked against the input.
//
// A strict reader accepts one form per value: shortest heads, definite lengths, fields in declaration order and no
// others. A tolerant one accepts what a serde decoder of the reference's messages may meet (wire.md §2).
type reader struct {
	b      []byte
	off    int
	strict bool
	state  bool // reads a state, not a message: for hints
	alloc  secret.Allocator
	undo   []func() // destroys the secrets made so far, if the rest is refused
	path   []string
	err    *reason.Error
}

const (
	maxSkipDepth = 16
	maxName      = 4096 // as the reference's decoder
)

func (r *reader) fail(code reason.Code, format string, args ...any) {
	if r.err != nil {
		return
	}
	where := strings.Join(r.path, ".")
	if where != "" {
		where += ": "
	}
	r.err = reason.New(code, hintOf(code, r.state), "wire: decode: "+strings.ReplaceAll(where, "%", "%%")+format, args...)
	r.off = len(r.b)
}

func (r *reader) enter(name string) { r.path = append(r.path, name) }
func (r *reader) leave()            { r.path = r.path[:len(r.path)-1] }

// finish ends decoding: nothing may follow, and if anything was refused the secrets made so far are destroyed.
func (r *reader) finish() error {
	if r.err == nil && r.off != len(r.b) {
		r.fail(CodeTrailing, "have %d bytes after the item, want none", len(r.b)-r.off)
	}
	if r.err == nil {
		return nil
	}
	for _, f := range r.undo {
		f()
	}
	return r.err
}

func (r *reader) take(n uint64) []byte {
	if r.err != nil {
		return nil
	}
	if n > uint64(len(r.b)-r.off) {
		r.fail(CodeShort, "input ends %d bytes early", n-uint64(len(r.b)-r.off))
		return nil
	}
	p := r.b[r.off : r.off+int(n)]
	r.off += int(n)
	return p
}

func (r *reader) peek() byte {
	if r.err != nil || r.off >= len(r.b) {
		return cborBreak // no caller accepts it as a value
	}
	return r.b[r.off]
}

// head reads an item's first byte and argument. Tags are refused everywhere: no correct peer sends one.
func (r *reader) head() (major byte, arg uint64, indefinite bool) {
	p := r.take(1)
	if p == nil {
		return 0, 0, false
	}
	major, info := p[0]&0xe0, p[0]&31
	if major == majTag {
		r.fail(CodeType, "have a tag, want none")
		return 0, 0, false
	}
	switch {
	case info < 24:
		return major, uint64(info), false
	case info == indefinit:
		if r.strict {
			r.fail(CodeNotCanonical, "have an indefinite length, want a definite one")
		}
		return major, 0, true
	case info > 27:
		r.fail(CodeType, "have reserved additional information %d", info)
		return 0, 0, false
	}
	size := 1 << (info - 24)
	p = r.take(uint64(size))
	if p == nil {
		return 0, 0, false
	}
	var wide [8]byte
	copy(wide[8-size:], p)
	arg = binary.BigEndian.Uint64(wide[:])
	if r.strict && major != majSimple && arg < [...]uint64{24, 1 << 8, 1 << 16, 1 << 32}[info-24] {
		r.fail(CodeNotCanonical, "have a number in %d bytes, want the shortest form", size)
	}
	return major, arg, false
}

func majorName(m byte) string {
	return [...]string{"unsigned integer", "negative integer", "byte string", "text", "array", "map", "tag", "simple value or float"}[m>>5]
}

// want reads a head of one major type and definite length.
func (r *reader) want(major byte) uint64 {
	m, arg, indefinite := r.head()
	if r.err != nil {
		return 0
	}
	if m != major || (indefinite && major != majArray && major != majMap) {
		r.fail(CodeType, "have %s, want %s of definite length", majorName(m), majorName(major))
		return 0
	}
	return arg
}

func (r *reader) uint() uint64 { return r.want(majUint) }

func (r *reader) uint8() uint8 {
	v := r.uint()
	if v > math.MaxUint8 {
		r.fail(CodeRange, "number does not fit one byte") // without the number: it may be part of a share
		return 0
	}
	return uint8(v)
}

func (r *reader) int() int64 {
	m, arg, indefinite := r.head()
	switch {
	case r.err != nil:
	case indefinite || (m != majUint && m != majNeg):
		r.fail(CodeType, "have %s, want integer", majorName(m))
	case arg > math.MaxInt64:
		r.fail(CodeRange, "integer does not fit 64 bits")
	case m == majNeg:
		return -1 - int64(arg)
	default:
		return int64(arg)
	}
	return 0
}

func (r *reader) bool() bool {
	p := r.take(1)
	if p == nil {
		return false
	}
	if p[0] != cborFalse && p[0] != cborTrue {
		r.fail(CodeType, "have %s, want bool", majorName(p[0]&0xe0))
	}
	return p[0] == cborTrue
}

// isNull consumes a null if one comes next.
func (r *reader) isNull() bool {
	if r.err == nil && r.peek() == cborNull {
		r.off++
		return true
	}
	return false
}

func (r *reader) null() {
	if !r.isNull() {
		r.fail(CodeType, "have a value, want null")
	}
}

// textBytes lends text of definite length, at most max bytes.
func (r *reader) textBytes(max int) []byte {
	n := r.want(majText)
	if n > uint64(max) {
		r.fail(CodeLength, "have text of %d bytes, want at most %d", n, max)
		return nil
	}
	return r.take(n)
}

func (r *reader) text(max int) string {
	p := r.textBytes(max)
	if !utf8.Valid(p) {
		r.fail(CodeText, "text is not UTF-8")
		return ""
	}
	return string(p)
}

// bytes copies a byte string of at most max bytes.
func (r *reader) bytes(max int) []byte {
	n := r.want(majBytes)
	if n > uint64(max) {
		r.fail(CodeLength, "have %d bytes, want at most %d", n, max)
		return nil
	}
	return slices.Clone(r.take(n))
}

// fixed fills dst from a byte string of exactly its length.
func (r *reader) fixed(dst []byte) {
	n := r.want(majBytes)
	if r.err == nil && n != uint64(len(dst)) {
		r.fail(CodeLength, "have %d bytes, want %d", n, len(dst))
		return
	}
	copy(dst, r.take(n))
}

// fixedOrInts is fixed; a tolerant reader also takes an array of integers.
func (r *reader) fixedOrInts(dst []byte) {
	if !r.strict && r.peek()&0xe0 == majArray {
		r.ints(dst)
		return
	}
	r.fixed(dst)
}

// ints fills dst from an array of exactly as many small integers.
func (r *reader) ints(dst []byte) {
	n := r.each(len(dst), func(i int) { dst[i] = r.uint8() })
	if r.err == nil && n != len(dst) {
		r.fail(CodeLength, "have %d integers, want %d", n, len(dst))
	}
}

// hex reads hex text. A tolerant reader takes upper-case digits as well.
func (r *reader) hex() []byte {
	p := r.textBytes(len(r.b))
	if len(p)%2 != 0 {
		r.fail(CodeText, "have %d hex digits, want an even number", len(p))
		return nil
	}
	out := make([]byte, len(p)/2)
	for i := range out {
		hi, lo := r.digit(p[2*i]), r.digit(p[2*i+1])
		out[i] = hi<<4 | lo
	}
	return out
}

func (r *reader) digit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F' && !r.strict:
		return c - 'A' + 10
	}
	r.fail(CodeText, "text is not lower-case hex")
	return 0
}

// each reads an array of at most max elements and returns how many there were.
func (r *reader) each(max int, element func(i int)) int {
	m, n, indefinite := r.head()
	if r.err != nil {
		return 0
	}
	if m != majArray {
		r.fail(CodeType, "have %s, want array", majorName(m))
		return 0
	}
	if n > uint64(max) {
		r.fail(CodeLength, "have %d elements, want at most %d", n, max)
		return 0
	}
	i := 0
	for ; r.err == nil && r.more(i, n, indefinite); i++ {
		if i == max {
			r.fail(CodeLength, "have more than %d elements", max)
			break
		}
		element(i)
	}
	return i
}

// eachNamed is each with the index in the error's path.
func (r *reader) eachNamed(max int, element func(i int)) int {
	return r.each(max, func(i int) {
		r.enter(strconv.Itoa(i))
		element(i)
		r.leave()
	})
}

// more says whether another element follows, and consumes the end mark of an indefinite length.
func (r *reader) more(i int, n uint64, indefinite bool) bool {
	if !indefinite {
		return uint64(i) < n
	}
	if r.off < len(r.b) && r.b[r.off] == cborBreak {
		r.off++
		return false
	}
	return true
}

// tuple reads an array of exactly the given elements.
func (r *reader) tuple(elements ...func()) {
	n := r.each(len(elements), func(i int) { elements[i]() })
	if r.err == nil && n != len(elements) {
		r.fail(CodeLength, "have %d elements, want %d", n, len(elements))
	}
}

// field is one field of a struct.
type field struct {
	name     string
	read     func()
	optional bool // may be absent, as an optional field may be for the reference's decoder
	tail     bool // the strict form, too, may end before it
}

// fields reads a struct: a map with text keys.
func (r *reader) fields(fs ...field) {
	m, n, indefinite := r.head()
	if r.err != nil {
		return
	}
	if m != majMap {
		r.fail(CodeType, "have %s, want map", majorName(m))
		return
	}
	var seen uint64
	for i := 0; r.err == nil && r.more(i, n, indefinite); i++ {
		name := r.textBytes(maxName)
		at := slices.IndexFunc(fs, func(f field) bool { return f.name == string(name) })
		switch {
		case r.err != nil:
			return
		case at < 0 && r.strict:
			r.fail(CodeUnknownKey, "unknown field %.60q", name)
		case at < 0:
			r.skip(0)
		case seen&(1<<at) != 0:
			r.fail(CodeDuplicate, "field %q occurs twice", fs[at].name)
		case r.strict && at != i:
			r.fail(CodeNotCanonical, "have field %q at place %d, want place %d", fs[at].name, i+1, at+1)
		default:
			seen |= 1 << at
			r.enter(fs[at].name)
			fs[at].read()
			r.leave()
		}
	}
	for i, f := range fs {
		if r.err == nil && seen&(1<<i) == 0 && !f.tail && (!f.optional || r.strict) {
			r.fail(CodeMissing, "field %q is missing", f.name)
		}
	}
}

// variant reads the name of an enum variant. If unit is false, the variant's value follows.
func (r *reader) variant() (name string, unit bool) {
	m := r.peek() & 0xe0
	switch {
	case r.err != nil:
		return "", true
	case r.off == len(r.b):
		r.take(1)
	case m == majText:
		unit = true
	case m == majMap:
		_, n, indefinite := r.head()
		if r.err == nil && (indefinite || n != 1) {
			r.fail(CodeType, "have a map of %d, want a variant: a map of 1 of definite length", n)
		}
	default:
		r.fail(CodeType, "have %s, want a variant: text, or a map of 1", majorName(m))
	}
	p := r.textBytes(maxName)
	if r.err != nil {
		return "", true
	}
	if !utf8.Valid(p) || len(p) > 60 {
		r.unknown(p)
		return "", true
	}
	return string(p), unit
}

func (r *reader) unknown(name []byte) { r.fail(CodeUnknown, "unknown variant %.60q", name) }

// option is one variant of an enum; read is nil for a unit variant.
type option struct {
	name string
	read func()
}

// oneOf reads an enum and returns the place of its variant.
func (r *reader) oneOf(opts ...option) int {
	name, unit := r.variant()
	if r.err != nil {
		return 0
	}
	at := slices.IndexFunc(opts, func(o option) bool { return o.name == name })
	if at < 0 {
		r.unknown([]byte(name))
		return 0
	}
	r.enter(name)
	defer r.leave()
	switch {
	case opts[at].read == nil && unit:
	case opts[at].read == nil && r.strict:
		r.fail(CodeNotCanonical, "have a map, want text")
	case opts[at].read == nil:
		r.null()
	case unit:
		r.fail(CodeType, "have text, want a map of 1 with the variant's value")
	default:
		opts[at].read()
	}
	return at
}

// skip passes over the value of an unknown field.
func (r *reader) skip(depth int) {
	if depth == maxSkipDepth {
		r.fail(CodeDepth, "nested deeper than %d", maxSkipDepth)
		return
	}
	m, n, indefinite := r.head()
	if r.err != nil {
		return
	}
	if indefinite && m != majArray && m != majMap {
		r.fail(CodeType, "have %s of indefinite length in an unknown field", majorName(m))
		return
	}
	switch m {
	case majBytes, majText:
		r.take(n)
	case majArray, majMap:
		for i := 0; r.err == nil && r.more(i, n, indefinite); i++ {
			if m == majMap {
				r.skip(depth + 1)
			}
			r.skip(depth + 1)
		}
	}
}
