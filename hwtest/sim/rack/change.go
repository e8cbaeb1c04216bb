//go:build linux

package simrack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sledvault/sledvault/hwtest/sim/disk"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// change runs one of the operator's commands that change the membership, and returns the epoch that it committed.
func (r *Rack) change(ctx context.Context, verb string, args ...string) (ident.Epoch, error) {
	out, err := r.Run(ctx, append([]string{"rack", verb, "--rack", r.File, "--json"}, args...)...)
	if err != nil {
		return 0, err
	}
	var made struct {
		Epoch ident.Epoch
		Phase string
	}
	if err := json.Unmarshal(out, &made); err != nil {
		return 0, fmt.Errorf("simrack: answer of rack %s: %w", verb, err)
	}
	if made.Epoch == 0 || made.Phase != "done" {
		return 0, fmt.Errorf("simrack: rack %s: have epoch %d in phase %.20q, want an epoch that is done", verb, made.Epoch, made.Phase)
	}
	r.tell("", "rack %s done: epoch %d", verb, made.Epoch)
	return made.Epoch, nil
}

// moved waits until every disk of the sleds is open under the key of the epoch.
func (r *Rack) moved(ctx context.Context, sleds []*Sled, e ident.Epoch) error {
	return r.all(ctx, sleds, func(ctx context.Context, s *Sled) error {
		_, err := s.Await(ctx, fmt.Sprintf("at epoch %d with every disk", e), func(st api.Status) bool { return at(st, e) })
		return err
	})
}

func at(st api.Status, e ident.Epoch) bool {
	behind := func(d api.Disk) bool { return d.Epoch != e || d.Rotation != "" }
	return st.State == api.StateMember && open(st) == nil && !slices.ContainsFunc(st.Disks, behind)
}

// coldBootAt is [Rack.coldBoot] of a rack whose disks must open under the key of the epoch.
func (r *Rack) coldBootAt(ctx context.Context, e ident.Epoch) error {
	if _, err := r.coldBoot(ctx); err != nil {
		return err
	}
	return r.moved(ctx, r.sleds, e)
}

// playAddSled builds a new sled and makes it a member, as docs/rack.md §5 says.
func (r *Rack) playAddSled(ctx context.Context) (string, error) {
	if r.hosts+1 >= strangerHost {
		return "", fmt.Errorf("simrack: add a sled: have %d, and no address is left", r.hosts)
	}
	s := r.nextSled()
	r.outsider(s)
	e, err := r.join(ctx, s)
	if err != nil {
		return "", &SledError{s, err}
	}
	r.insider(s)
	if err := r.moved(ctx, r.sleds[:len(r.sleds)-1], e); err != nil {
		return "", err
	}
	if err := s.format(ctx); err != nil {
		return "", &SledError{s, err}
	}
	if err := r.coldBootAt(ctx, e); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s is a member; all %d sleds cold-boot with every disk at epoch %d", s.Name, len(r.sleds), e), nil
}

// join takes a new sled from its first boot to its membership.
func (r *Rack) join(ctx context.Context, s *Sled) (ident.Epoch, error) {
	peers := append(r.peers(), s.Peer)
	if err := s.first(ctx, peers); err != nil {
		return 0, err
	}
	if err := s.table(ctx); err != nil {
		return 0, err
	}
	if err := appendFile(r.File, s.entry); err != nil {
		return 0, err
	}
	if err := r.introduce(ctx, peers); err != nil {
		return 0, err
	}
	if _, err := r.Run(ctx, "rack", "enroll", "--rack", r.File, "--json"); err != nil {
		return 0, err
	}
	e, err := r.change(ctx, "add", s.Name)
	if err != nil {
		return 0, err
	}
	_, err = s.Await(ctx, "a member of the rack", func(st api.Status) bool { return st.State == api.StateMember })
	return e, err
}

// introduce gives every member a new list of addresses: now, and in its configuration for later boots.
func (r *Rack) introduce(ctx context.Context, peers []string) error {
	return r.all(ctx, r.sleds, func(ctx context.Context, s *Sled) error {
		if err := s.configure(peers); err != nil {
			return err
		}
		return s.Client().SetPeers(ctx, peers)
	})
}

// playRotate has the disks move to a new secret. Keys that were released before open nothing afterwards.
func (r *Rack) playRotate(ctx context.Context) (string, error) {
	old := make([]secret.DiskKey, len(r.sleds))
	defer func() {
		for _, k := range old {
			k.Destroy()
		}
	}()
	if err := r.each(ctx, r.sleds, func(ctx context.Context, s *Sled) (err error) {
		old[slices.Index(r.sleds, s)], err = s.Key(ctx, s.Disks[0].ID)
		return err
	}); err != nil {
		return "", err
	}
	e, err := r.change(ctx, "rotate")
	if err != nil {
		return "", err
	}
	if err := r.moved(ctx, r.sleds, e); err != nil {
		return "", err
	}
	if err := r.each(ctx, r.sleds, func(ctx context.Context, s *Sled) error {
		return s.Disks[0].shut(ctx, old[slices.Index(r.sleds, s)])
	}); err != nil {
		return "", err
	}
	if err := r.coldBootAt(ctx, e); err != nil {
		return "", err
	}
	return fmt.Sprintf("every disk moved to epoch %d while it was open, the old keys open none, all sleds cold-boot", e), nil
}

// shut makes sure that a key does not open a disk.
func (d Disk) shut(ctx context.Context, key secret.DiskKey) error {
	if _, err := disk.ReadPlain(ctx, d.Path, key, 0, 4096); err == nil {
		return fmt.Errorf("simrack: disk %s: the key of an older epoch opens it", d.ID)
	}
	return context.Cause(ctx)
}

// playRemoveSled takes out a member that is up and looks at what becomes of it.
func (r *Rack) playRemoveSled(ctx context.Context) (string, error) {
	if n := len(r.sleds); n <= MinSleds {
		return "", &reason.Error{
			Code: CodeRack, Text: fmt.Sprintf("simrack: remove a sled: have %d, want more than %d", n, MinSleds),
			Hint: "play " + SceneAddSled + " before, or start with more sleds", Remedy: reason.Usage,
		}
	}
	gone := r.sleds[1]
	e, err := r.change(ctx, "remove", gone.Name, "--yes")
	if err != nil {
		return "", err
	}
	r.outsider(gone)
	if err := r.strike(gone); err != nil {
		return "", err
	}
	if _, err := gone.Await(ctx, "expunged", func(st api.Status) bool { return st.State == api.StateExpunged }); err != nil {
		return "", &SledError{gone, err}
	}
	if err := r.introduce(ctx, r.peers()); err != nil {
		return "", err
	}
	if err := r.moved(ctx, r.sleds, e); err != nil {
		return "", err
	}
	if err := gone.PowerCycle(); err != nil {
		return "", &SledError{gone, err}
	}
	if err := r.coldBootAt(ctx, e); err != nil {
		return "", err
	}
	st, err := gone.refused(ctx, "expunged")
	if err == nil && st.State != api.StateExpunged {
		err = fmt.Errorf("simrack: after its removal: have state %s, want %s", st.State, api.StateExpunged)
	}
	if err != nil {
		return "", &SledError{gone, err}
	}
	if err := r.Scrap(gone); err != nil {
		return "", &SledError{gone, err}
	}
	return fmt.Sprintf("%s is expunged and opens nothing; the other %d cold-boot with every disk at epoch %d", gone.Name, len(r.sleds), e), nil
}

// playOldDrive puts state folders back that were saved before a rotation.
func (r *Rack) playOldDrive(ctx context.Context) (string, error) {
	s := r.sleds[1]
	if err := s.saveState(ctx); err != nil {
		return "", &SledError{s, err}
	}
	e, err := r.change(ctx, "rotate")
	if err != nil {
		return "", err
	}
	if err := r.moved(ctx, r.sleds, e); err != nil {
		return "", err
	}
	if err := s.restoreState(); err != nil {
		return "", &SledError{s, err}
	}
	st, err := s.refused(ctx, "lost-seal")
	if err == nil && !strings.Contains(cause(st).Text, "counter") { // nothing else is wrong with the copy
		err = fmt.Errorf("simrack: restored state: have %q, want a refusal by the TPM's counter", why(st))
	}
	if err != nil {
		return "", &SledError{s, err}
	}
	if err := r.heal(ctx, s); err != nil {
		return "", &SledError{s, err}
	}
	if err := r.Recover(ctx, []*Sled{s}); err != nil {
		return "", err
	}
	if err := r.coldBootAt(ctx, e); err != nil {
		return "", err
	}
	return fmt.Sprintf("its state of before epoch %d is refused; enrolled again it opens its disks, %s", e, why(st)), nil
}

// saveState copies the state folders as they are on a drive that is taken out.
func (s *Sled) saveState(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	for _, d := range s.State {
		if err := copyTree(saved(d), d); err != nil {
			return fmt.Errorf("simrack: save state: %w", err)
		}
	}
	if err := s.Start(); err != nil {
		return err
	}
	_, err := s.Unlock(ctx)
	return err
}

// saved is where the copy of a state folder lies.
func saved(dir string) string { return filepath.Join(filepath.Dir(dir), "old-"+filepath.Base(dir)) }

// restoreState boots the sled with the copies that [Sled.saveState] made, and uses them up.
func (s *Sled) restoreState() error {
	if err := s.PowerOff(); err != nil {
		return err
	}
	for _, d := range s.State {
		if err := errors.Join(os.RemoveAll(d), os.Rename(saved(d), d)); err != nil {
			return fmt.Errorf("simrack: restore state: %w", err)
		}
	}
	return s.PowerCycle()
}

// heal has the operator enroll a sled again that lost its seal. Unless it is named, the command must leave it alone.
func (r *Rack) heal(ctx context.Context, s *Sled) error {
	_, err := r.Run(ctx, "rack", "enroll", "--rack", r.File)
	if ce, ok := errors.AsType[*CommandError](err); !ok || ce.Code != 1 || !strings.Contains(ce.Stderr, "--again "+s.Name) {
		return fmt.Errorf("simrack: enroll without its name: have %v, want exit code 1 and a hint to name it", err)
	}
	if _, err := r.Run(ctx, "rack", "enroll", "--again", s.Name, "--rack", r.File, "--json"); err != nil {
		return err
	}
	r.tell(s.Name, "enrolled again")
	return nil
}
