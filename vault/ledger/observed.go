package ledger

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"github.com/sledvault/sledvault/vault/reason"
)

// Observed is what a sled has seen and done and should remember, without being lost when it does not (ledger.md §7): its
// file costs no counter step, and an older one brought back is not noticed. It holds no secrets.
type Observed struct { //nolint:recvcheck // what returns a new one takes a value
	Version  uint8           `cbor:"0,keyasint"`
	Peers    map[string]Seen `cbor:"1,keyasint"` // by EK Name, in hexadecimal
	Alarms   []Alarm         `cbor:"2,keyasint"` // oldest first
	Releases []Release       `cbor:"3,keyasint"` // oldest first
	Reasons  []Reason        `cbor:"4,keyasint"` // the counters of the life before
}

// Seen is the highest that a peer's evidence has shown. Less than that is a rollback or another TPM.
type Seen struct {
	Sequence     uint64 `cbor:"1,keyasint" json:"sequence"`
	Generation   uint64 `cbor:"2,keyasint" json:"generation"`
	ResetCount   uint32 `cbor:"3,keyasint" json:"reset_count"`
	RestartCount uint32 `cbor:"4,keyasint" json:"restart_count"`
	// Counter is the SHA-256 of the Name of the counter that all this belongs to: a sled that was enrolled anew has another
	// one and starts anew. All zero, in files of before it was kept, applies to any counter.
	Counter [32]byte `cbor:"5,keyasint,omitzero" json:"-"`
}

// Alarm is one thing that an operator should see even after a restart.
type Alarm struct {
	Code   reason.Code `cbor:"1,keyasint" json:"code"`
	Peer   string      `cbor:"2,keyasint" json:"peer,omitempty"`
	Text   string      `cbor:"3,keyasint" json:"text"`
	BootMS int64       `cbor:"4,keyasint" json:"boot_ms"`                   // milliseconds since boot, never the wall clock
	Resets uint32      `cbor:"5,keyasint" json:"resets"`                    // the TPM's reset count then: tells boots apart
	Epoch  uint64      `cbor:"6,keyasint,omitempty" json:"epoch,omitempty"` // 0 where none is concerned
}

// Same reports whether two alarms say the same, whenever they were raised.
func (a Alarm) Same(o Alarm) bool {
	return a.Code == o.Code && a.Epoch == o.Epoch && a.Peer == o.Peer && clip(a.Text) == clip(o.Text)
}

// Release is one disk key that was handed out.
type Release struct {
	Disk   string `cbor:"1,keyasint" json:"disk"`
	UID    uint32 `cbor:"2,keyasint" json:"uid"`
	PID    int32  `cbor:"3,keyasint" json:"pid"`
	Role   string `cbor:"4,keyasint" json:"role"`
	BootMS int64  `cbor:"5,keyasint" json:"boot_ms"`
	Resets uint32 `cbor:"6,keyasint" json:"resets"`
}

// Reason is one line of a [reason.Log].
type Reason struct {
	Code  reason.Code `cbor:"1,keyasint" json:"code"`
	Peer  string      `cbor:"2,keyasint" json:"peer,omitempty"`
	Count uint64      `cbor:"3,keyasint" json:"count"`
	Last  string      `cbor:"4,keyasint" json:"last,omitempty"`
}

// Limits of the observations. What is over the limit is dropped, oldest first; peers in the order of their names.
const (
	maxSeen     = 256
	maxAlarms   = 256
	maxReleases = 1024
	maxReasons  = 1024
	maxText     = 512
	maxObserved = 2 << 20 // bytes of the file
)

const observedVersion = 1

// observedFile is the kind of the observations' file.
func observedFile() uncounted {
	return uncounted{ObservedFile, "svobserv", observedVersion, "sledvault/observed/v1", maxObserved, "observed", CodeObserved}
}

// AddRelease records a key release; the oldest makes room.
func (o *Observed) AddRelease(r Release) { o.Releases = append(newest(o.Releases, maxReleases-1), r) }

// AddAlarm records an alarm; the oldest makes room.
func (o *Observed) AddAlarm(a Alarm) { o.Alarms = append(newest(o.Alarms, maxAlarms-1), a) }

// See raises what is remembered of a peer; nothing ever goes down. The restart count starts anew with each reset, and all
// of it with another counter.
func (o *Observed) See(ekName string, s Seen) {
	if o.Peers == nil {
		o.Peers = map[string]Seen{}
	}
	have := o.Peers[ekName]
	if s.Counter != have.Counter && have.Counter != [32]byte{} && s.Counter != [32]byte{} {
		have = Seen{}
	}
	if s.Counter == [32]byte{} {
		s.Counter = have.Counter
	}
	switch {
	case s.ResetCount < have.ResetCount:
		s.ResetCount, s.RestartCount = have.ResetCount, have.RestartCount
	case s.ResetCount == have.ResetCount:
		s.RestartCount = max(have.RestartCount, s.RestartCount)
	}
	s.Sequence, s.Generation = max(have.Sequence, s.Sequence), max(have.Generation, s.Generation)
	o.Peers[ekName] = s
}

func (o Observed) bounded() Observed {
	o.Version = observedVersion
	peers := maps.Clone(o.Peers)
	for i, name := range slices.Sorted(maps.Keys(peers)) {
		if i >= maxSeen || len(name) > maxText {
			delete(peers, name)
		}
	}
	o.Peers = peers
	o.Alarms, o.Releases, o.Reasons = newest(o.Alarms, maxAlarms), newest(o.Releases, maxReleases), newest(o.Reasons, maxReasons)
	for i := range o.Alarms {
		a := &o.Alarms[i]
		a.Peer, a.Text = clip(a.Peer), clip(a.Text)
	}
	for i := range o.Releases {
		r := &o.Releases[i]
		r.Disk, r.Role = clip(r.Disk), clip(r.Role)
	}
	for i := range o.Reasons {
		r := &o.Reasons[i]
		r.Peer, r.Last = clip(r.Peer), clip(r.Last)
	}
	return o
}

// clone copies what the caller might change.
func (o Observed) clone() Observed {
	o.Peers, o.Alarms, o.Releases, o.Reasons = maps.Clone(o.Peers), slices.Clone(o.Alarms), slices.Clone(o.Releases), slices.Clone(o.Reasons)
	return o
}

func newest[T any](s []T, n int) []T { return slices.Clone(s[max(0, len(s)-n):]) }

// clip cuts a text to the limit, leaving valid UTF-8.
func clip(s string) string {
	out := []rune(s)
	for len(string(out)) > maxText {
		out = out[:len(out)-1-(len(string(out))-maxText)/4]
	}
	return string(out)
}

func codec() (cbor.EncMode, cbor.DecMode, error) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, nil, err
	}
	dec, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, MaxNestedLevels: 4, MaxArrayElements: maxReleases + 1, MaxMapPairs: maxSeen + 16,
	}.DecMode()
	return enc, dec, err
}

// Observed returns a copy of the observations as last saved or loaded.
func (l *Ledger) Observed() Observed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.observed.clone()
}

// SaveObserved stores the observations on both media, without a counter step. One medium is enough; when neither takes
// them that is an error, and what they announce (a key release, say) must not happen. The ledger goes on.
func (l *Ledger) SaveObserved(ctx context.Context, o Observed) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return errStopped
	}
	o = o.bounded()
	enc, _, err := codec()
	if err != nil {
		return err
	}
	plain, err := enc.Marshal(o)
	if err != nil {
		return reason.Wrap(err, CodeObserved, "", "ledger: encode observations")
	}
	if err := l.saveUncounted(ctx, observedFile(), plain, &l.obsNumber); err != nil {
		return err
	}
	l.observed = o.clone()
	return nil
}

// parseObserved reads the plaintext of the observations.
func parseObserved(plain []byte) (o Observed, err error) {
	_, dec, err := codec()
	if err != nil {
		return o, err
	}
	if err := dec.Unmarshal(plain, &o); err != nil {
		return Observed{}, fmt.Errorf("ledger: observations: %w", err)
	}
	if o.Version != observedVersion {
		return Observed{}, formatError("observations of version %d, want %d", o.Version, observedVersion)
	}
	return o, nil
}

// loadObserved takes the newer of both files. Damage is counted, not fatal: the observations start empty.
func (l *Ledger) loadObserved() error {
	l.observed = Observed{Version: observedVersion}
	l.loadUncounted(observedFile(), &l.obsNumber, func(plain []byte) error {
		o, err := parseObserved(plain)
		if err == nil {
			l.observed = o
		}
		return err
	})
	return l.cfg.step("start/observed")
}
