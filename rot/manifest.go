package rot

import (
	"cmp"
	"slices"
)

// Limits of a manifest.
const (
	maxRules      = 256
	maxAllowed    = 256
	maxTextField  = 128
	maxManifestID = 64
)

// Manifest says which measurements a host image or a firmware release may make (evidence.md §8). Two releases are valid
// during an update: their digests stand side by side.
type Manifest struct {
	ID         string `cbor:"1,keyasint" json:"id"`
	Rules      []Rule `cbor:"2,keyasint" json:"rules"`
	MinRelease uint64 `cbor:"3,keyasint" json:"min_release"`
}

// Rule governs one component. A register that any rule names is closed: an event in it that no rule selects is refused.
type Rule struct {
	Component string    `cbor:"1,keyasint" json:"component"`
	PCR       int       `cbor:"2,keyasint" json:"pcr"`
	Type      EventType `cbor:"3,keyasint" json:"type"`               // of the events it selects
	Variable  string    `cbor:"4,keyasint" json:"variable,omitempty"` // select only the UEFI variable of this name
	Allowed   []Allowed `cbor:"5,keyasint" json:"allowed"`
	// MinVersion refuses allowed digests of older versions.
	MinVersion uint64 `cbor:"6,keyasint" json:"min_version"`
	// Optional rules may select no event at all.
	Optional bool `cbor:"7,keyasint" json:"optional,omitempty"`
}

// Allowed is one digest that a component may have.
type Allowed struct {
	Digest  [32]byte `cbor:"1,keyasint" json:"digest"`
	Version uint64   `cbor:"2,keyasint" json:"version"`
	Release uint64   `cbor:"3,keyasint" json:"release"` // 0: valid in every release
}

// EncodeManifest gives the deterministic encoding.
func EncodeManifest(m *Manifest) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return encMode().Marshal(m)
}

// DecodeManifest reads a manifest strictly.
func DecodeManifest(b []byte) (*Manifest, error) {
	var m Manifest
	if err := decodeStrict(b, &m); err != nil {
		return nil, refuseBecause(err, CodeManifest, "manifest refused")
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return &m, nil
}

// Validate refuses a manifest that is too large or that governs nothing.
func (m *Manifest) Validate() error {
	if len(m.ID) == 0 || len(m.ID) > maxManifestID || len(m.Rules) == 0 || len(m.Rules) > maxRules {
		return refuse(CodeManifest, "manifest refused: have an id of %d bytes and %d rules, want 1 to %d and 1 to %d",
			len(m.ID), len(m.Rules), maxManifestID, maxRules)
	}
	for _, r := range m.Rules {
		if r.PCR < 0 || r.PCR > maxPCR || !r.Type.known() || r.Type == EvNoAction || len(r.Allowed) > maxAllowed ||
			len(r.Component) == 0 || len(r.Component) > maxTextField || len(r.Variable) > maxTextField {
			return refuse(CodeManifest, "manifest %.64q refused: rule for %.64q is malformed", m.ID, r.Component)
		}
		if len(r.Allowed) == 0 && !r.Optional {
			return refuse(CodeManifest, "manifest %.64q refused: rule for %.64q allows nothing", m.ID, r.Component)
		}
	}
	return nil
}

// Appraise judges a log that [EventLog.Explains] has accepted.
func (m *Manifest) Appraise(l *EventLog) error {
	if err := m.Validate(); err != nil {
		return err
	}
	matched := make([]bool, len(m.Rules))
	for i := range l.Events {
		e := &l.Events[i]
		if !m.governs(e.PCR) || e.Type == EvSeparator && validSeparator(e) {
			continue
		}
		if err := m.appraiseEvent(e, matched); err != nil {
			return err
		}
	}
	for i, r := range m.Rules {
		if !matched[i] && !r.Optional {
			return refuse(CodeManifest, "manifest %.64q: nothing was measured for %.64q in PCR %d", m.ID, r.Component, r.PCR)
		}
	}
	return nil
}

func (m *Manifest) governs(pcr int) bool {
	return slices.ContainsFunc(m.Rules, func(r Rule) bool { return r.PCR == pcr })
}

// appraiseEvent finds a rule that selects and allows the event, and marks it.
func (m *Manifest) appraiseEvent(e *Event, matched []bool) error {
	selected := ""
	for i := range m.Rules {
		r := &m.Rules[i]
		if !r.selects(e) {
			continue
		}
		selected = cmp.Or(selected, r.Component)
		if r.allows(e.Digest, m.MinRelease) {
			matched[i] = true
			return nil
		}
	}
	if selected == "" {
		return refuse(CodeManifest, "manifest %.64q: no rule for an event of type %v in PCR %d", m.ID, e.Type, e.PCR)
	}
	return refuse(CodeManifest, "manifest %.64q: %.64q in PCR %d is not allowed: have digest %x", m.ID, selected, e.PCR, e.Digest)
}

func (r *Rule) selects(e *Event) bool {
	if r.PCR != e.PCR || r.Type != e.Type {
		return false
	}
	if r.Variable == "" {
		return true
	}
	v, err := e.Variable()
	return err == nil && v.Name == r.Variable
}

func (r *Rule) allows(digest [32]byte, minRelease uint64) bool {
	return slices.ContainsFunc(r.Allowed, func(a Allowed) bool {
		return a.Digest == digest && a.Version >= r.MinVersion && (a.Release == 0 || a.Release >= minRelease)
	})
}

// LearnManifest makes a manifest from the log of a machine that is known to be good: every event of the given registers
// is allowed, and nothing else.
func LearnManifest(id string, l *EventLog, pcrs []int, version uint64) *Manifest {
	m := &Manifest{ID: id}
	for i := range l.Events {
		e := &l.Events[i]
		if !slices.Contains(pcrs, e.PCR) || e.Type == EvSeparator && validSeparator(e) {
			continue
		}
		r := Rule{Component: "event type " + e.Type.String(), PCR: e.PCR, Type: e.Type}
		if v, err := e.Variable(); err == nil && v.Name != "" && len("variable "+v.Name) <= maxTextField {
			r.Component, r.Variable = "variable "+v.Name, v.Name
		}
		at := slices.IndexFunc(m.Rules, func(o Rule) bool {
			return o.PCR == r.PCR && o.Type == r.Type && o.Variable == r.Variable
		})
		if at < 0 {
			m.Rules = append(m.Rules, r)
			at = len(m.Rules) - 1
		}
		if !slices.ContainsFunc(m.Rules[at].Allowed, func(a Allowed) bool { return a.Digest == e.Digest }) {
			m.Rules[at].Allowed = append(m.Rules[at].Allowed, Allowed{Digest: e.Digest, Version: version})
		}
	}
	return m
}
