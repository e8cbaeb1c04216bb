package unlock

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// tokenType marks the token that we leave in a header.
const tokenType = "sledvault"

// Bounds on what a key slot may ask of cryptsetup: a tampered header must not eat the machine.
const (
	maxDepth      = 8
	maxNodes      = 4096
	maxIterations = 10_000_000
	maxArgonKiB   = 1 << 20
	maxArgonTime  = 64
	maxSlots      = 32
	maxKeyslots   = 128 << 20
	stripes       = 4000
)

// object is a parsed JSON object. Keys are told apart by case and may not occur twice.
type object map[string]any

// parseObject reads one JSON object. Go's own decoder into structs would match keys in any case and take the last of two
// equal ones, and cryptsetup need not agree: so neither may occur.
func parseObject(b []byte) (object, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	nodes := 0
	v, err := parseValue(d, 0, &nodes)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("metadata: text after the end")
	}
	o, ok := v.(object)
	if !ok {
		return nil, errors.New("metadata: not an object")
	}
	return o, nil
}

func parseValue(d *json.Decoder, depth int, nodes *int) (any, error) {
	if *nodes++; depth > maxDepth || *nodes > maxNodes {
		return nil, fmt.Errorf("metadata: too deep or too large: want at most %d levels and %d values", maxDepth, maxNodes)
	}
	t, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	switch t {
	case json.Delim('{'):
		return parseMembers(d, depth, nodes)
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := parseValue(d, depth+1, nodes)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	return t, nil
}

func parseMembers(d *json.Decoder, depth int, nodes *int) (any, error) {
	o := object{}
	for d.More() {
		k, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("metadata: %w", err)
		}
		key := k.(string) // the decoder gives nothing else in this place
		if _, twice := o[key]; twice {
			return nil, fmt.Errorf("metadata: key %.40q occurs twice", key)
		}
		if o[key], err = parseValue(d, depth+1, nodes); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return o, err
}

// picker takes typed members out of an object and keeps the first thing that was wrong. What is not taken is refused by
// rest: nothing that we did not understand may reach cryptsetup.
type picker struct {
	o     object
	where string
	taken []string
	err   *error
}

func pick(o object, where string, err *error) *picker { return &picker{o: o, where: where, err: err} }

func (p *picker) fail(format string, args ...any) {
	if *p.err == nil {
		*p.err = fmt.Errorf("metadata: %s: %s", p.where, fmt.Sprintf(format, args...))
	}
}

func take[T any](p *picker, key string) (v T) {
	p.taken = append(p.taken, key)
	v, ok := p.o[key].(T)
	if !ok {
		p.fail("%s is absent or of the wrong kind", key)
	}
	return v
}

func (p *picker) has(key string) bool { _, ok := p.o[key]; return ok }

func (p *picker) str(key string) string { return take[string](p, key) }

func (p *picker) obj(key string) object { return take[object](p, key) }

// num reads a JSON number, or the decimal text in which LUKS2 writes 64-bit numbers.
func (p *picker) num(key string, quoted bool, limit uint64) uint64 {
	var s string
	if quoted {
		s = take[string](p, key)
	} else {
		s = string(take[json.Number](p, key))
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > limit || (len(s) > 1 && s[0] == '0') {
		p.fail("%s: have %.24q, want a number up to %d", key, s, limit)
	}
	return n
}

func (p *picker) strs(key string) (out []string) {
	for _, v := range take[[]any](p, key) {
		s, ok := v.(string)
		if !ok {
			p.fail("%s holds something else than text", key)
		}
		out = append(out, s)
	}
	return out
}

func (p *picker) rest() {
	for k := range p.o {
		if !slices.Contains(p.taken, k) {
			p.fail("unknown member %.40q", k)
			return
		}
	}
}

// metadata is what we understand of a header. The objects are kept to be written into the private copy (private.go).
type metadata struct {
	raw           rawHeader
	slots         map[int]slot
	segment       object
	digest        object
	jsonSize      uint64
	keyslotsSize  uint64
	flags         []string
	segmentOffset uint64
	pins          []Pin
	rack          ident.RackID
	epoch         ident.Epoch
	tokenSlot     int // -1: no token of ours
	tokenID       string
}

type slot struct {
	object       object
	offset, size uint64 // of its area, from the start of the header
}

// parseMetadata believes nothing: every member is bounded, and anything unknown is refused with the disk's name.
func parseMetadata(h rawHeader, id string) (*metadata, error) {
	top, err := parseObject(h.json)
	if err != nil {
		return nil, reason.Wrap(err, CodeDamaged, hintDamaged, "unlock: disk %s", id)
	}
	if what := reencrypting(top); what != "" {
		return nil, reason.New(CodeReencrypt, hintReencrypt, "unlock: disk %s: header is marked as being re-encrypted: %s", id, what)
	}
	m := &metadata{raw: h, slots: map[int]slot{}, tokenSlot: -1}
	p := pick(top, "header", &err)
	keyslots, segments, digests := p.obj("keyslots"), p.obj("segments"), p.obj("digests")
	tokens, config := p.obj("tokens"), p.obj("config")
	p.rest()
	m.config(config, &err)
	m.keyslots(keyslots, &err)
	m.oneSegment(segments, &err)
	m.oneDigest(digests, &err)
	m.tokens(tokens)
	if err != nil {
		return nil, reason.Wrap(err, CodeRefused, hintRefused, "unlock: disk %s", id)
	}
	return m, nil
}

// reencrypting looks for every mark that makes cryptsetup continue a re-encryption, however wrong the rest may be.
func reencrypting(top object) string {
	config, _ := top["config"].(object)
	req, _ := config["requirements"].(object)
	mandatory, _ := req["mandatory"].([]any)
	for _, v := range mandatory {
		if s, ok := v.(string); ok && strings.HasPrefix(s, "online-reencrypt") {
			return fmt.Sprintf("requirement %.40q", s)
		}
	}
	slots, _ := top["keyslots"].(object)
	for name, v := range slots {
		if s, ok := v.(object); ok && s["type"] == "reencrypt" {
			return fmt.Sprintf("key slot %.8q", name)
		}
	}
	segs, _ := top["segments"].(object)
	for name, v := range segs {
		if s, ok := v.(object); ok && s["flags"] != nil {
			return fmt.Sprintf("flags on segment %.8q", name)
		}
	}
	return ""
}

func (m *metadata) config(o object, err *error) {
	p := pick(o, "config", err)
	m.jsonSize = p.num("json_size", true, maxCopy)
	m.keyslotsSize = p.num("keyslots_size", true, maxKeyslots)
	if m.jsonSize != m.raw.size-binarySize {
		p.fail("json_size: have %d, want %d", m.jsonSize, m.raw.size-binarySize)
	}
	if p.has("flags") {
		m.flags = p.strs("flags")
	}
	if p.has("requirements") {
		// Re-encryption was looked for before; any other requirement asks for a feature that we do not know.
		if r := p.obj("requirements"); len(r) > 0 {
			q := pick(r, "requirements", err)
			if list := q.strs("mandatory"); len(list) > 0 {
				q.fail("have %.80q, want none", list)
			}
			q.rest()
		}
	}
	p.rest()
}

func (m *metadata) keyslots(o object, err *error) {
	for name, v := range o {
		n, e := strconv.Atoi(name)
		so, ok := v.(object)
		if e != nil || n < 0 || n >= maxSlots || strconv.Itoa(n) != name || !ok {
			*err = cmpErr(*err, fmt.Errorf("metadata: key slot %.8q: unknown form", name))
			continue
		}
		m.slots[n] = m.slot(name, so, err)
	}
}

func (m *metadata) slot(name string, o object, err *error) slot {
	p := pick(o, "key slot "+name, err)
	typ, size := p.str("type"), p.num("key_size", false, 64)
	if typ != "luks2" || size != 64 {
		p.fail("have %.16q with %d bytes, want luks2 with 64", typ, size)
	}
	if p.has("priority") {
		p.num("priority", false, 2)
	}
	a := pick(p.obj("area"), p.where+" area", err)
	s := slot{object: o, offset: a.num("offset", true, maxKeyslots+2*maxCopy), size: a.num("size", true, 1<<20)}
	start, end := 2*m.raw.size, 2*m.raw.size+m.keyslotsSize
	if s.offset < start || s.offset+s.size > end {
		a.fail("have %d bytes at %d, want them between %d and %d", s.size, s.offset, start, end)
	}
	if need := uint64(64 * stripes); s.size < need {
		a.fail("size: have %d, want at least %d", s.size, need)
	}
	if t, c, n := a.str("type"), a.str("encryption"), a.num("key_size", false, 64); t != "raw" || c != cipherName || (n != 64 && n != 32) {
		a.fail("have %.16q %.40q with %d bytes, want raw %s with 64", t, c, n, cipherName)
	}
	a.rest()
	f := pick(p.obj("af"), p.where+" anti-forensic", err)
	if t, n, h := f.str("type"), f.num("stripes", false, stripes), f.str("hash"); t != "luks1" || n != stripes || !hashOK(h) {
		f.fail("have %.16q, %d stripes, %.16q", t, n, h)
	}
	f.rest()
	checkKDF(p.obj("kdf"), p.where+" kdf", err)
	p.rest()
	return s
}

func hashOK(h string) bool { return slices.Contains([]string{"sha256", "sha512"}, h) }

func checkKDF(o object, where string, err *error) {
	p := pick(o, where, err)
	switch t := p.str("type"); t {
	case "pbkdf2":
		if h := p.str("hash"); !hashOK(h) {
			p.fail("hash: have %.16q, want sha256 or sha512", h)
		}
		p.num("iterations", false, maxIterations)
	case "argon2i", "argon2id":
		p.num("time", false, maxArgonTime)
		p.num("memory", false, maxArgonKiB)
		p.num("cpus", false, 8)
	default:
		p.fail("have %.16q, want pbkdf2 or argon2id", t)
	}
	p.base64("salt")
	p.rest()
}

func (p *picker) base64(key string) string {
	s := p.str(key)
	if b, err := base64.StdEncoding.Strict().DecodeString(s); err != nil || len(b) < 16 || len(b) > 128 {
		p.fail("%s: want 16 to 128 bytes in base64", key)
	}
	return s
}

func cmpErr(have, now error) error {
	if have != nil {
		return have
	}
	return now
}

// tokens finds ours. It only helps to find the epoch and the slot; a wrong one can mislead nobody but itself, so a token
// of another form is ignored rather than refused. Tokens never reach the private copy.
func (m *metadata) tokens(o object) {
	for name, v := range o {
		t, ok := v.(object)
		if !ok || t["type"] != tokenType {
			continue
		}
		var err error
		p := pick(t, "token", &err)
		p.str("type")
		version, slots := p.num("version", false, 1), p.strs("keyslots")
		rack, rackErr := ident.ParseRackID(p.str("rack"))
		epoch := p.num("epoch", true, 1<<63)
		p.rest()
		if err != nil || rackErr != nil || version != 1 || len(slots) != 1 {
			continue
		}
		n, convErr := strconv.Atoi(slots[0])
		if _, known := m.slots[n]; convErr == nil && known && ident.Epoch(epoch) >= m.epoch {
			m.rack, m.epoch, m.tokenSlot, m.tokenID = rack, ident.Epoch(epoch), n, name
		}
	}
}
