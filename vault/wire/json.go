package wire

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// ConfigurationJSON is a configuration in its JSON form (wire.md §8): ids and digests as text, members as pairs. It is
// the form of the reference's ledgers and of the quorum API.
type ConfigurationJSON struct{ *quorum.Configuration }

// EncodeConfigurationJSON writes the JSON form: compact, fields in the order of the wire.
func EncodeConfigurationJSON(c *quorum.Configuration) ([]byte, error) {
	return json.Marshal(ConfigurationJSON{c})
}

// DecodeConfigurationJSON reads the JSON form. It refuses unknown, missing and duplicate keys, other spellings of ids and
// digests, and members that are not ascending.
func DecodeConfigurationJSON(b []byte) (*quorum.Configuration, error) {
	var c ConfigurationJSON
	if err := c.UnmarshalJSON(b); err != nil {
		return nil, err
	}
	return c.Configuration, nil
}

type (
	baseboardJSON struct {
		Part   string `json:"part_number"`
		Serial string `json:"serial_number"`
	}
	secretsJSON struct {
		Salt string `json:"salt"`
		Data string `json:"data"`
	}
	configJSON struct {
		RackID      string        `json:"rack_id"`
		Epoch       uint64        `json:"epoch"`
		Coordinator baseboardJSON `json:"coordinator"`
		Members     [][2]any      `json:"members"`
		Threshold   uint8         `json:"threshold"`
		Secrets     *secretsJSON  `json:"encrypted_rack_secrets"`
	}
)

// MarshalJSON implements [json.Marshaler]. A nil configuration is null.
func (j ConfigurationJSON) MarshalJSON() ([]byte, error) {
	c := j.Configuration
	if c == nil {
		return []byte("null"), nil
	}
	out := configJSON{
		RackID: c.RackID.String(), Epoch: uint64(c.Epoch), Coordinator: baseboardJSON(c.Coordinator),
		Threshold: uint8(c.Threshold), Members: [][2]any{},
	}
	for _, m := range c.Members {
		out.Members = append(out.Members, [2]any{baseboardJSON(m.ID), hex.EncodeToString(m.ShareDigest[:])})
	}
	if e := c.EncryptedSecrets; e != nil {
		out.Secrets = &secretsJSON{hex.EncodeToString(e.Salt[:]), hex.EncodeToString(e.Data)}
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements [json.Unmarshaler]. null is a nil configuration.
func (j *ConfigurationJSON) UnmarshalJSON(b []byte) error {
	if len(b) > MaxPayload {
		return tooLarge(uint64(len(b)))
	}
	d := jsonReader{}
	c := d.configuration(b)
	if d.err != nil {
		return d.err
	}
	j.Configuration = c
	return nil
}

// jsonReader decodes with a sticky error, like reader.
type jsonReader struct{ err *reason.Error }

func (d *jsonReader) fail(code reason.Code, format string, args ...any) {
	if d.err == nil {
		d.err = reason.New(code, hintPeer, "wire: decode json: "+format, args...)
	}
}

// object reads an object that has exactly the given keys, each once, and returns their values in the keys' order.
func (d *jsonReader) object(b []byte, names ...string) []json.RawMessage {
	out := make([]json.RawMessage, len(names))
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		d.fail(CodeType, "want an object with %q", names)
		return out
	}
	for dec.More() && d.err == nil {
		t, err := dec.Token()
		name, _ := t.(string)
		at := slices.Index(names, name)
		switch {
		case err != nil:
			d.fail(CodeType, "not JSON")
		case at < 0:
			d.fail(CodeUnknownKey, "unknown key %.60q", name)
		case out[at] != nil:
			d.fail(CodeDuplicate, "key %q occurs twice", name)
		case dec.Decode(&out[at]) != nil:
			d.fail(CodeType, "%s: not JSON", name)
		}
	}
	d.end(dec)
	for i, v := range out {
		if v == nil {
			d.fail(CodeMissing, "key %q is missing", names[i])
		}
	}
	return out
}

// end reads the closing bracket and refuses anything after it.
func (d *jsonReader) end(dec *json.Decoder) {
	if d.err != nil {
		return
	}
	if _, err := dec.Token(); err != nil {
		d.fail(CodeShort, "input ends early")
		return
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		d.fail(CodeTrailing, "something follows the value")
	}
}

// list reads an array of at most max elements.
func (d *jsonReader) list(b []byte, max int) (out []json.RawMessage) {
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		d.fail(CodeType, "want an array")
		return nil
	}
	for dec.More() && d.err == nil {
		var v json.RawMessage
		switch {
		case len(out) == max:
			d.fail(CodeLength, "have more than %d elements", max)
		case dec.Decode(&v) != nil:
			d.fail(CodeType, "element %d: not JSON", len(out))
		}
		out = append(out, v)
	}
	d.end(dec)
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

func (d *jsonReader) rackID(b []byte) ident.RackID {
	s := d.text("rack_id", b)
	id, err := ident.ParseRackID(s)
	if d.err == nil && (err != nil || id.String() != s) {
		d.fail(CodeText, "rack_id: have %.60q, want a hyphenated lower-case UUID", s)
	}
	return id
}

func (d *jsonReader) baseboard(name string, b []byte) (id ident.Baseboard) {
	v := d.object(b, "part_number", "serial_number")
	id = ident.Baseboard{Part: d.text("part_number", v[0]), Serial: d.text("serial_number", v[1])}
	if d.err == nil {
		if err := id.Validate(); err != nil {
			d.fail(CodeText, "%s: %v", name, err)
		}
	}
	return id
}

func (d *jsonReader) configuration(b []byte) *quorum.Configuration {
	if string(b) == "null" {
		return nil
	}
	v := d.object(b, "rack_id", "epoch", "coordinator", "members", "threshold", "encrypted_rack_secrets")
	if d.err != nil {
		return nil
	}
	c := &quorum.Configuration{RackID: d.rackID(v[0])}
	d.value("epoch", v[1], &c.Epoch)
	c.Coordinator = d.baseboard("coordinator", v[2])
	for _, m := range d.list(v[3], MaxMembers) {
		if d.err != nil {
			return nil
		}
		c.Members = append(c.Members, d.member(m, c.Members))
	}
	d.value("threshold", v[4], &c.Threshold)
	if d.err == nil && string(v[5]) != "null" {
		s := d.object(v[5], "salt", "data")
		c.EncryptedSecrets = &keys.EncryptedSecrets{Salt: d.digest("salt", s[0]), Data: d.hex("data", s[1], -1)}
	}
	return c
}

func (d *jsonReader) member(b []byte, before []quorum.Member) (m quorum.Member) {
	v := d.list(b, 2)
	if d.err != nil {
		return m
	}
	if len(v) != 2 {
		d.fail(CodeLength, "member: have %d elements, want 2: baseboard, digest", len(v))
		return m
	}
	m = quorum.Member{ID: d.baseboard("member", v[0]), ShareDigest: d.digest("digest", v[1])}
	if n := len(before); n > 0 && d.err == nil {
		switch o := before[n-1].ID.Compare(m.ID); {
		case o == 0:
			d.fail(CodeDuplicate, "member %s occurs twice", m.ID)
		case o > 0:
			d.fail(CodeOrder, "members are not ascending at %s", m.ID)
		}
	}
	return m
}
