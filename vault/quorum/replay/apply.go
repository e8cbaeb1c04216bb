package replay

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

func (r *Rack) setup(e InitialSetup) error {
	if e.Universe < 1 {
		return impossible("a universe of no sleds")
	}
	for i := range e.Universe {
		s := &sled{id: ident.Baseboard{Part: "test", Serial: fmt.Sprint(i)}}
		r.sleds = append(r.sleds, s)
		r.index[s.id] = s
	}
	r.sorted = slices.SortedFunc(slices.Values(r.sleds), func(a, b *sled) int { return a.id.Compare(b.id) })
	states, err := r.stored(e)
	if err != nil {
		return err
	}
	for _, s := range r.sleds {
		if err := r.boot(s, states[s.id]); err != nil {
			return err
		}
	}
	for _, id := range e.Crashed {
		if err := r.at(id, func(s *sled) { s.down = true }); err != nil {
			return err
		}
	}
	for _, a := range r.sorted {
		for _, b := range r.sleds {
			if a != b && !a.down && !b.down {
				r.must("connect", a, quorum.PeerUp{Peer: b.id})
			}
		}
	}
	if e.LRTQ {
		r.changes = append(r.changes, &e.Change)
		return r.know(e.Change)
	}
	return r.register(e.Change, false)
}

// register is a new configuration at the controller. Its coordinator is asked if it is up.
func (r *Rack) register(c Change, lrtq bool) error {
	r.changes = append(r.changes, &c)
	s, err := r.find(c.Coordinator)
	if err != nil {
		return err
	}
	if err := r.know(c); err != nil {
		return err
	}
	if s.down {
		return nil
	}
	if s.node.Roles().Computing != 0 {
		r.rule(RuleReconfigureEndsComputation)
	}
	var in quorum.Input = quorum.Reconfigure{Epoch: c.Epoch, LastCommitted: c.LastCommitted, Members: c.Members, Threshold: c.Threshold}
	if lrtq {
		in = quorum.UpgradeLRTQ{Epoch: c.Epoch, Members: c.Members, Threshold: c.Threshold}
	}
	_, err = r.do(s, in)
	coordinating := s.node.Roles().Coordinating
	r.compare("reconfigure", err == nil && coordinating == c.Epoch, fmt.Sprintf("%s coordinates epoch %d", c.Coordinator, c.Epoch), outcome(err, "%s coordinates epoch %d", c.Coordinator, coordinating))
	return nil
}

// know checks that a configuration names sleds of the universe only.
func (r *Rack) know(c Change) error {
	for _, id := range slices.Concat(c.Members, c.Prepared, c.Committed) {
		if _, err := r.find(id); err != nil {
			return err
		}
	}
	return nil
}

func outcome(err error, format string, args ...any) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf(format, args...)
}

func (r *Rack) abort(e ident.Epoch) {
	c := r.latest()
	r.compare("abort", c.Epoch == e, e, c.Epoch)
	c.Op = OpAborted
}

// deliver hands a sled its newest message, which must be the recorded one. If it is not, but a message like the recorded
// one waits below, that one is delivered, so that one difference does not become a hundred.
func (r *Rack) deliver(e DeliverEnvelope) error {
	to, err := r.find(e.To)
	if err != nil {
		return err
	}
	r.step.Compared++
	at := len(to.wire) - 1
	if at < 0 || !to.wire[at].is(e) {
		var have any
		if at >= 0 {
			have = envelope{e.To, to.wire[at].from, summary(to.wire[at].message)}
		}
		r.differ("envelope", envelope(e), have)
		for at--; at >= 0 && !to.wire[at].is(e); at-- {
		}
		if at < 0 {
			return nil
		}
	}
	l := to.wire[at]
	to.wire = slices.Delete(to.wire, at, at+1)
	r.hand(to, l)
	return nil
}

// hand gives a node a message and notes which of our deviations it touches.
func (r *Rack) hand(to *sled, l letter) {
	st := to.node.State()
	kind := l.message.Kind
	if !to.up[l.from] && st.Expunged == nil {
		r.rule(RuleMessageAfterDisconnect)
	}
	fx := r.must("message", to, quorum.PeerMessage{From: l.from, Message: l.message})
	switch kind.(type) {
	case quorum.GetShare:
		r.answered(st, fx)
	case quorum.ExpungedNotice:
		if st.Expunged == nil && to.node.State().Expunged != nil {
			r.wasExpunged(to)
		}
	}
}

// envelope is the form of an envelope in a difference.
type envelope struct {
	To      ident.Baseboard `json:"to"`
	From    ident.Baseboard `json:"from"`
	Message Message         `json:"msg"`
}

// Load is the answer to LoadRackSecret.
type Load struct {
	Result string
	Epoch  ident.Epoch // of the last two results
}

// The answers to LoadRackSecret, in the reference's words.
const (
	LoadCollecting   = "collecting"
	LoadSecret       = "secret"
	LoadNoCommitted  = "NoCommittedConfigurations"
	LoadNotCommitted = "NotCommitted"
	LoadNotAvailable = "NotAvailable"
)

// MarshalJSON gives the form of the traces.
func (l Load) MarshalJSON() ([]byte, error) {
	if l.Result == LoadNotCommitted || l.Result == LoadNotAvailable {
		return json.Marshal(map[string]ident.Epoch{l.Result: l.Epoch})
	}
	return json.Marshal(l.Result)
}

// load asks for a rack secret and withdraws at once, as the reference's callers do: they hear "not yet" and ask again.
// A log does not say what the answer was, but every answer must agree with what the node has stored.
func (r *Rack) load(s *sled, e ident.Epoch) {
	const request = 1
	st := s.node.State()
	if st.Expunged != nil {
		r.rule(RuleLoadWhileExpunged)
	}
	fx, err := r.do(s, quorum.LoadSecret{ID: request, Epoch: &e})
	r.must("cancel", s, quorum.CancelLoad{ID: request})
	latest, committed := st.LatestCommitted()
	l, good := &Load{Epoch: e}, false
	switch {
	case isCode(err, quorum.CodeNoCommitted):
		l.Result, good = LoadNoCommitted, !committed
	case isCode(err, quorum.CodeNotCommitted):
		l.Result, good = LoadNotCommitted, !st.Commits[e]
	case isCode(err, quorum.CodeNotAvailable):
		l.Result, good = LoadNotAvailable, latest > e
	case err != nil:
		l.Result = err.Error()
	case len(fx.Replies) > 0:
		l.Result, good = LoadSecret, committed && latest >= e && r.secret(fx.Replies)
	default:
		l.Result, good = LoadCollecting, s.node.Roles().Collecting >= e
	}
	r.step.Load = l
	r.compare("load", good, fmt.Sprintf("an answer that agrees with latest commit %d", latest), l)
}

// secret holds an answer against the secret that another node gave for the epoch, and wipes it.
func (r *Rack) secret(replies []quorum.Reply) bool {
	good := true
	for _, a := range replies {
		known, ok := r.secrets[a.Epoch]
		switch {
		case a.Err != nil || a.Secret.IsEmpty():
			good = false
		case !ok:
			r.secrets[a.Epoch] = a.Secret
		default:
			good = good && known.Equal(a.Secret)
			a.Secret.Destroy()
		}
	}
	return good
}

func (r *Rack) commit(s *sled) {
	e := r.latest().Epoch
	_, err := r.do(s, quorum.Commit{Epoch: e})
	good := err == nil && s.node.State().Commits[e]
	r.compare("commit", good, fmt.Sprintf("%s commits epoch %d", s.id, e), outcome(err, "%s has commits %v", s.id, quorum.Epochs(s.node.State().Commits)))
	if c := s.node.Roles().Computing; c != 0 && c <= e {
		r.rule(RuleComputationOutlivesCommit)
	}
	r.replies = append(r.replies, Reply{Epoch: e, From: s.id})
}

// prepareAndCommit hands over the latest configuration that the first prepared member has stored.
func (r *Rack) prepareAndCommit(s *sled) {
	var c *quorum.Configuration
	if p := r.latest().Prepared; len(p) > 0 {
		c = r.index[p[0]].node.State().LatestConfig()
	}
	_, err := r.do(s, quorum.PrepareAndCommit{Config: c})
	r.compare("prepare-and-commit", err == nil, "done", outcome(err, "done"))
}

// sendReply is an answer that a coordinator gave: it must acknowledge the same members.
func (r *Rack) sendReply(a Reply) error {
	r.replies = append(r.replies, a)
	c := r.latest()
	s, err := r.find(c.Coordinator)
	if err != nil || !a.From.IsZero() {
		return err
	}
	have := Reply{Epoch: s.node.Roles().Coordinating}
	if have.Epoch == c.Epoch {
		for _, m := range c.Members {
			if s.node.Acked(c.Epoch, m) {
				have.Acks = append(have.Acks, m)
				r.prepared(m, c.Epoch)
			}
		}
	}
	r.compare("acks", have.equal(a), a, have)
	return nil
}

// prepared checks that a member whose acknowledgement has arrived has stored what it acknowledged.
func (r *Rack) prepared(id ident.Baseboard, e ident.Epoch) {
	if s := r.index[id]; s == nil || !s.node.State().Prepared(e) {
		r.differ("acks", fmt.Sprintf("%s is prepared for epoch %d", id, e), "acknowledged and not stored")
	}
}

// deliverReply hands the controller its newest answer. The controller does not look at its own stage: acknowledgements
// that are late turn a configuration that it gave up into a committed one.
func (r *Rack) deliverReply(a Reply) error {
	var have any
	same := false
	if n := len(r.replies); n > 0 {
		have, same = r.replies[n-1], r.replies[n-1].equal(a)
		r.replies = r.replies[:n-1]
	}
	r.compare("reply", same, a, have)
	for _, id := range append(slices.Clone(a.Acks), a.From) {
		if _, err := r.find(id); err != nil && !id.IsZero() {
			return err
		}
	}
	c := r.latest()
	switch {
	case a.Epoch != c.Epoch:
	case !a.From.IsZero():
		c.Committed = insert(c.Committed, a.From)
	default:
		for _, id := range a.Acks {
			c.Prepared = insert(c.Prepared, id)
		}
		if uint64(len(c.Prepared)) >= uint64(c.Threshold)+c.Tolerance {
			r.decide(c)
		}
	}
	return nil
}

// decide commits a configuration. Members of the last committed one that are not in it are expunged.
func (r *Rack) decide(c *Change) {
	c.Op = OpCommitted
	if c.LastCommitted == nil {
		return
	}
	if last := r.change(*c.LastCommitted); last != nil {
		for _, m := range last.Members {
			if !slices.Contains(c.Members, m) {
				r.expunged[m] = true
			}
		}
	}
}

// insert adds an identity to a set.
func insert(set []ident.Baseboard, id ident.Baseboard) []ident.Baseboard {
	i, ok := slices.BinarySearchFunc(set, id, ident.Baseboard.Compare)
	if ok {
		return set
	}
	return slices.Insert(set, i, id)
}

func (a Reply) equal(b Reply) bool {
	return a.Epoch == b.Epoch && a.From == b.From && slices.Equal(a.Acks, b.Acks)
}
