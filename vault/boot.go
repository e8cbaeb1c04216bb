// Boot path 3/9: after cmd/sledvaultd/main.go, before sp/identity.go.

package vault

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/sealing"
	"github.com/sledvault/sledvault/sp"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/ledger"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// Reasons of the boot.
const (
	CodeSoftwareTPM  reason.Code = "relax-software-tpm" // the TPM is a program and the configuration does not allow it
	CodeForeignTPM   reason.Code = "tpm-foreign"        // the TPM is not the one enrolled for this baseboard
	CodeForeignBoard reason.Code = "sp-foreign"         // the enrolment set has no record of this baseboard
	CodeLostSeal     reason.Code = "lost-seal"
	CodeStaleSet     reason.Code = "enrolment-stale" // an older enrolment set than the TPM remembers
)

// bootUp is the whole order of a boot, one named step per stage (boot-path.md). The APIs serve before it starts, so that
// status is useful also when a device hangs.
func (d *Daemon) bootUp(ctx context.Context) error {
	if err := d.insist(ctx, StepIdentity, d.readIdentity); err != nil {
		return err
	}
	if err := d.insist(ctx, StepTPM, d.openTPM); err != nil {
		return err
	}
	if err := d.insist(ctx, StepSeal, d.openSeal); err != nil {
		return err
	}
	if err := d.awaitClaim(ctx); err != nil {
		return err
	}
	if err := d.insist(ctx, StepPeers, d.startPeers); err != nil {
		return err
	}
	if err := d.awaitMembership(ctx); err != nil {
		return err
	}
	return d.unlockAndRotate(ctx)
}

// readIdentity asks the service processor who this sled is (sp-wire.md).
func (d *Daemon) readIdentity(ctx context.Context) error {
	d.boot.wait("the service processor on "+d.cfg.SP.Port, nil)
	if d.sp == nil {
		c, err := sp.Open(sp.Config{Port: d.cfg.SP.Port, Baud: d.cfg.SP.Baud, Deadline: d.cfg.SP.Deadline.std(), Rand: d.rand})
		if err != nil {
			return retry(err)
		}
		d.setSP(c)
	}
	id, err := d.sp.Identity(ctx)
	if err != nil {
		return retry(err)
	}
	d.setIdentity(id.Baseboard, id.Revision)
	d.log.Info("identity", "sled", id.Baseboard.String(), "revision", id.Revision)
	return nil
}

// openTPM opens the TPM. A TPM that is a program needs the relaxation that says so.
func (d *Daemon) openTPM(ctx context.Context) error {
	d.boot.wait("the TPM at "+d.cfg.TPM.Device, nil)
	t, err := tpm.Open(ctx, tpm.Config{Device: d.cfg.TPM.Device, CommandTimeout: d.cfg.TPM.CommandTimeout.std()})
	if err != nil {
		return retry(err)
	}
	if t.Software() && !d.cfg.Relax.SoftwareTPM {
		_ = t.Close()
		return reason.New(CodeSoftwareTPM, "use a hardware TPM, or for tests only set software-tpm = true under [relax]",
			"vault: the TPM is a program")
	}
	d.setTPM(t)
	return nil
}

// openSeal finds out whether this sled belongs to a rack, and opens its ledger if so. An unclaimed sled and a sled that
// lost its seal both wait to be enrolled; the second keeps its old files.
//
// All of it is one turn with the TPM: one storage root key and one salted session serve the claim, the seal and the counter.
func (d *Daemon) openSeal(ctx context.Context) error {
	d.boot.wait("", nil)
	files := readSets(d.dirs())
	p := d.sealParams()
	return p.TPM.Turn(ctx, func(turn context.Context) error {
		first, err := sealing.Look(turn, p, files.srkName(d.identity()))
		if err != nil {
			return retry(err)
		}
		d.setFirst(first)
		f, rec, err := d.compareClaim(turn, first.Claim, files)
		if err != nil || rec == nil {
			return err
		}
		d.setSet(f.set)
		d.repairSet(f.raw)
		if _, err := d.connect(ctx); err != nil { // it outlives the turn
			d.log.Debug("peers wait until the seal is open", "err", err) // and says so then, if the error stays
		}
		return d.openLedger(turn, f.set, rec)
	})
}

// setFiles are the enrolment sets that lie in the state folders, the one of the highest generation first.
type setFiles struct {
	sets []setFile
	err  error // a medium is missing or cannot be read; the other may do
}

// setFile is one of them. A set that cannot be used has an error in place of its content.
type setFile struct {
	raw []byte
	set *enroll.Set
	err error
}

// srkName is the storage root key that the newest set expects in the TPM of a sled, nil if it expects none.
func (f setFiles) srkName(me ident.Baseboard) []byte {
	for _, s := range f.sets {
		if s.err != nil {
			continue
		}
		if rec, ok := s.set.Find(me); ok {
			return rec.SRKName
		}
	}
	return nil
}

func readSets(dirs [2]string) (f setFiles) {
	var envelopes [][]byte
	envelopes, f.err = ledger.ReadEnrolments(dirs)
	for _, e := range envelopes {
		set, err := enroll.DecodeSet(e)
		f.sets = append(f.sets, setFile{e, set, err})
	}
	return f
}

// compareClaim compares what the TPM remembers with the files, and gives the set and this sled's record in it. There is no
// record for a sled that is unclaimed or has lost its seal.
func (d *Daemon) compareClaim(ctx context.Context, claim *sealing.Claim, files setFiles) (f setFile, rec *enroll.Record, err error) {
	if len(files.sets) == 0 && claim == nil && files.err == nil {
		d.setState(api.StateUnclaimed)
		return f, nil, nil
	}
	if files.err != nil {
		d.reasons.CountError(ledger.CodeEnrolment, "", files.err)
	}
	if f, err = d.chooseSet(claim, files); err != nil {
		if foreign := d.replacedTPM(ctx, claim, files); foreign != nil {
			err = foreign
		}
		return f, nil, d.loseSealAtStart(ctx, err)
	}
	rec, err = d.ownRecord(ctx, f.set)
	return f, rec, err
}

// loseSealAtStart reads the platform state that an enrolment is going to approve, and loses the seal.
func (d *Daemon) loseSealAtStart(ctx context.Context, cause error) error {
	measured, err := sealing.State(ctx, d.sealParams())
	if err != nil {
		return retry(err)
	}
	d.mu.Lock()
	d.measured = measured
	d.mu.Unlock()
	d.hangUp()
	d.dropProver()
	d.loseSeal(cause)
	return nil
}

// repairSet writes the set into the folders that lack it. It is public and vouched for by the claim, so no counter moves.
func (d *Daemon) repairSet(want []byte) {
	for _, dir := range d.cfg.State.Copies {
		if have, err := os.ReadFile(filepath.Join(dir, ledger.EnrolmentFile)); err == nil && bytes.Equal(have, want) {
			continue
		}
		if err := ledger.WriteEnrolment(d.dirs(), want); err != nil {
			d.reasons.CountError(ledger.CodeEnrolment, "", err) // one copy serves; the ledger says which medium is bad
		}
		return
	}
}

// chooseSet finds the newest enrolment set that the TPM's claim vouches for. Wiped or damaged folders of a sled that
// belongs to a rack, and folders without a claim, make it lose its seal.
func (d *Daemon) chooseSet(claim *sealing.Claim, files setFiles) (chosen setFile, _ error) {
	cause := files.err
	for _, f := range files.sets {
		err := f.err
		if err == nil {
			if err = checkClaim(claim, f.set); err != nil && d.succeedsClaimed(claim, f.set) {
				err = nil
			}
		}
		switch {
		case err != nil:
			d.reasons.Count(ledger.CodeEnrolment, "", err.Error())
			cause = err
		case chosen.set == nil:
			chosen = f
		}
	}
	switch {
	case chosen.set != nil:
		return chosen, nil
	case cause == nil:
		return chosen, reason.New(CodeLostSeal, hintReenroll, "vault: the TPM remembers rack %s, the state folders hold no enrolment set", claim.Rack)
	}
	return chosen, reason.Wrap(cause, CodeLostSeal, hintReenroll, "vault: no usable enrolment set")
}

const hintReenroll = "find out what changed, then enroll the sled again: sledvault rack enroll --again NAME; its disks stay, the other sleds give it a new share"

// setFirst keeps what the TPM showed at this start. Its platform state is what the next start will show; later extends do
// not count.
func (d *Daemon) setFirst(f sealing.First) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.measured, d.claimed, d.srk = f.PCRs, f.Claim, f.SRKName
}

// ownRecord finds this sled in the set and compares the TPM with it: by its storage root key, which the start has at hand
// and the seal is pinned to. A daemon on another sled's TPM, or on another sled's board, is told whose it is.
func (d *Daemon) ownRecord(ctx context.Context, set *enroll.Set) (*enroll.Record, error) {
	me := d.identity()
	rec, ok := set.Find(me)
	if !ok {
		return nil, reason.New(CodeForeignBoard, "put the state folders back into their own sled, or remove them to enroll this one",
			"vault: the state folders belong to a rack that has no sled %s", me)
	}
	if bytes.Equal(rec.SRKName, d.srkName()) {
		return rec, nil
	}
	id, err := d.TPMIdentity(ctx)
	if err != nil {
		return nil, retry(err)
	}
	ek, err := hex.DecodeString(id.EKName)
	if err != nil {
		return nil, fmt.Errorf("vault: EK name: %w", err)
	}
	if bytes.Equal(rec.EKName, ek) { // a TPM that was cleared; its seal does not open
		return rec, nil
	}
	whose := "an unknown sled"
	if other, ok := set.FindEK(ek); ok {
		whose = "sled " + other.Baseboard.String()
	}
	return nil, reason.New(CodeForeignTPM, "put TPM and state folders back into their own sleds, or replace the record: sledvault rack enroll",
		"vault: the TPM of %s is in sled %s: have EK %x, want %x", whose, me, ek, rec.EKName)
}

// replacedTPM explains a TPM that remembers nothing: it is not the enrolled one. Only an explanation: nothing in the sets
// is vouched for then.
func (d *Daemon) replacedTPM(ctx context.Context, claim *sealing.Claim, files setFiles) error {
	if claim != nil {
		return nil
	}
	for _, f := range files.sets {
		if f.err == nil {
			if _, err := d.ownRecord(ctx, f.set); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkClaim compares an enrolment set with what the TPM remembers. A set that is newer than the claim, after a power cut
// between the two, must carry the signature of the key that the claim names.
func checkClaim(claim *sealing.Claim, set *enroll.Set) error {
	switch {
	case claim == nil:
		return reason.New(CodeLostSeal, hintReenroll, "vault: the TPM was cleared: it remembers no rack, the state folders do")
	case claim.Rack != set.Rack:
		return reason.New(CodeLostSeal, hintReenroll, "vault: the TPM remembers rack %s, the state folders rack %s", claim.Rack, set.Rack)
	case set.Generation < claim.SetGeneration:
		return reason.New(CodeStaleSet, hintReenroll, "vault: restored enrolment set: have generation %d, want at least %d", set.Generation, claim.SetGeneration)
	case set.Generation > claim.SetGeneration:
		return set.VerifyFirst(enroll.FingerprintOf(claim.KeyDigest))
	case set.Digest() != claim.SetDigest:
		return reason.New(CodeStaleSet, hintReenroll, "vault: the enrolment set is not the one the TPM remembers for generation %d", set.Generation)
	}
	return nil
}

// succeedsClaimed reports whether a set with another membership key follows the one that the TPM remembers: the power was
// cut before the claim could follow. The set before was kept for that; the claim vouches for it, and it for the recovery
// key that signed the new one.
func (d *Daemon) succeedsClaimed(claim *sealing.Claim, set *enroll.Set) bool {
	for _, b := range ledger.ReadPrevious(d.dirs()) {
		before, err := enroll.DecodeSet(b)
		if err == nil && checkClaim(claim, before) == nil && before.Generation == claim.SetGeneration && enroll.VerifySuccessor(before, set) == nil {
			return true
		}
	}
	return false
}

// openLedger unseals and loads the newest usable copy, and repairs the other (ledger.md §5).
func (d *Daemon) openLedger(ctx context.Context, set *enroll.Set, rec *enroll.Record) error {
	pins := sealing.Pins{SRKName: rec.SRKName, EKName: rec.EKName, AKName: rec.AKName, CounterName: rec.CounterName}
	l, st, report, err := ledger.Open(ctx, d.ledgerConfig(set.Rack), func(ctx context.Context, blob sealing.Blob, approvals []sealing.Approval) (ledger.Sealer, error) {
		u, err := sealing.Open(ctx, d.sealParams(), pins, set.Rack, blob, approvals)
		if err != nil {
			return nil, err
		}
		d.setUnsealed(u)
		return u, nil
	})
	for _, n := range report.Notes {
		d.log.Warn("ledger", "err", n, "hint", reason.HintOf(n))
	}
	if errors.Is(err, ledger.ErrLostSeal) || errors.Is(err, ledger.ErrAbsent) {
		return d.loseSealAtStart(ctx, reason.Wrap(err, CodeLostSeal, hintReenroll, "vault: open the ledger"))
	}
	if err != nil {
		return retry(err)
	}
	return d.haveLedger(l, st)
}

// haveLedger publishes an opened or newly made ledger.
func (d *Daemon) haveLedger(l *ledger.Ledger, st wire.LedgerState) error {
	if f := d.rotation.hooks.loaded; f != nil {
		st = f(st)
	}
	s := newStore(l, st, d.trace, d.counterMoved, d.fail)
	if err := d.setStore(s); err != nil {
		return err
	}
	d.setState(api.StateClaimed)
	return nil
}

// awaitClaim waits while the sled has no usable ledger: until a controller has enrolled it.
func (d *Daemon) awaitClaim(ctx context.Context) error {
	if d.getStore() != nil {
		return nil
	}
	d.boot.begin(StepClaim)
	d.nameTPM(ctx)
	for d.getStore() == nil {
		what, err := d.claimWait()
		d.boot.wait(what, err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.enrolled:
		}
	}
	return nil
}

// claimWait says what an unclaimed or lost sled waits for.
func (d *Daemon) claimWait() (string, error) {
	if err := d.lostReason(); err != nil {
		return "a controller that enrolls this sled again", err
	}
	if d.ClaimFingerprint() == "" {
		return "a claim, which nobody may make", reason.New("claim-nobody",
			"write the fingerprint that sledvault rack new printed into [claim] fingerprint and restart", "vault: no fingerprint is configured")
	}
	return "a controller with the key " + d.ClaimFingerprint(), nil
}

// awaitMembership waits for a committed configuration that contains this sled.
func (d *Daemon) awaitMembership(ctx context.Context) error {
	d.boot.begin(StepQuorum)
	for {
		st, _, changed := d.driver.Status()
		d.refreshState(st)
		if st.Expunged != nil {
			return d.staysRemoved(ctx)
		}
		if len(st.Commits) > 0 {
			return nil
		}
		d.boot.wait("a committed configuration: "+beginWith(st.LRTQ), nil)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// beginWith is the command that gives the rack its first configuration.
func beginWith(lrtq bool) string {
	if lrtq {
		return "sledvault rack upgrade-lrtq"
	}
	return "sledvault rack init"
}

// retry marks a device's error as one that may go away by itself, keeping its code and hint.
func retry(err error) error {
	if e, ok := errors.AsType[*reason.Error](err); ok && e.Remedy == reason.Operator {
		c := *e
		c.Remedy = reason.Retry
		return &c
	}
	return fmt.Errorf("vault: %w", err)
}
