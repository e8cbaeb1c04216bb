package controller

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"sync"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// Enrolled says what became of one sled.
type Enrolled struct {
	Sled  string     `json:"sled"`
	State string     `json:"state"` // one of the outcomes below
	Error *api.Error `json:"error"`

	board ident.Baseboard
	found api.State // what the sled said of itself before
}

// The outcomes of an enrolment.
const (
	NewlyEnrolled = "enrolled"
	Unchanged     = "unchanged"
	Restored      = "restored"  // it lost its seal, and is a member again
	LostSeal      = "lost-seal" // it waits for the operator to ask for it by name
	Waiting       = "waiting"
)

// candidate is a sled that is being enrolled: the connection on which it was activated, and its new record.
type candidate struct {
	sled    Sled
	session *client.Session
	record  enroll.Record
}

// Enroll enrolls every sled of the rack file that is unclaimed. The new set goes to all sleds. Sleds that cannot be
// reached are reported and left for the next run; the error then asks to try again (enrolment.md §5). Sleds that lost
// their seal are reported, too: see [Controller.EnrollWith].
func (c *Controller) Enroll(ctx context.Context) ([]Enrolled, error) {
	return c.EnrollWith(ctx, EnrollOptions{})
}

// enroll brings the given sleds into the set, and the set to them.
func (c *Controller) enroll(ctx context.Context, sleds []Sled, o again) ([]Enrolled, error) {
	out := make([]Enrolled, len(sleds))
	cands := make([]*candidate, len(sleds))
	c.each(sleds, func(i int, s Sled) error {
		out[i] = Enrolled{Sled: s.Label(), State: Waiting, board: s.Baseboard()}
		cand, state, err := c.examine(ctx, s, o)
		cands[i], out[i].found = cand, state
		if cand == nil && err == nil {
			out[i].State = Unchanged
		}
		return err
	}, out)
	defer func() {
		for _, cand := range cands {
			if cand != nil {
				_ = cand.session.Close()
			}
		}
	}()
	if err := c.extend(cands); err != nil {
		return out, err
	}
	envelope := c.set.Encode()
	c.each(sleds, func(i int, s Sled) error {
		switch {
		case cands[i] != nil:
			if _, err := cands[i].session.EnrollSet(ctx, envelope); err != nil {
				return err
			}
			out[i].State = NewlyEnrolled
			c.say(s.Baseboard(), "enrolled")
			return nil
		case out[i].State == Unchanged:
			return c.distribute(ctx, s, envelope)
		}
		return nil
	}, out)
	return out, pending(out)
}

// each runs f for every sled at the same time and records its error.
func (c *Controller) each(sleds []Sled, f func(int, Sled) error, out []Enrolled) {
	var wg sync.WaitGroup
	for i, s := range sleds {
		wg.Go(func() {
			err := f(i, s)
			if err == nil {
				return
			}
			out[i].State, out[i].Error = Waiting, api.ErrorOf(err)
			if reason.CodeOf(err) == CodeLostSeal {
				out[i].State = LostSeal
			}
			c.say(s.Baseboard(), "%v", err)
		})
	}
	wg.Wait()
}

// pending is nil if every sled is enrolled; it asks for another run if one could not be reached, and for the operator if
// one was refused.
func pending(out []Enrolled) error {
	n, retry := 0, true
	var first *api.Error
	for _, e := range out {
		if e.Error == nil {
			continue
		}
		n++
		if retry && (first == nil || !e.Error.Retry) {
			first, retry = e.Error, e.Error.Retry
		}
	}
	if n == 0 {
		return nil
	}
	e := reason.New(first.Code, first.Hint, "rack: %d of %d sleds are not enrolled: %s", n, len(out), first.Text)
	if retry {
		e.Remedy = reason.Retry
	}
	return e
}

// extend makes and keeps the set that holds the new records. It is on disk before any sled sees it.
func (c *Controller) extend(cands []*candidate) error {
	next, changed := c.set.Next(), false
	for _, cand := range cands {
		if cand == nil {
			continue
		}
		if err := next.Put(cand.record); err != nil {
			return err
		}
		changed = true
	}
	if !changed {
		return nil
	}
	if err := next.Sign(c.key); err != nil {
		return err
	}
	return c.saveSet(next)
}

// examine finds out whether a sled must be enrolled. A sled that must returns as a candidate whose TPM has proved itself.
func (c *Controller) examine(ctx context.Context, s Sled, o again) (cand *candidate, state api.State, err error) {
	ses, err := client.Open(ctx, s.Underlay, c.cert)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if cand == nil {
			_ = ses.Close()
		}
	}()
	st, err := ses.Status(ctx)
	if err != nil {
		return nil, "", err
	}
	if st.Baseboard != nil && *st.Baseboard != s.Baseboard() {
		return nil, st.State, reason.New(CodeImposter, "correct the sled's address or baseboard in the rack file", "rack: sled %s answers at %s, want %s", *st.Baseboard, s.Underlay, s.Baseboard())
	}
	switch st.State {
	case api.StateLostSeal, api.StateUnclaimed:
		if err := o.allows(s, st); err != nil {
			return nil, st.State, err
		}
	case api.StateStarting:
		return nil, st.State, reason.Later("rack-sled-starting", "wait for its boot; see its status", "rack: sled %s is still starting (step %s)", s.Label(), st.Boot.Step)
	case api.StateClaimed, api.StateMember, api.StateExpunged:
		return nil, st.State, nil
	}
	rec, err := c.activate(ctx, ses, s)
	if reason.CodeOf(err) == api.CodeForbidden && st.State == api.StateLostSeal { // it missed a change of keys
		if err = c.handKeys(ctx, ses, true); err == nil {
			rec, err = c.activate(ctx, ses, s)
		}
	}
	if err == nil {
		err = c.samePolicy(&rec, o)
	}
	if err != nil {
		return nil, st.State, err
	}
	return &candidate{s, ses, rec}, st.State, nil
}

// activate runs the claim's first two steps and checks every proof in them. What it returns may enter the set.
func (c *Controller) activate(ctx context.Context, ses *client.Session, s Sled) (rec enroll.Record, err error) {
	var nonce [32]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return rec, err
	}
	b, err := ses.EnrollBegin(ctx, enroll.BeginRequest{Nonce: nonce[:]})
	if err != nil {
		return rec, err
	}
	extra := enroll.EnrollExtra(nonce, ses.Exporter)
	counter, err := checkBegin(&b, extra)
	if err != nil {
		return rec, err
	}
	if rec, err = b.Record(counter); err != nil {
		return rec, err
	}
	if rec.Baseboard != s.Baseboard() {
		return rec, reason.New(CodeImposter, "correct the sled's address or baseboard in the rack file", "rack: sled %s answers at %s, want %s", rec.Baseboard, s.Underlay, s.Baseboard())
	}
	want, err := s.ekName()
	if err != nil {
		return rec, err
	}
	if !bytes.Equal(rec.EKName, want) {
		return rec, reason.New(CodeForeignEK, "read the name at the sled itself: sledvault tpm ek; if it differs from the rack file, somebody may be between you and the sled",
			"rack: sled %s shows EK %x, the rack file names %x", s.Label(), rec.EKName, want)
	}
	if err := c.replaces(&rec); err != nil {
		return rec, err
	}
	if rec.PCRs, err = b.Pin(rot.DefaultPCRs()); err != nil {
		return rec, err
	}
	return rec, prove(ctx, ses, &b, &rec)
}

// replaces ties the record of a sled that is enrolled again to the one before.
func (c *Controller) replaces(rec *enroll.Record) error {
	rec.Replaces = nil
	old, ok := c.set.Find(rec.Baseboard)
	if !ok {
		return nil
	}
	h := old.Hash()
	rec.Replaces = h[:]
	return nil
}

// checkBegin verifies what the attestation key signed for this connection: that the storage key and the counter live
// beside it, and which software runs. It returns the counter's value.
func checkBegin(b *enroll.BeginResponse, extra [32]byte) (uint64, error) {
	if err := b.Check(); err != nil {
		return 0, err
	}
	if _, err := rot.CheckAKPublic(b.AKPublic); err != nil {
		return 0, err
	}
	srk, err := enroll.PublicName(b.SRKPublic)
	if err != nil {
		return 0, err
	}
	if err := rot.VerifyCertify(b.CertifySRK.Attest, b.CertifySRK.Signature, b.AKPublic, extra, srk); err != nil {
		return 0, err
	}
	name, err := enroll.NVName(b.CounterPublic)
	if err != nil {
		return 0, err
	}
	reading, err := rot.VerifyCounter(b.CertifyCounter.Attest, b.CertifyCounter.Signature, b.AKPublic, extra, name)
	if err != nil {
		return 0, err
	}
	values := make([][32]byte, len(b.PCRs))
	pcrs := make([]int, len(b.PCRs))
	for i, p := range b.PCRs {
		pcrs[i], values[i] = p.PCR, [32]byte(p.Value)
	}
	if !slices.Equal(pcrs, rot.DefaultPCRs()) {
		return 0, reason.New("enroll-begin", "update the sled", "rack: quoted PCRs: have %v, want %v", pcrs, rot.DefaultPCRs())
	}
	quoted, err := rot.VerifyQuote(b.Quote.Attest, b.Quote.Signature, b.AKPublic, extra, rot.DefaultPCRs(), values)
	if err != nil {
		return 0, err
	}
	log, err := rot.ParseEventLog(b.EventLog)
	if err != nil {
		return 0, err
	}
	// Registers from 8 up are pinned by value; user space extends some of them without writing to this log.
	return reading.Value, log.Explains(quoted.PCRs, func(int) bool { return true })
}

// prove has the TPM of the endorsement key open a credential made for the attestation key.
func prove(ctx context.Context, ses *client.Session, b *enroll.BeginResponse, rec *enroll.Record) error {
	sec := make([]byte, 32)
	defer clear(sec)
	if _, err := rand.Read(sec); err != nil {
		return err
	}
	id, enc, err := tpm.MakeCredential(rand.Reader, b.EKPublic, rec.AKName, sec)
	if err != nil {
		return err
	}
	resp, err := ses.EnrollActivate(ctx, enroll.ActivateRequest{IDObject: id, EncryptedSecret: enc})
	if err != nil {
		return err
	}
	return resp.Verify(sec, b.Digest(), ses.Exporter)
}

// distribute brings a sled that is enrolled already up to the newest set.
func (c *Controller) distribute(ctx context.Context, s Sled, envelope []byte) error {
	link, err := c.link(ctx, s.Baseboard())
	if err != nil {
		return err
	}
	defer func() { _ = link.Close() }()
	_, err = link.EnrollSet(ctx, envelope)
	return err
}
