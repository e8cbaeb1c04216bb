package controller

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
)

// Reasons of enrolling a sled again.
const (
	CodeLostSeal     reason.Code = "rack-lost-seal"    // a sled lost its seal and waits for the operator
	CodeMeasurements reason.Code = "rack-measurements" // a sled comes back with other measurements than it was enrolled with
	CodeUnknownSled  reason.Code = "rack-unknown-sled" // no sled of that name
)

// EnrollOptions are the operator's decisions about sleds that were enrolled before.
type EnrollOptions struct {
	// Again names the sleds that lost their seal and shall be enrolled again. A seal is lost when firmware or boot loader
	// changed, when old state was restored, or when somebody tampered: so a person decides, per sled.
	Again []string
	// AcceptMeasurements takes over measurements that differ from those of the earlier enrolment.
	AcceptMeasurements bool
}

// again is [EnrollOptions] with the names resolved.
type again struct {
	boards  []ident.Baseboard
	accept  bool
	members []ident.Baseboard // of the committed configuration
}

// EnrollWith enrolls as [Controller.Enroll] does, and the named sleds again. A sled that is enrolled again computes its
// share of the committed epoch anew, from the shares of the others; the command waits for that.
func (c *Controller) EnrollWith(ctx context.Context, o EnrollOptions) ([]Enrolled, error) {
	boards, err := c.find(o.Again)
	if err != nil {
		return nil, err
	}
	r, err := c.openRun()
	if err != nil {
		return nil, err
	}
	defer r.close()
	out, err := c.enroll(ctx, c.file.Sleds, again{boards, o.AcceptMeasurements, r.members()})
	if herr := r.heal(ctx, out); err == nil || herr != nil && reason.RemedyOf(err) == reason.Retry {
		err = herr
	}
	if err == nil {
		err = pending(out)
	}
	return out, err
}

// find resolves names of the rack file: labels, or part:serial.
func (c *Controller) find(names []string) (out []ident.Baseboard, err error) {
	for _, n := range names {
		i := slices.IndexFunc(c.file.Sleds, func(s Sled) bool { return s.Label() == n || s.Baseboard().String() == n })
		if i < 0 {
			return nil, c.unknownSled(n)
		}
		if b := c.file.Sleds[i].Baseboard(); !slices.Contains(out, b) {
			out = append(out, b)
		}
	}
	return out, nil
}

func (c *Controller) unknownSled(name string) error {
	var known []string
	for _, s := range c.file.Sleds {
		known = append(known, s.Label())
	}
	e := reason.New(CodeUnknownSled, "add its table to the rack file, or use one of: "+strings.Join(known, ", "), "rack: no sled %.80q", name)
	e.Remedy = reason.Usage
	return e
}

// members are those of the committed configuration.
func (r *run) members() []ident.Baseboard {
	if ch := r.st.Committed(); ch != nil {
		return ch.Members
	}
	return nil
}

// allows refuses a member that lost its seal, or calls itself new, unless the operator named it. A sled that is no member
// holds nothing that could be lost: its enrolment was broken off. Where the journal knows of no members, a lost seal may be
// a member's.
func (o again) allows(s Sled, st api.Status) error {
	stranger := !slices.Contains(o.members, s.Baseboard()) && (st.State == api.StateUnclaimed || len(o.members) > 0)
	if stranger || slices.Contains(o.boards, s.Baseboard()) {
		return nil
	}
	why := "its TPM was cleared and its state is gone"
	if st.Seal != nil && st.Seal.Reason != nil {
		why = st.Seal.Reason.Text
	}
	return reason.New(CodeLostSeal, "find out what changed on it; if it was you: sledvault rack enroll --again "+s.Label(),
		"rack: sled %s lost its seal: %s", s.Label(), why)
}

// samePolicy refuses a sled that was enrolled before and now shows other measurements, unless the operator accepts them.
func (c *Controller) samePolicy(rec *enroll.Record, o again) error {
	old, ok := c.set.Find(rec.Baseboard)
	if !ok || o.accept || !old.Live() || enroll.SamePolicy(old, rec) {
		return nil
	}
	var pcrs []string
	for n, v := range rec.PCRs {
		if !slices.Equal(v, old.PCRs[n]) {
			pcrs = append(pcrs, "PCR "+strconv.Itoa(n))
		}
	}
	slices.Sort(pcrs)
	return reason.New(CodeMeasurements, "find out what changed on it; if it was you: sledvault rack enroll --again "+c.label(rec.Baseboard)+" --accept-measurements",
		"rack: sled %s shows other measurements than at its enrolment: %s", c.label(rec.Baseboard), strings.Join(pcrs, ", "))
}

// heal hands the committed configuration to members that know of none: they were enrolled again, and compute their share
// of the same epoch from the shares of the others.
func (r *run) heal(ctx context.Context, out []Enrolled) error {
	lost := func(e Enrolled) bool {
		return e.Error == nil && (e.State == NewlyEnrolled || e.State == Unchanged && e.found == api.StateClaimed)
	}
	if r.st.Committed() == nil && slices.ContainsFunc(out, func(e Enrolled) bool { return lost(e) && e.found != api.StateUnclaimed }) {
		r.askAround(ctx, out)
	}
	ch := r.st.Committed()
	if ch == nil {
		return nil
	}
	full, err := api.ConfigReply(ch.Config, ch.Certificate)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for i := range out {
		if e := &out[i]; lost(*e) && slices.Contains(ch.Members, e.board) {
			wg.Go(func() {
				if err := r.c.commitOne(ctx, r.st.Rack, ch, full, e.board); err != nil {
					e.State, e.Error = Waiting, api.ErrorOf(err)
					return
				}
				e.State = Restored
				r.c.say(e.board, "member again, epoch %d", ch.Epoch)
			})
		}
	}
	wg.Wait()
	changed := false
	for _, e := range out {
		changed = e.State == Restored && ch.CommittedBy(e.board) || changed
	}
	if !changed {
		return nil
	}
	return r.save()
}

// askAround looks for the committed configuration when the journal is lost. One sled that has it is enough: it is signed.
func (r *run) askAround(ctx context.Context, out []Enrolled) {
	var wg sync.WaitGroup
	for _, e := range out {
		if e.Error != nil || e.found != api.StateMember {
			continue
		}
		wg.Go(func() {
			if err := r.askSled(ctx, e.board); err != nil {
				r.c.say(e.board, "%v", err)
			}
		})
	}
	wg.Wait()
}

func (r *run) askSled(ctx context.Context, b ident.Baseboard) error {
	s, err := r.c.link(ctx, b)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	return r.c.askOne(ctx, s, &r.mu, r.st)
}

// run is one command at work: it holds the journal's lock.
type run struct {
	c  *Controller
	j  *journal.Journal
	mu sync.Mutex // guards st and the journal while sleds are asked at the same time
	st *rack.State

	earlier *rack.Change            // the decided change that an earlier command left, if any
	marked  *enroll.Set             // with the marks of removed sleds; not yet the controller's
	unfit   map[ident.Baseboard]int // how often a coordinator gave up

	keepFrom ident.Epoch // of a prune
}

// openRun takes the journal's lock and reads what another command may have written meanwhile.
func (c *Controller) openRun() (*run, error) {
	j, st, err := journal.Open(c.file.dir)
	if err != nil {
		return nil, err
	}
	r := &run{c: c, j: j, st: &st}
	if err := c.loadSet(); err != nil { // two controllers would sign two sets of one generation
		r.close()
		return nil, err
	}
	if st.Change != nil && st.Rack != c.set.Rack {
		r.close()
		return nil, reason.New(rack.CodeMismatch, "restore the files of one rack into the folder", "rack: the journal is of rack %s, the enrolment set of rack %s", st.Rack, c.set.Rack)
	}
	return r, nil
}

func (r *run) close() { _ = r.j.Close() }

// save makes the state durable before anything is done because of it.
func (r *run) save() error {
	if err := r.j.Save(*r.st); err != nil {
		return err
	}
	if r.c.onSave != nil {
		return r.c.onSave(*r.st)
	}
	return nil
}
