package quorumtest

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// This file writes runs of the simulation as a module of TLA+, for docs/model/Trace.tla, which holds each event against
// the model of the protocol. Sleds are numbered from 1, epochs stay what they are.

// Traced records what happens in one run. Events that change nothing are left out, but for the answers to requests for
// shares, and the controller's requests: the model must find nothing to do either.
type Traced struct {
	sim    *Sim
	seed   uint64
	liar   *Sled
	events []string
	held   []string                            // by sled: what it holds, as it was written last
	stored []string                            // by sled: the stored part of it
	ids    map[ident.Epoch][]quorum.Digest     // configurations by epoch, in the order in which they appeared
	phase  map[ident.Epoch]rack.Phase          // of the controller's changes
	bases  map[ident.Epoch]map[int]ident.Epoch // what a coordinator built an epoch on
	epochs ident.Epoch                         // the highest
	lrtq   string                              // members and threshold of the older scheme
	forgot bool                                // a sled started from less than it had stored: outside the model
}

// outsideModel reports whether the model does not know an action: disks and journals that go back in time, sleds that are
// enrolled anew. A power cut may do the same; see [Traced.InsideModel].
func outsideModel(a Action) bool {
	return slices.Contains([]ActionKind{"rollback", "enrol-again", "swap", "ctl-old-journal"}, a.Kind)
}

// TraceableActions takes out of a run what the model does not know.
func TraceableActions(actions []Action) []Action {
	return slices.DeleteFunc(slices.Clone(actions), outsideModel)
}

// InsideModel reports whether a run has come to nothing that the model does not know: a sled that lost what it had stored,
// or a coordinator that made several configurations of one epoch.
func (t *Traced) InsideModel() bool { return !t.forgot && len(t.sim.frauds) == 0 }

// Trace records a run from now on. It takes the place of another watcher.
func Trace(s *Sim, seed uint64) *Traced {
	t := &Traced{
		sim: s, seed: seed, liar: s.liar, held: make([]string, len(s.Sleds)), stored: make([]string, len(s.Sleds)),
		ids: map[ident.Epoch][]quorum.Digest{}, phase: map[ident.Epoch]rack.Phase{}, bases: map[ident.Epoch]map[int]ident.Epoch{},
	}
	var older []ident.Baseboard
	for i, sled := range s.Sleds {
		t.held[i], t.stored[i] = t.state(sled), t.disk(sled)
		if sled.Disk.LRTQ != nil {
			older = append(older, sled.ID)
		}
	}
	t.lrtq = fmt.Sprintf("<<%s, %d>>", t.set(older), s.lrtq)
	s.Watch = t.watch
	return t
}

func (t *Traced) watch(e Event) {
	switch e.Kind {
	case EventController:
		t.controller()
	case EventCrash:
		t.put("crash", e.Sled, 0, 0, t.state(e.Sled))
	case EventStart:
		t.forgot = t.forgot || t.disk(e.Sled) != t.stored[e.Sled.Index]
		t.put("start", e.Sled, 0, 0, t.state(e.Sled))
	case EventStep:
		t.step(e)
	}
}

// controller writes what the journal has new.
func (t *Traced) controller() {
	c := t.sim.View().Controller
	before := t.phase[c.Epoch]
	if c.Epoch == 0 || before == c.Phase {
		return
	}
	t.phase[c.Epoch] = c.Phase
	t.epochs = max(t.epochs, c.Epoch)
	if before == "" {
		t.add(`<<"begin", %d, 0, %d, %s, %d, %d, %d, %d>>`, t.number(c.Coordinator), c.Epoch, t.set(c.Members), c.Threshold, c.NeedAcks, c.LastCommitted,
			t.sim.ctl.disk.Change.KeepFrom)
	}
	if decided := func(p rack.Phase) bool { return p == rack.Decided || p == rack.Done }; decided(c.Phase) && !decided(before) {
		t.add(`<<"decide", %d, 0, %d, %s>>`, t.number(c.Coordinator), c.Epoch, t.set(c.Acked))
	}
}

// step writes what an input did to a sled.
func (t *Traced) step(e Event) {
	kind, epoch := meaning(e.Input)
	other := 0
	if e.Peer != nil {
		other = e.Peer.Index + 1
	}
	if _, down := errors.AsType[*quorum.InvariantError](e.Err); down { // it is about to go down
		if t.disk(e.Sled) != t.stored[e.Sled.Index] {
			t.stored[e.Sled.Index] = t.disk(e.Sled)
			t.add(`<<"%s", %d, %d, %d, <<>>>>`, kind, e.Sled.Index+1, other, epoch)
		}
		return
	}
	if now := t.state(e.Sled); now == t.held[e.Sled.Index] && t.stateDecides(kind, epoch, e.Err) {
		t.add(`<<"idle", %d, 0, %d, "%s">>`, e.Sled.Index+1, epoch, kind)
	}
	if e.Err != nil {
		return
	}
	if older := t.sim.lrtq != 0; kind == "get" && epoch == quorum.LRTQEpoch && older != isOlderScheme(e.Input) {
		return // a question of the other scheme: only a liar asks it
	}
	if answer := answered(e); kind == "get" && answer != "" && epoch > 0 && epoch <= t.epochs { // liars ask for anything
		t.add(`<<"get", %d, %d, %d, "%s">>`, e.Sled.Index+1, other, epoch, answer)
	}
	t.compares(e)
	if now := t.state(e.Sled); now != t.held[e.Sled.Index] {
		t.put(kind, e.Sled, other, epoch, now)
	}
}

// stateDecides reports whether nothing but the sled's state explains that a request of the controller changed nothing.
func (t *Traced) stateDecides(kind string, epoch ident.Epoch, err error) bool {
	if kind != "reconfigure" && kind != "commit" && kind != "hand" || t.phase[epoch] == "" {
		return false
	}
	switch reason.CodeOf(err) {
	case "", quorum.CodeExpunged, quorum.CodeLastCommittedMismatch, quorum.CodePreparedEpochMismatch, quorum.CodeReconfigurationRunning,
		quorum.CodeReconfigurationConflict, quorum.CodeUpgradeRequired, quorum.CodeUpgradeRunning, quorum.CodeAlreadyUpgraded, quorum.CodeNotPrepared:
		return true
	}
	return false // forged in form or authority
}

// compares writes that a sled asks for shares to compare them (docs/protocol.md §8.5), which the model does not know.
func (t *Traced) compares(e Event) {
	for _, m := range e.Effects.Send {
		ask, ok := m.Message.Kind.(quorum.GetShare)
		if a := e.Sled.Node.Status().Agreement; ok && a != nil && a.Epoch == ask.Epoch {
			t.add(`<<"compare", %d, 0, %d>>`, e.Sled.Index+1, ask.Epoch)
			return
		}
	}
}

// put writes an event and what the sled holds after it.
func (t *Traced) put(kind string, s *Sled, other int, epoch ident.Epoch, state string) {
	t.held[s.Index], t.stored[s.Index] = state, t.disk(s)
	t.add(`<<"%s", %d, %d, %d, %s>>`, kind, s.Index+1, other, epoch, state)
}

func (t *Traced) add(format string, args ...any) {
	t.events = append(t.events, fmt.Sprintf(format, args...))
}

// meaning is the name that Trace.tla has for an input, and the epoch that it is about.
func meaning(in quorum.Input) (kind string, e ident.Epoch) {
	switch in := in.(type) {
	case quorum.PeerMessage:
		return messageMeaning(in.Message.Kind)
	case quorum.Reconfigure:
		return "reconfigure", in.Epoch
	case quorum.UpgradeLRTQ:
		return "reconfigure", in.Epoch
	case quorum.Commit:
		return "commit", in.Epoch
	case quorum.PrepareAndCommit:
		if in.Config != nil {
			return "hand", in.Config.Epoch
		}
	case quorum.LoadSecret:
		return "load", 0
	case quorum.CancelLoad:
		return "cancel", 0
	case quorum.ClearSecrets:
		return "clear", 0
	}
	return "other", 0
}

func messageMeaning(k quorum.MessageKind) (kind string, e ident.Epoch) {
	switch k := k.(type) {
	case quorum.Prepare:
		if k.Config != nil {
			return "prepare", k.Config.Epoch
		}
	case quorum.PrepareAck:
		return "ack", k.Epoch
	case quorum.GetShare:
		return "get", k.Epoch
	case quorum.GetLRTQShare:
		return "get", quorum.LRTQEpoch
	case quorum.ShareReply:
		return "share", k.Epoch
	case quorum.LRTQShare:
		return "share", quorum.LRTQEpoch
	case quorum.CommitAdvance:
		if k.Config != nil {
			return "advance", k.Config.Epoch
		}
	case quorum.ExpungedNotice:
		return "expunged", k.Epoch
	}
	return "other", 0
}

func isOlderScheme(in quorum.Input) bool {
	m, _ := in.(quorum.PeerMessage)
	_, ok := m.Message.Kind.(quorum.GetLRTQShare)
	return ok
}

// answered is how a sled answered a request for a share, in the model's words; empty if the message was no message of this
// rack, or came without the grant that the model takes for granted.
func answered(e Event) string {
	for _, m := range e.Effects.Send {
		switch m.Message.Kind.(type) {
		case quorum.ShareReply, quorum.LRTQShare:
			return "share"
		case quorum.CommitAdvance:
			return "advance"
		case quorum.ExpungedNotice:
			return "expunged"
		}
	}
	for _, n := range e.Effects.Notes {
		switch n.Code {
		case quorum.CodeExpunged:
			return "silence"
		case quorum.CodeNotMember:
			return "note"
		case quorum.CodeInvalidRackID, quorum.CodeGrantMissing, quorum.CodeGrantMismatch, quorum.CodeGrantInvalid:
			return ""
		}
	}
	return "none"
}

// state is what a sled holds and does: State of Trace.tla.
func (t *Traced) state(s *Sled) string {
	if !s.Up() {
		return fmt.Sprintf(`<<FALSE, %s, <<0, 0, "none", {}, {}>>, <<0, {}>>, <<0, {}, FALSE>>, 0>>`, t.disk(s))
	}
	st := s.Node.Status()
	coord, comp, load, has := `<<0, 0, "none", {}, {}>>`, `<<0, {}>>`, `<<0, {}, FALSE>>`, ident.Epoch(0)
	if c := st.Coordinator; c != nil {
		e := c.Config.Epoch
		if t.bases[e] == nil {
			t.bases[e] = map[int]ident.Epoch{}
		}
		if c.Collecting != nil {
			base := c.Collecting.Epoch
			if t.bases[e][s.Index] = base; base == quorum.LRTQEpoch && s.Disk.LRTQ != nil {
				t.bases[e][s.Index] = 0
			}
			coord = fmt.Sprintf(`<<%d, %d, "collect", %s, {}>>`, e, t.bases[e][s.Index], t.collected(s, c.Collecting, true))
		} else {
			coord = fmt.Sprintf(`<<%d, %d, "prepare", {}, %s>>`, e, t.base(s, e), t.set(c.Acked))
		}
	}
	if c := st.KeyShare; c != nil {
		comp = fmt.Sprintf(`<<%d, %s>>`, c.Epoch, t.collected(s, c, false))
	}
	if c := st.Loader.Collecting; c != nil {
		load = fmt.Sprintf(`<<%d, %s, %s>>`, c.Epoch, t.collected(s, c, true), truth(st.Loader.Waiting > 0))
	}
	if n := len(st.Loader.Loaded); n > 0 {
		has = st.Loader.Loaded[n-1]
	}
	return fmt.Sprintf(`<<TRUE, %s, %s, %s, %s, %d>>`, t.disk(s), coord, comp, load, has)
}

// base is the commit that a preparing coordinator built on: its latest one below the epoch.
func (t *Traced) base(s *Sled, e ident.Epoch) (base ident.Epoch) {
	for c := range s.Disk.Commits {
		if c < e {
			base = max(base, c)
		}
	}
	return base
}

// disk is the stored part of [Traced.state].
func (t *Traced) disk(s *Sled) string {
	var cfg []string
	for _, e := range quorum.Epochs(s.Disk.Configs) {
		t.epochs = max(t.epochs, e)
		cfg = append(cfg, fmt.Sprintf("(%d :> %d)", e, t.id(e, ConfigDigest(s.Disk.Configs[e]))))
	}
	configs := "<<>>"
	if len(cfg) > 0 {
		configs = strings.Join(cfg, " @@ ")
	}
	shares := quorum.Epochs(s.Disk.Shares)
	if s.Disk.LRTQ != nil {
		shares = append(shares, quorum.LRTQEpoch)
	}
	x := ident.Epoch(0)
	if s.Disk.Expunged != nil {
		x = s.Disk.Expunged.Epoch
	}
	return fmt.Sprintf("%s, %s, %s, %s, %d", configs, numbers(shares), numbers(quorum.Epochs(s.Disk.Commits)),
		numbers(quorum.Epochs(s.Disk.Certificates)), x)
}

// id numbers the configurations of an epoch. There should only be one.
func (t *Traced) id(e ident.Epoch, d quorum.Digest) int {
	i := slices.Index(t.ids[e], d)
	if i < 0 {
		i = len(t.ids[e])
		t.ids[e] = append(t.ids[e], d)
	}
	return i + 1
}

// collected is who gave a share: every member of the configuration that is not missing.
func (t *Traced) collected(s *Sled, c *quorum.CollectionStatus, own bool) string {
	var out []ident.Baseboard
	for _, m := range t.givers(s, c.Epoch) {
		if !slices.Contains(c.MissingConnected, m) && !slices.Contains(c.MissingDisconnected, m) && (own || m != s.ID) {
			out = append(out, m)
		}
	}
	return t.set(out)
}

func (t *Traced) givers(s *Sled, e ident.Epoch) (out []ident.Baseboard) {
	c := s.Node.State().Configs[e]
	if c == nil { // the older scheme: the members of the new configuration
		c = s.Node.Status().Coordinator.Config
	}
	for _, m := range c.Members {
		out = append(out, m.ID)
	}
	return out
}

func (t *Traced) number(id ident.Baseboard) int { return t.sim.Find(id).Index + 1 }

func (t *Traced) set(ids []ident.Baseboard) string {
	out := make([]int, 0, len(ids))
	for _, id := range ids {
		out = append(out, t.number(id))
	}
	return numbers(out)
}

func numbers[N ~int | ~uint64](list []N) string {
	list = slices.Clone(list)
	slices.Sort(list)
	return "{" + strings.Trim(strings.ReplaceAll(fmt.Sprint(list), " ", ", "), "[]") + "}"
}

func truth(b bool) string { return strings.ToUpper(fmt.Sprint(b)) }

// WriteTraces writes runs as the module Runs.
func WriteTraces(w io.Writer, runs []*Traced) error {
	sleds, epochs := 0, ident.Epoch(0)
	for _, t := range runs {
		sleds, epochs = max(sleds, len(t.sim.Sleds)), max(epochs, t.epochs)
	}
	var b strings.Builder
	b.WriteString("---- MODULE Runs ----\n\\* Generated by vault/quorum/quorumtest.\nEXTENDS Naturals, TLC\n")
	fmt.Fprintf(&b, "RunNodes == 1..%d\nRunEpochs == %d\nRuns == <<\n", sleds, epochs)
	for i, t := range runs {
		liars := "{}"
		if t.liar != nil {
			liars = fmt.Sprintf("{%d}", t.liar.Index+1)
		}
		fmt.Fprintf(&b, "[seed |-> \"%d\", liars |-> %s, lrtq |-> %s, events |-> <<\n%s\n>>]", t.seed, liars, t.lrtq, strings.Join(t.events, ",\n"))
		if i < len(runs)-1 {
			b.WriteString(",")
		}
		b.WriteString("\n")
	}
	b.WriteString(">>\n====\n")
	_, err := io.WriteString(w, b.String())
	return err
}

var (
	decideEvent = regexp.MustCompile(`^<<"decide", (\d+), 0, (\d+), \{([0-9, ]*)\}>>$`)
	commitEvent = regexp.MustCompile(`^<<"commit", (\d+), 0, (\d+), .*$`)
)

// Spoil makes copies of a run that no model may explain, each wrong in one place.
func (t *Traced) Spoil() (out []*Traced) {
	// replace puts another event, or none, in the place of the first that fits.
	replace := func(fits func(string) bool, by func(string) []string) {
		if i := slices.IndexFunc(t.events, fits); i >= 0 {
			c := *t
			c.events = slices.Replace(slices.Clone(t.events), i, i+1, by(t.events[i])...)
			out = append(out, &c)
		}
	}
	without := func(prefix string) {
		replace(func(e string) bool { return strings.HasPrefix(e, prefix) }, func(string) []string { return nil })
	}
	if i := slices.IndexFunc(t.events, decideEvent.MatchString); i >= 0 { // what the decision stands on is missing, or it is
		m := decideEvent.FindStringSubmatch(t.events[i])
		without(`<<"decide"`)
		without(fmt.Sprintf(`<<"begin", %s, 0, %s,`, m[1], m[2]))
		without(fmt.Sprintf(`<<"reconfigure", %s, 0, %s,`, m[1], m[2]))
		for member := range strings.SplitSeq(m[3], ", ") {
			if liar := t.liar != nil && fmt.Sprint(t.liar.Index+1) == member; member != m[1] && !liar {
				without(fmt.Sprintf(`<<"prepare", %s, %s, %s,`, member, m[1], m[2]))
				break
			}
		}
	}
	for _, swap := range [][2]string{{`"share">>`, `"advance">>`}, {`"none">>`, `"share">>`}} { // an answer is another
		replace(func(e string) bool { return strings.HasSuffix(e, swap[0]) },
			func(e string) []string { return []string{strings.TrimSuffix(e, swap[0]) + swap[1]} })
	}
	replace(commitEvent.MatchString, func(e string) []string { // a commit is refused
		return []string{commitEvent.ReplaceAllString(e, `<<"idle", $1, 0, $2, "commit">>`)}
	})
	return out
}
