package ledger

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/chacha20poly1305"

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
}

// Alarm is one thing that an operator should see even after a restart.
type Alarm struct {
	Code   reason.Code `cbor:"1,keyasint" json:"code"`
	Peer   string      `cbor:"2,keyasint" json:"peer,omitempty"`
	Text   string      `cbor:"3,keyasint" json:"text"`
	BootMS int64       `cbor:"4,keyasint" json:"boot_ms"` // milliseconds since boot, never the wall clock
	Resets uint32      `cbor:"5,keyasint" json:"resets"`  // the TPM's reset count then: tells boots apart
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

const (
	observedMagic   = "svobserv"
	observedVersion = 1
	observedLabel   = "sledvault/observed/v1"
)

// AddRelease records a key release; the oldest makes room.
func (o *Observed) AddRelease(r Release) { o.Releases = append(newest(o.Releases, maxReleases-1), r) }

// AddAlarm records an alarm; the oldest makes room.
func (o *Observed) AddAlarm(a Alarm) { o.Alarms = append(newest(o.Alarms, maxAlarms-1), a) }

// See raises what is remembered of a peer; nothing ever goes down. The restart count starts anew with each reset.
func (o *Observed) See(ekName string, s Seen) {
	if o.Peers == nil {
		o.Peers = map[string]Seen{}
	}
	have := o.Peers[ekName]
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
func (l *Ledger) SaveObserved(_ context.Context, o Observed) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return errStopped
	}
	o = o.bounded()
	data, err := l.encodeObserved(o, l.obsNumber+1)
	if err != nil {
		return reason.Wrap(err, CodeObserved, "", "ledger: encode observations")
	}
	l.obsNumber++
	var errs [2]error
	for i := range l.folders {
		errs[i] = fmt.Errorf("ledger: copy %s: no medium", copyName(i))
		if l.folders[i] != nil {
			errs[i] = replace(l.folders[i], ObservedFile, data, func(step string) error { return l.cfg.hook("observed/" + copyName(i) + "/" + step) })
		}
		if aborted(errs[i]) {
			l.stopped = true
			return errs[i]
		}
		l.cfg.count(CodeDegraded, i, errs[i])
	}
	if errs[0] != nil && errs[1] != nil {
		return reason.Wrap(errors.Join(errs[0], errs[1]), CodeObserved, hintFolder, "ledger: observations not saved")
	}
	l.observed = o.clone()
	return nil
}

func (l *Ledger) observedKey() (key []byte, err error) {
	err = l.sealer.Key().Use(func(k []byte) error {
		key, err = hkdf.Key(sha256.New, k, nil, observedLabel, chacha20poly1305.KeySize)
		return err
	})
	return key, err
}

// head is what stands in clear: magic, version, rack, baseboard, number of the save. It is the associated data.
func (l *Ledger) head(number uint64) []byte {
	b := append(make([]byte, 0, 256), observedMagic...)
	b = binary.BigEndian.AppendUint16(b, observedVersion)
	b = append(b, l.cfg.Rack[:]...)
	b = append16(b, []byte(l.cfg.Baseboard.Part))
	b = append16(b, []byte(l.cfg.Baseboard.Serial))
	return binary.BigEndian.AppendUint64(b, number)
}

func (l *Ledger) encodeObserved(o Observed, number uint64) ([]byte, error) {
	enc, _, err := codec()
	if err != nil {
		return nil, err
	}
	plain, err := enc.Marshal(o)
	if err != nil {
		return nil, err
	}
	key, err := l.observedKey()
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	head := l.head(number)
	out := append(make([]byte, 0, len(head)+nonceLen+len(plain)+tagLen), head...)
	out = out[:len(head)+nonceLen]
	if _, err := io.ReadFull(l.cfg.Rand, out[len(head):]); err != nil {
		return nil, err
	}
	return aead.Seal(out, out[len(head):], plain, head), nil
}

// errForeign says that a file of observations is another sled's.
var errForeign = errors.New("ledger: observations of another sled")

func (l *Ledger) decodeObserved(b []byte) (o Observed, number uint64, err error) {
	n := len(l.head(0))
	if len(b) < n+nonceLen+tagLen {
		return o, 0, formatError("observations of %d bytes, want at least %d", len(b), n+nonceLen+tagLen)
	}
	number = binary.BigEndian.Uint64(b[n-8:])
	head := l.head(number)
	if string(b[:n]) != string(head) {
		return o, 0, errForeign
	}
	key, err := l.observedKey()
	if err != nil {
		return o, 0, err
	}
	defer clear(key)
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return o, 0, err
	}
	plain, err := aead.Open(nil, b[n:n+nonceLen], b[n+nonceLen:], head)
	if err != nil {
		return o, 0, errOpen
	}
	o, err = parseObserved(plain)
	return o, number, err
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
	for i, dir := range l.folders {
		if dir == nil {
			continue
		}
		raw, err := dir.Read(ObservedFile, maxObserved)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var o Observed
		var number uint64
		if err == nil {
			o, number, err = l.decodeObserved(raw)
		}
		if err != nil {
			l.cfg.count(CodeObserved, i, err)
			continue
		}
		if cmp.Compare(number, l.obsNumber) > 0 {
			l.observed, l.obsNumber = o, number
		}
	}
	return l.cfg.step("start/observed")
}
