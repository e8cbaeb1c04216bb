package wire

import (
	"encoding/json"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
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

// MarshalJSON implements [json.Marshaler]. A nil configuration is null.
func (j ConfigurationJSON) MarshalJSON() ([]byte, error) {
	return build(nil, MaxPayload, func(w *writer) { w.configurationJSON(j.Configuration) })
}

func (w *writer) configurationJSON(c *quorum.Configuration) {
	if c == nil {
		w.str("null")
		return
	}
	w.str(`{"rack_id":"` + c.RackID.String() + `","epoch":`)
	w.decimal(uint64(c.Epoch))
	w.str(`,"coordinator":`)
	w.baseboardJSON(c.Coordinator)
	w.str(`,"members":[`)
	for i, m := range c.Members {
		w.comma(i)
		w.str(`[`)
		w.baseboardJSON(m.ID)
		w.str(`,`)
		w.hexJSON(m.ShareDigest[:])
		w.str(`]`)
	}
	w.str(`],"threshold":`)
	w.decimal(uint64(c.Threshold))
	w.str(`,"encrypted_rack_secrets":`)
	if e := c.EncryptedSecrets; e != nil {
		w.str(`{"salt":`)
		w.hexJSON(e.Salt[:])
		w.str(`,"data":`)
		w.hexJSON(e.Data)
		w.str(`}}`)
		return
	}
	w.str(`null}`)
}

func (w *writer) baseboardJSON(b ident.Baseboard) {
	w.str(`{"part_number":`)
	w.quoted(b.Part)
	w.str(`,"serial_number":`)
	w.quoted(b.Serial)
	w.str(`}`)
}

// comma goes before every element of a list but the first.
func (w *writer) comma(i int) {
	if i > 0 {
		w.byte(',')
	}
}

// decimal writes a number. Its digits may be those of a share.
func (w *writer) decimal(v uint64) {
	var digits [20]byte
	at := len(digits)
	for {
		at--
		digits[at] = byte('0' + v%10)
		if v /= 10; v == 0 {
			break
		}
	}
	w.raw(digits[at:])
	clear(digits[:])
}

// quoted writes the text of an identity, which is printable ASCII. It escapes what the reference escapes.
func (w *writer) quoted(s string) {
	w.byte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			w.byte('\\')
			w.byte(c)
		case c < ' ' || c > '~':
			w.fail(CodeText, "have %.40q, want printable ASCII", s)
		default:
			w.byte(c)
		}
	}
	w.byte('"')
}

func (w *writer) hexJSON(p []byte) {
	w.byte('"')
	for _, c := range p {
		w.byte(hexDigits[c>>4])
		w.byte(hexDigits[c&15])
	}
	w.byte('"')
}

func (w *writer) intsJSON(p []byte) {
	w.byte('[')
	w.intsInJSON(0, p)
	w.byte(']')
}

// intsInJSON writes the elements of an array that has at already.
func (w *writer) intsInJSON(at int, p []byte) {
	for i, c := range p {
		w.comma(at + i)
		w.decimal(uint64(c))
	}
}

// revealJSON writes the bytes of a share as an array of numbers, after the given public ones.
func (w *writer) revealJSON(s secret.Share, before ...byte) {
	w.byte('[')
	w.intsInJSON(0, before)
	if s.Use(func(b []byte) error { w.intsInJSON(len(before), b); return nil }) != nil {
		w.fail(CodeEncode, "share is empty or destroyed")
	}
	w.byte(']')
}

// UnmarshalJSON implements [json.Unmarshaler]. null is a nil configuration.
func (j *ConfigurationJSON) UnmarshalJSON(b []byte) error {
	if len(b) > MaxPayload {
		return tooLarge(uint64(len(b)))
	}
	d := jsonReader{hint: hintPeer}
	c := d.configuration(b)
	if d.err != nil {
		return d.err
	}
	j.Configuration = c
	return nil
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
	c := &quorum.Configuration{RackID: d.rackID("rack_id", v[0])}
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
