package controller

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
)

// Recovered says what a recovery has made.
type Recovered struct {
	Fingerprint   string       `json:"fingerprint"` // of the new membership key
	SetGeneration uint64       `json:"set_generation"`
	Change        *rack.Change `json:"change"` // the configuration that has a new certificate; null if none was committed
}

// Recover is [Access.Recover] for key files without a passphrase.
func Recover(ctx context.Context, path string, recovery func() (enroll.Key, error), tell func(Event)) (*Recovered, error) {
	return Access{}.Recover(ctx, path, recovery, tell)
}

// Recover replaces the membership key of the rack whose rack file is given, by the authority of the recovery key, which
// recovery returns and this wipes; it is not asked for when an earlier run got beyond that. The old key is moved aside.
// Every sled is given the new enrolment set, and every member a new certificate of what it has committed. It may be
// broken off at any point and run again; until all members have answered it goes on with the same new key (recovery.md §7).
// Access.Fresh is asked for the new file's passphrase when that is made, Access.Passphrase whenever it is opened.
func (a Access) Recover(ctx context.Context, path string, recovery func() (enroll.Key, error), tell func(Event)) (*Recovered, error) {
	f, err := Load(path)
	if err != nil {
		return nil, err
	}
	j, st, err := journal.Open(f.dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = j.Close() }()
	k := &rekeying{file: f, recovery: recovery, access: a}
	if err := k.run(ctx); err != nil {
		return nil, err
	}
	c, err := openFile(f, a.Passphrase, tell)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if st.Change != nil && st.Rack != c.set.Rack {
		return nil, reason.New(rack.CodeMismatch, "restore the files of one rack into the folder", "rack: the journal is of rack %s, the enrolment set of rack %s", st.Rack, c.set.Rack)
	}
	c.note("membership key %s, enrolment set %d", enroll.Fingerprint(c.key.PublicKey()), c.set.Generation)
	for _, s := range c.sets(oldSet) {
		c.former = append(c.former, enroll.NewAuthority(s))
	}
	r := &run{c: c, j: j, st: &st}
	out := &Recovered{Fingerprint: enroll.Fingerprint(c.key.PublicKey()), SetGeneration: c.set.Generation}
	if err := r.recertify(ctx); err != nil {
		return out, err
	}
	out.Change = r.st.Committed()
	if err := os.Remove(filepath.Join(f.dir, pendingFile)); err != nil {
		return out, reason.Wrap(err, CodeRecovery, "remove it", "rack: the recovery is done; remove %s", pendingFile)
	}
	return out, nil
}

// recertify gives every sled the new set and every member the new certificate. Both go over connections on which the sled
// has proved itself; a sled that knows the old key only takes the set first, see [Controller.link].
func (r *run) recertify(ctx context.Context) error {
	if ch := r.st.Change; ch != nil && ch.Phase == rack.Preparing { // its grant is the old key's
		if err := ch.Abort(); err != nil {
			return err
		}
		r.c.note("epoch %d: aborted, begin it again afterwards", ch.Epoch)
		if err := r.save(); err != nil {
			return err
		}
	}
	var all []ident.Baseboard
	for _, s := range r.c.file.Sleds {
		if rec, ok := r.c.set.Find(s.Baseboard()); ok && rec.Live() {
			all = append(all, s.Baseboard())
		}
	}
	if r.st.Committed() == nil { // a lost journal, or a rack before its first secret
		if err := r.survey(ctx, all, func(reached []ident.Baseboard) bool { return len(reached) == len(all) }); err != nil {
			return err
		}
	}
	for {
		ch := r.st.Committed()
		if ch == nil {
			return nil
		}
		if err := r.recertifyOne(ctx, ch, all); !errors.Is(err, errAgain) {
			return err
		}
	}
}

// recertifyOne commits what is committed once more, under a certificate of the new key.
func (r *run) recertifyOne(ctx context.Context, ch *rack.Change, all []ident.Baseboard) error {
	cert, err := enroll.SignCertificate(r.c.key, ch.Config, ch.KeepFrom)
	if err != nil {
		return err
	}
	if r.st.Recertify(cert) {
		if err := r.save(); err != nil {
			return err
		}
	}
	r.tellSet(ctx, r.c.set, slices.DeleteFunc(slices.Clone(all), func(b ident.Baseboard) bool { return slices.Contains(ch.Members, b) }))
	r.earlier = ch
	err = r.commit(ctx, func() bool { return ch.Phase == rack.Done && ch.Marks() })
	if reason.CodeOf(err) == CodeSuperseded {
		return r.catchUp(ctx)
	}
	if err != nil {
		return r.c.gaveUp(ctx, ch, err)
	}
	return nil
}

// Told says whether one sled has taken a set.
type Told struct {
	Sled  string     `json:"sled"`
	Error *api.Error `json:"error"` // null if it has
}

// Revoke ends the rights of every client certificate that was issued before. It may be run again; each run revokes once
// more. Sleds that do not answer learn of it from their peers, or from any later command.
func (c *Controller) Revoke(ctx context.Context) ([]Told, error) {
	r, err := c.openRun()
	if err != nil {
		return nil, err
	}
	defer r.close()
	if c.set.MinClientGeneration == math.MaxUint32 {
		return nil, reason.New(CodeSet, "replace the membership key: sledvault rack recover", "rack: no client generation is left")
	}
	next := c.set.Next()
	next.MinClientGeneration++
	if err := next.Sign(c.key); err != nil {
		return nil, err
	}
	cert, err := c.renew(next) // sleds that hold the set before take it as well
	if err != nil {
		return nil, err
	}
	if err := c.saveSet(next); err != nil {
		return nil, err
	}
	c.cert = cert
	c.note("client certificates below generation %d are revoked, enrolment set %d", next.MinClientGeneration, next.Generation)
	return c.tellAll(ctx)
}

// tellAll hands the newest set to every sled that is enrolled.
func (c *Controller) tellAll(ctx context.Context) ([]Told, error) {
	var sleds []Sled
	for _, s := range c.file.Sleds {
		if _, ok := c.set.Find(s.Baseboard()); ok {
			sleds = append(sleds, s)
		}
	}
	tried := make([]Enrolled, len(sleds))
	envelope := c.set.Encode()
	c.each(sleds, func(_ int, s Sled) error {
		ctx, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		return c.distribute(ctx, s, envelope)
	}, tried)
	out := make([]Told, len(sleds))
	missing := 0
	for i, s := range sleds {
		if out[i] = (Told{s.Label(), tried[i].Error}); tried[i].Error != nil {
			missing++
		}
	}
	if missing == 0 {
		return out, nil
	}
	return out, reason.Later(CodeWaiting, "they learn it from their peers, or from sledvault rack enroll",
		"rack: %d of %d sleds have not taken enrolment set %d", missing, len(sleds), c.set.Generation)
}
