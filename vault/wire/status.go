package wire

import (
	"cmp"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// NodeStatus is the answer to a proxied Status (wire.md §4.5). Sets are ascending.
type NodeStatus struct {
	ConnectedPeers  []ident.Baseboard
	Alarms          []Alarm
	HasLRTQShare    bool
	Configs         []ident.Epoch
	Shares          []ident.Epoch
	Commits         []ident.Epoch
	Expunged        *quorum.Expunged // nil while a member
	ProxiedRequests uint64
}

// AlarmKind names an alarm as on the wire.
type AlarmKind string

// The alarms that the wire knows, in the order of the set. Alarms of our own are not sent in a NodeStatus.
const (
	AlarmMismatchedConfigurations AlarmKind = "mismatched_configurations"         // Config1 (its own), Config2, From
	AlarmShareComputationFailed   AlarmKind = "share_computation_failed"          // Epoch, Err
	AlarmCommittedConfigLost      AlarmKind = "committed_configuration_lost"      // LatestCommitted, Epoch (collecting)
	AlarmDecryptionFailed         AlarmKind = "rack_secret_decryption_failed"     // Epoch, Err
	AlarmReconstructionFailed     AlarmKind = "rack_secret_reconstruction_failed" // Epoch, Err
)

// ErrSize is the Err of a reconstruction that gave a secret of the wrong size; the others are combine errors.
const ErrSize = "size"

// Alarm is one alarm of a NodeStatus.
type Alarm struct {
	Kind             AlarmKind
	Epoch            ident.Epoch
	LatestCommitted  ident.Epoch
	Err              string
	Config1, Config2 *quorum.Configuration
	From             string // text form of a baseboard, or "Nexus"
}

func alarmKinds() []AlarmKind {
	return []AlarmKind{
		AlarmMismatchedConfigurations, AlarmShareComputationFailed, AlarmCommittedConfigLost,
		AlarmDecryptionFailed, AlarmReconstructionFailed,
	}
}

// The error names of an alarm's kind, in the order of the set.
func combineErrors() []string {
	return []string{"too_few_shares", "duplicate_x_coordinates", "invalid_share_lengths", "invalid_share_id"}
}

func decryptErrors() []string { return []string{"aead", "invalid_length"} }

func alarmErrors(k AlarmKind) []string {
	switch k {
	case AlarmShareComputationFailed:
		return combineErrors()
	case AlarmDecryptionFailed:
		return decryptErrors()
	case AlarmReconstructionFailed:
		return append(combineErrors(), ErrSize)
	case AlarmMismatchedConfigurations, AlarmCommittedConfigLost:
		return nil
	}
	return nil
}

func compareAlarms(a, b Alarm) int {
	return cmp.Or(
		cmp.Compare(slices.Index(alarmKinds(), a.Kind), slices.Index(alarmKinds(), b.Kind)),
		cmp.Compare(a.LatestCommitted, b.LatestCommitted),
		cmp.Compare(a.Epoch, b.Epoch),
		cmp.Compare(slices.Index(alarmErrors(a.Kind), a.Err), slices.Index(alarmErrors(b.Kind), b.Err)),
	)
}

func (w *writer) nodeStatus(s NodeStatus) {
	w.mapOf(4)
	w.key("connected_peers")
	w.checkLen("connected peers", len(s.ConnectedPeers), maxPeers)
	w.array(len(s.ConnectedPeers))
	for _, b := range ident.SortBaseboards(s.ConnectedPeers) {
		w.baseboard(b)
	}
	w.key("alarms")
	w.checkLen("alarms", len(s.Alarms), maxAlarms)
	w.array(len(s.Alarms))
	for _, a := range slices.SortedStableFunc(slices.Values(s.Alarms), compareAlarms) {
		w.alarm(a)
	}
	w.key("persistent_state")
	w.mapOf(5)
	w.key("has_lrtq_share")
	w.bool(s.HasLRTQShare)
	w.epochs("configs", s.Configs)
	w.epochs("shares", s.Shares)
	w.epochs("commits", s.Commits)
	w.key("expunged")
	if s.Expunged == nil {
		w.null()
	} else {
		w.expunged(s.Expunged.Epoch, s.Expunged.From)
	}
	w.key("proxied_requests")
	w.uint(s.ProxiedRequests)
}

func (w *writer) epochs(key string, es []ident.Epoch) {
	w.checkLen(key, len(es), maxEpochs)
	w.key(key)
	w.array(len(es))
	for _, e := range slices.Sorted(slices.Values(es)) {
		w.uint(uint64(e))
	}
}

func (w *writer) alarm(a Alarm) {
	w.variant(string(a.Kind))
	switch a.Kind {
	case AlarmMismatchedConfigurations:
		w.mapOf(3)
		w.key("config1")
		w.configuration(a.Config1)
		w.key("config2")
		w.configuration(a.Config2)
		w.key("from")
		w.text(a.From)
	case AlarmCommittedConfigLost:
		w.mapOf(2)
		w.key("latest_committed_epoch")
		w.uint(uint64(a.LatestCommitted))
		w.key("collecting_epoch")
		w.uint(uint64(a.Epoch))
	case AlarmShareComputationFailed, AlarmDecryptionFailed, AlarmReconstructionFailed:
		w.mapOf(2)
		w.key("epoch")
		w.uint(uint64(a.Epoch))
		w.key("err")
		w.alarmError(a)
	default:
		w.fail(CodeEncode, "alarm %.40q", string(a.Kind))
	}
}

func (w *writer) alarmError(a Alarm) {
	switch {
	case !slices.Contains(alarmErrors(a.Kind), a.Err):
		w.fail(CodeEncode, "error %.40q of alarm %s", a.Err, a.Kind)
	case a.Kind != AlarmReconstructionFailed:
		w.text(a.Err)
	case a.Err == ErrSize:
		w.variant(ErrSize)
		w.null()
	default:
		w.variant("combine")
		w.text(a.Err)
	}
}

func (r *reader) nodeStatus() (s NodeStatus) {
	r.fields(
		field{name: "connected_peers", read: func() { s.ConnectedPeers = r.baseboards(maxPeers) }},
		field{name: "alarms", read: func() {
			r.eachNamed(maxAlarms, func(int) { s.Alarms = append(s.Alarms, r.alarm()) })
		}},
		field{name: "persistent_state", read: func() {
			r.fields(
				field{name: "has_lrtq_share", read: func() { s.HasLRTQShare = r.bool() }},
				field{name: "configs", read: func() { s.Configs = r.epochs() }},
				field{name: "shares", read: func() { s.Shares = r.epochs() }},
				field{name: "commits", read: func() { s.Commits = r.epochs() }},
				field{name: "expunged", optional: true, read: func() {
					if !r.isNull() {
						s.Expunged = &quorum.Expunged{}
						s.Expunged.Epoch, s.Expunged.From = r.expunged()
					}
				}},
			)
		}},
		field{name: "proxied_requests", read: func() { s.ProxiedRequests = r.uint() }},
	)
	return s
}

// epochs reads an ascending set.
func (r *reader) epochs() (out []ident.Epoch) {
	r.each(maxEpochs, func(int) {
		e := r.epoch()
		if n := len(out); n > 0 {
			r.checkAscending(cmp.Compare(out[n-1], e))
		}
		out = append(out, e)
	})
	return out
}

func (r *reader) alarm() (a Alarm) {
	withError := func() {
		r.fields(
			field{name: "epoch", read: func() { a.Epoch = r.epoch() }},
			field{name: "err", read: func() { a.Err = r.alarmError(a.Kind) }},
		)
	}
	as := func(k AlarmKind, read func()) option {
		return option{string(k), func() { a.Kind = k; read() }}
	}
	r.oneOf(
		as(AlarmMismatchedConfigurations, func() {
			r.fields(
				field{name: "config1", read: func() { a.Config1 = r.configuration() }},
				field{name: "config2", read: func() { a.Config2 = r.configuration() }},
				field{name: "from", read: func() { a.From = r.text(2*ident.MaxField + 1) }},
			)
		}),
		as(AlarmShareComputationFailed, withError),
		as(AlarmCommittedConfigLost, func() {
			r.fields(
				field{name: "latest_committed_epoch", read: func() { a.LatestCommitted = r.epoch() }},
				field{name: "collecting_epoch", read: func() { a.Epoch = r.epoch() }},
			)
		}),
		as(AlarmDecryptionFailed, withError),
		as(AlarmReconstructionFailed, withError),
	)
	return a
}

func (r *reader) alarmError(k AlarmKind) (name string) {
	if k != AlarmReconstructionFailed {
		return r.unitOf(alarmErrors(k))
	}
	r.oneOf(
		option{"combine", func() { name = r.unitOf(combineErrors()) }},
		option{ErrSize, func() { name = ErrSize; r.null() }},
	)
	return name
}

// unitOf reads an enum of unit variants.
func (r *reader) unitOf(names []string) string {
	opts := make([]option, len(names))
	for i, n := range names {
		opts[i].name = n
	}
	return names[r.oneOf(opts...)]
}
