package controller

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// CodeRecovery marks a recovery of the membership key that cannot begin or go on.
const CodeRecovery reason.Code = "rack-recovery"

// Files of a recovery (recovery.md §7).
const (
	newKeyFile  = keyFile + ".new"      // the new key until the set that names it is written
	pendingFile = "recovery.pending"    // there until every member has the new certificate
	oldKey      = keyFile + ".old-"     // and a number: keys that were replaced
	oldSet      = setFile + ".old-"     // and a generation: the last set before a change of keys
	keySet      = setFile + ".rekeyed-" // and a generation: each set that changed a key, for sleds that missed it
)

// rekeying replaces the membership key in the rack's folder. Its steps are told apart by which files are there, so that
// it can be broken off anywhere: the new key and the set that names it are on disk before any sled sees them.
type rekeying struct {
	file     *File
	recovery func() (enroll.Key, error)
	access   Access
	set      *enroll.Set
	paper    *enroll.Key // the recovery key, once it was asked for
}

func (k *rekeying) path(name string) string { return filepath.Join(k.file.dir, name) }

func (k *rekeying) has(name string) bool {
	_, err := os.Lstat(k.path(name))
	return !errors.Is(err, fs.ErrNotExist)
}

func (k *rekeying) run(ctx context.Context) error {
	defer k.forget()
	const hint = "take enrolment.cbor from a state folder of a member, the one with the highest set_generation in its status"
	b, err := os.ReadFile(k.path(setFile))
	if err == nil {
		k.set, err = enroll.DecodeSet(b)
	}
	if err == nil {
		err = k.set.VerifyHeld(enroll.Fingerprint(k.set.MembershipKey), (&Controller{file: k.file, set: k.set}).sets(oldSet)...)
	}
	if err != nil {
		return reason.Wrap(err, CodeSet, hint, "rack: enrolment set")
	}
	if !k.has(pendingFile) {
		if err := k.begin(ctx, hint); err != nil {
			return err
		}
	}
	if !k.has(newKeyFile) {
		return nil // the files are in place
	}
	return k.replace()
}

// recoveryKey asks for the recovery key, once, and holds it against the set.
func (k *rekeying) recoveryKey() (enroll.Key, error) {
	if k.paper != nil {
		return *k.paper, nil
	}
	rec, err := k.recovery()
	if err != nil {
		return enroll.Key{}, err
	}
	if !bytes.Equal(rec.PublicKey(), k.set.RecoveryKey) {
		rec.Destroy()
		return enroll.Key{}, reason.New(CodeRecovery, "use the key that sledvault rack new printed for this rack, or the one that replaced it",
			"rack: recovery key %s is another rack's, want %s", enroll.Fingerprint(rec.PublicKey()), enroll.Fingerprint(k.set.RecoveryKey))
	}
	k.paper = &rec
	return rec, nil
}

// forget wipes the recovery key.
func (k *rekeying) forget() {
	if k.paper != nil {
		k.paper.Destroy()
		k.paper = nil
	}
}

// begin makes the new key. Nothing was changed if it fails.
func (k *rekeying) begin(ctx context.Context, hint string) error {
	if _, err := k.recoveryKey(); err != nil {
		return err
	}
	fresh, err := enroll.NewKey(secret.Heap{}, rand.Reader)
	if err != nil {
		return err
	}
	defer fresh.Destroy()
	if err := k.newest(ctx, fresh, hint); err != nil {
		return err
	}
	_ = os.Remove(k.path(newKeyFile)) // of a run that broke off while it wrote; no set names it
	if err := k.access.save(k.path(newKeyFile), fresh); err != nil {
		return err
	}
	return k.write(pendingFile, []byte("sledvault rack recover is under way\n"))
}

// newest refuses a set that is older than the sleds': its successor would be a fork. The sleds' word is not proved; a lie
// only stops the recovery, and is told with the sled's name.
func (k *rekeying) newest(ctx context.Context, key enroll.Key, hint string) error {
	cert, err := enroll.SelfClient(key, k.set.MinClientGeneration) // any: everybody may ask for the status
	if err != nil {
		return err
	}
	c := &Controller{file: k.file, cert: cert}
	for _, r := range c.Sleds(ctx) {
		if st := r.Status; st != nil && st.Rack != nil && st.Rack.SetGeneration > k.set.Generation {
			return reason.New(CodeSet, hint, "rack: sled %s has enrolment set %d, this folder %d", r.Sled.Label(), st.Rack.SetGeneration, k.set.Generation)
		}
	}
	return nil
}

// replace makes the set that names the new key, and puts set and key in their places.
func (k *rekeying) replace() error {
	fresh, err := enroll.LoadKey(secret.Heap{}, k.path(newKeyFile), k.access.Passphrase)
	if err != nil {
		return err
	}
	defer fresh.Destroy()
	if !bytes.Equal(k.set.MembershipKey, fresh.PublicKey()) {
		if err := k.succeed(fresh); err != nil {
			return err
		}
	}
	if err := k.setAside(fresh); err != nil {
		return err
	}
	if err := os.Rename(k.path(newKeyFile), k.path(keyFile)); err != nil {
		return reason.Wrap(err, CodeRecovery, "run the command again", "rack: put the new key in its place")
	}
	return k.sync()
}

// succeed writes the set that names the new key, signed by the recovery key. Client certificates of before are revoked
// with it, also those that a thief of the old key has made.
func (k *rekeying) succeed(fresh enroll.Key) error {
	rec, err := k.recoveryKey()
	if err != nil {
		return err
	}
	next := k.set.Next()
	next.MembershipKey = fresh.PublicKey()
	next.MinClientGeneration++
	if k.access.NewRecovery != nil {
		if err := k.newRecovery(next); err != nil {
			return err
		}
	}
	if err := next.Sign(rec); err != nil {
		return err
	}
	if err := enroll.VerifySuccessor(k.set, next); err != nil {
		return err
	}
	if err := k.write(oldSet+strconv.FormatUint(k.set.Generation, 10), k.set.Encode()); err != nil {
		return err
	}
	if err := k.write(keySet+strconv.FormatUint(next.Generation, 10), next.Encode()); err != nil {
		return err
	}
	if err := k.write(setFile, next.Encode()); err != nil {
		return err
	}
	k.set = next
	return nil
}

// newRecovery puts another recovery key into a set. It is shown before the set is written: from then on nothing else helps.
func (k *rekeying) newRecovery(next *enroll.Set) error {
	key, err := enroll.NewKey(secret.Heap{}, rand.Reader)
	if err != nil {
		return err
	}
	defer key.Destroy()
	text, err := enroll.RecoveryText(key)
	defer clear(text)
	if err == nil {
		err = k.access.NewRecovery(text)
	}
	if err != nil {
		return err
	}
	next.RecoveryKey = key.PublicKey()
	return nil
}

// setAside renames the old key, if there is one, to the first name that is free.
func (k *rekeying) setAside(fresh enroll.Key) error {
	if !k.has(keyFile) {
		return nil
	}
	n := 1
	for k.has(oldKey + strconv.Itoa(n)) {
		n++
	}
	if err := os.Rename(k.path(keyFile), k.path(oldKey+strconv.Itoa(n))); err != nil {
		return reason.Wrap(err, CodeRecovery, "run the command again", "rack: move the old key aside, for %s", enroll.Fingerprint(fresh.PublicKey()))
	}
	return k.sync()
}

func (k *rekeying) write(name string, b []byte) error {
	if err := journal.WriteFile(k.path(name), b, 0o600); err != nil {
		return reason.Wrap(err, CodeRecovery, "free space in the rack's folder, then run the command again", "rack: write %s", name)
	}
	return nil
}

func (k *rekeying) sync() error {
	d, err := os.Open(k.file.dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return reason.Wrap(err, CodeRecovery, "check the disk, then run the command again", "rack: sync the folder")
	}
	return nil
}

// sets reads the kept sets whose names begin so, in the order of their generations. A file that is no set of this rack
// is left out: whatever it was for fails by name later.
func (c *Controller) sets(prefix string) (out []*enroll.Set) {
	names, _ := filepath.Glob(filepath.Join(c.file.dir, prefix+"*"))
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			continue
		}
		if s, err := enroll.DecodeSet(b); err == nil && s.Rack == c.set.Rack {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *enroll.Set) int {
		if a.Generation < b.Generation {
			return -1
		}
		return 1
	})
	return out
}

// handKeys gives a sled that refuses this controller's certificate the sets that changed a key while it was away; one that
// lost its seal may have lost the sets before them as well. They prove themselves, so nobody need be trusted with them. An
// error says that the sled may take them later: it is still starting.
func (c *Controller) handKeys(ctx context.Context, s *client.Session, lost bool) error {
	sets := c.sets(keySet)
	if lost {
		sets = append(sets, c.sets(oldSet)...)
		slices.SortStableFunc(sets, func(a, b *enroll.Set) int { return cmp.Compare(a.Generation, b.Generation) })
	}
	for _, set := range sets {
		if _, err := s.EnrollSet(ctx, set.Encode()); err != nil && reason.RemedyOf(err) == reason.Retry {
			return err
		}
	}
	return nil
}

// renew makes a client certificate of the set's generation.
func (c *Controller) renew(s *enroll.Set) (tls.Certificate, error) {
	return enroll.SelfClient(c.key, s.MinClientGeneration)
}
