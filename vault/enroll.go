package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"sync"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/sealing"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// Reasons of enrolment on the sled.
const (
	CodeEnrollBusy  reason.Code = "enroll-busy"  // another controller is enrolling this sled
	CodeEnrollOrder reason.Code = "enroll-order" // the steps came in another order, or on another connection
	CodeEnrollOther reason.Code = "enroll-other" // the set has no record of this sled's board and TPM
	CodeEnrolled    reason.Code = "enrolled"     // the sled belongs to a rack and has a working seal
)

// claiming is the enrolment in progress: at most one, tied to the connection that began it (enrolment.md §5).
type claiming struct {
	mu        sync.Mutex
	conn      *api.Conn
	enrolment *sealing.Enrolment
	record    enroll.Record // what the set must say of this sled: baseboard and Names
	answer    [32]byte      // digest of the answer to begin
	activated bool
}

// reset forgets the enrolment. The counter it made is deleted by the next one.
func (c *claiming) reset() {
	if c.enrolment != nil {
		c.enrolment.Destroy()
	}
	c.conn, c.enrolment, c.record, c.answer, c.activated = nil, nil, enroll.Record{}, [32]byte{}, false
}

// ClaimFingerprint names the only membership key that may claim this sled: the one that the TPM remembers, if the sled
// belonged to a rack, else the one in the configuration.
func (d *Daemon) ClaimFingerprint() string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.claimFingerprint()
}

// claimFingerprint is ClaimFingerprint for callers that hold the lock.
func (d *Daemon) claimFingerprint() string {
	if d.claimed != nil {
		return enroll.FingerprintOf(d.claimed.KeyDigest)
	}
	return d.cfg.Claim.Fingerprint
}

// ConnClosed ends an enrolment whose connection is gone.
func (d *Daemon) ConnClosed(c *api.Conn) {
	d.claim.mu.Lock()
	defer d.claim.mu.Unlock()
	if d.claim.conn == c {
		d.claim.reset()
	}
}

// claimable reports whether the sled may be enrolled now.
func (d *Daemon) claimable() error {
	switch d.getState() {
	case api.StateUnclaimed, api.StateLostSeal:
		return nil
	case api.StateStarting:
		return d.notStarted()
	case api.StateClaimed, api.StateMember, api.StateExpunged:
	}
	return reason.New(CodeEnrolled, "nothing to do; see sledvault rack status", "vault: this sled is enrolled already")
}

// EnrollBegin makes the seed and the counter, and shows the sled's TPM, signed for this connection.
func (d *Daemon) EnrollBegin(ctx context.Context, c *api.Conn, r enroll.BeginRequest) (out enroll.BeginResponse, err error) {
	nonce, err := r.Check()
	if err != nil {
		return out, err
	}
	d.claim.mu.Lock()
	defer d.claim.mu.Unlock()
	// Under the lock: whoever waited for another's enrolment must not delete the counter of the seal that it made.
	if err := d.claimable(); err != nil {
		return out, err
	}
	if d.claim.conn != nil && d.claim.conn != c {
		return out, reason.Later(CodeEnrollBusy, "wait for the other controller", "vault: %s is enrolling this sled", d.claim.conn.Remote)
	}
	d.claim.reset()
	p := d.sealParams()
	p.QuotePCRs = rot.DefaultPCRs()
	e, err := sealing.Begin(ctx, p)
	if err != nil {
		return out, err
	}
	d.claim.conn, d.claim.enrolment = c, e
	desc, err := e.Describe(ctx, enroll.EnrollExtra(nonce, c.Exporter))
	if err == nil {
		out, err = d.describe(desc)
	}
	if err != nil {
		d.claim.reset()
		return out, err
	}
	d.claim.record = enroll.Record{Baseboard: out.Baseboard, EKName: desc.EKName, AKName: desc.AKName, SRKName: desc.SRKName, CounterName: desc.CounterName}
	d.claim.answer = out.Digest()
	return out, nil
}

// describe puts what the TPM says into the answer's form.
func (d *Daemon) describe(desc sealing.Description) (enroll.BeginResponse, error) {
	signed := func(s sealing.Statement) enroll.Signed { return enroll.Signed(s) }
	out := enroll.BeginResponse{
		Baseboard: d.identity(), EKPublic: desc.EKPublic, EKCertificate: desc.EKCertificate, AKPublic: desc.AKPublic,
		SRKPublic: desc.SRKPublic, CounterPublic: desc.CounterPublic, CertifySRK: signed(desc.CertifySRK),
		CertifyCounter: signed(desc.CertifyCounter), Quote: signed(desc.Quote), ResetCount: desc.ResetCount,
		Properties: enroll.Properties{Manufacturer: desc.Properties.Manufacturer, Firmware: desc.Properties.Firmware},
	}
	for _, n := range rot.DefaultPCRs() {
		v := desc.PCRs[n]
		out.PCRs = append(out.PCRs, enroll.PCRValue{PCR: n, Value: v[:]})
	}
	var err error
	if out.EventLog, err = readEventLog(d.cfg.TPM.EventLog); err != nil {
		return out, err
	}
	return out, out.Check()
}

// EnrollActivate proves that the attestation key lives in the TPM of the endorsement key.
func (d *Daemon) EnrollActivate(ctx context.Context, c *api.Conn, r enroll.ActivateRequest) (out enroll.ActivateResponse, err error) {
	d.claim.mu.Lock()
	defer d.claim.mu.Unlock()
	if d.claim.conn != c || d.claim.enrolment == nil {
		return out, orderError("activate before begin")
	}
	sec, err := d.claim.enrolment.Activate(ctx, r.IDObject, r.EncryptedSecret)
	if err != nil {
		d.claim.reset()
		return out, err
	}
	defer clear(sec)
	mac := enroll.ActivateMAC(sec, d.claim.answer, c.Exporter)
	d.claim.activated = true
	return enroll.ActivateResponse{MAC: mac[:]}, nil
}

func orderError(what string) error {
	return reason.New(CodeEnrollOrder, "run the enrolment again: sledvault rack enroll", "vault: %s, or on another connection", what)
}

// EnrollSet adopts an enrolment set: the first one of a sled only on the connection that was activated, later ones from
// whoever holds the membership key, or brings a set that the recovery key signed.
func (d *Daemon) EnrollSet(ctx context.Context, c *api.Conn, envelope []byte) (uint64, error) {
	set, err := enroll.DecodeSet(envelope)
	if err != nil {
		return 0, err
	}
	switch {
	case d.getState() == api.StateLostSeal && d.learnKeys(set):
		d.log.Info("another membership key", "fingerprint", enroll.Fingerprint(set.MembershipKey), "generation", set.Generation)
	case d.getStore() == nil:
		err = d.enroll(ctx, c, set, envelope)
	default:
		err = d.adoptSet(ctx, set, envelope)
	}
	if cur := d.Set(); err == nil && cur != nil {
		return cur.Generation, nil
	}
	return 0, err
}

// learnKeys has a sled that lost its seal follow a change of the membership key that it has missed, so that it can be
// enrolled again (recovery.md §7). It is told by a set that the recovery key of the one it holds has signed. If its folders
// are empty, it first needs the last set under the key that the TPM remembers, no older than the one remembered with it.
// What it learns so is in memory only; its enrolment makes it durable. It reports whether the set told something new.
func (d *Daemon) learnKeys(set *enroll.Set) bool {
	d.mu.RLock()
	held, claim := d.set, d.claimed
	d.mu.RUnlock()
	switch {
	case held != nil:
		if !enroll.Rekeys(held, set) || enroll.VerifySuccessor(held, set) != nil {
			return false
		}
	case claim == nil || set.Rack != claim.Rack || set.Generation < claim.SetGeneration ||
		set.Generation == claim.SetGeneration && set.Digest() != claim.SetDigest ||
		set.VerifyFirst(enroll.FingerprintOf(claim.KeyDigest)) != nil:
		return false
	case d.claimUnderWay(): // it is the set of an enrolment
		return false
	}
	d.setSet(set)
	return true
}

// claimUnderWay reports whether some controller has begun to enroll this sled.
func (d *Daemon) claimUnderWay() bool {
	d.claim.mu.Lock()
	defer d.claim.mu.Unlock()
	return d.claim.conn != nil
}

// enroll makes the sealed state of a sled that has none.
func (d *Daemon) enroll(ctx context.Context, c *api.Conn, set *enroll.Set, envelope []byte) error {
	d.claim.mu.Lock()
	defer d.claim.mu.Unlock()
	if err := d.claimable(); err != nil {
		return err
	}
	if d.claim.conn != c || !d.claim.activated {
		return orderError("an enrolment set before activate")
	}
	if err := d.checkFirst(set); err != nil {
		return err
	}
	e := d.claim.enrolment
	d.claim.enrolment = nil // used up, whatever happens
	defer d.claim.reset()
	if d.getState() == api.StateLostSeal {
		if err := ledger.MoveAside(d.dirs()); err != nil {
			return err
		}
	}
	u, err := e.Finish(ctx, set.Rack, claimOf(set))
	if err != nil {
		return err
	}
	cfg := d.ledgerConfig(set.Rack)
	st := wire.LedgerState{SetGeneration: set.Generation, SetDigest: set.Digest(), Quorum: quorum.State{}}
	if err := ledger.WriteEnrolment(d.dirs(), envelope); err != nil {
		u.Destroy()
		return err
	}
	d.trace.saveBegin(saveEnrolment)
	l, err := ledger.Create(ctx, cfg, u, st)
	if err != nil {
		d.trace.saveFailed(saveEnrolment)
		u.Destroy()
		return err
	}
	d.trace.saveDone(saveEnrolment, l.Status().Sequence)
	if err := sealing.KeepKeys(ctx, d.sealParams(), sealing.Pins{SRKName: d.claim.record.SRKName, AKName: d.claim.record.AKName}); err != nil {
		d.log.Warn("TPM: its keys are made anew at each start", "err", err, "hint", reason.HintOf(err))
	}
	d.log.Info("enrolled", "rack_id", set.Rack, "generation", set.Generation)
	d.setSet(set)
	d.setUnsealed(u)
	if err := d.haveLedger(l, st); err != nil {
		return err
	}
	d.signalEnrolled()
	return nil
}

// checkFirst checks the set that an unclaimed or lost sled is given. Its record must be exactly what this TPM showed.
func (d *Daemon) checkFirst(set *enroll.Set) error {
	if old := d.Set(); old != nil {
		if err := enroll.VerifySuccessor(old, set); err != nil {
			return err
		}
	} else if err := set.VerifyFirst(d.ClaimFingerprint()); err != nil {
		return err
	}
	want := d.claim.record
	rec, ok := set.Find(want.Baseboard)
	if !ok || !rec.Live() || !bytes.Equal(rec.EKName, want.EKName) || !bytes.Equal(rec.AKName, want.AKName) ||
		!bytes.Equal(rec.SRKName, want.SRKName) || !bytes.Equal(rec.CounterName, want.CounterName) {
		return reason.New(CodeEnrollOther, "", "vault: the enrolment set has no record of sled %s with this TPM", want.Baseboard)
	}
	return nil
}

func claimOf(set *enroll.Set) sealing.Claim {
	return sealing.Claim{Version: 1, Rack: set.Rack, KeyDigest: sha256.Sum256(set.MembershipKey), SetGeneration: set.Generation, SetDigest: set.Digest()}
}

// adoptSet replaces the enrolment set of a working sled by a newer one: files first, then a protected save, then the
// TPM's claim. The authority of the node follows, and every connection is judged anew.
func (d *Daemon) adoptSet(ctx context.Context, set *enroll.Set, envelope []byte) error {
	d.adopting.Lock()
	defer d.adopting.Unlock()
	old := d.Set()
	if set.Generation == old.Generation && set.Digest() == old.Digest() {
		return nil
	}
	if err := enroll.VerifySuccessor(old, set); err != nil {
		return err
	}
	if enroll.Rekeys(old, set) {
		if err := d.getStore().keepSet(old.Encode()); err != nil {
			return err
		}
	}
	if err := d.getStore().saveSet(ctx, set, envelope); err != nil {
		return err
	}
	d.mu.RLock()
	u, drv, peers := d.unsealed, d.driver, d.peers
	d.mu.RUnlock()
	if err := u.WriteClaim(ctx, claimOf(set)); err != nil {
		d.reasons.CountError("claim-behind", "", err) // the next start accepts a newer set than the TPM remembers
	}
	d.setSet(set)
	d.log.Info("enrolment set", "generation", set.Generation, "sleds", len(set.Records))
	if drv != nil {
		drv.tell(quorum.SetAuthority{Authority: enroll.NewAuthority(set)})
	}
	if peers != nil {
		dropChanged(peers, old, set)
		peers.Redial()
	}
	d.removal.signal()
	return nil
}

// AdoptSet takes an enrolment set from a peer.
func (d *Daemon) AdoptSet(ctx context.Context, envelope []byte) error {
	set, err := enroll.DecodeSet(envelope)
	if err != nil {
		return err
	}
	return d.adoptSet(ctx, set, envelope)
}

func (d *Daemon) signalEnrolled() {
	select {
	case d.enrolled <- struct{}{}:
	default:
	}
}

// Attest makes evidence for the controller, bound to its connection (evidence.md, role 'H').
func (d *Daemon) Attest(ctx context.Context, c *api.Conn, nonce [32]byte) ([]byte, error) {
	d.mu.RLock()
	p, st := d.prover, d.store
	d.mu.RUnlock()
	if p == nil || st == nil {
		return nil, d.notStarted()
	}
	return p.Evidence(ctx, rot.Request{Role: rot.RoleUnderlay, Nonce: nonce, Exporter: c.Exporter, ProverSPKI: d.tls.SPKI(), VerifierSPKI: c.ClientSPKI})
}
