//go:build linux

package simrack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// strangerHost is the last byte of the addresses of machines that do not belong to the rack: above all sleds.
const strangerHost = 100

// Steal copies a sled's disks and state folders into a machine that has a TPM of its own and knows no peers, and starts
// it. [Rack.Scrap] takes it down.
func (r *Rack) Steal(ctx context.Context, victim *Sled) (*Sled, error) {
	thief := r.newSled("stolen-"+victim.Name, strangerHost+victim.host, victim.Board.Serial)
	r.outsider(thief)
	for i := range thief.Disks { // the drive tells who it is
		thief.Disks[i].Serial, thief.Disks[i].seed = victim.Disks[i].Serial, victim.Disks[i].seed
	}
	if err := thief.build(ctx); err != nil {
		return thief, err
	}
	for i, d := range victim.State {
		if err := copyTree(thief.State[i], d); err != nil {
			return thief, fmt.Errorf("simrack: copy state: %w", err)
		}
	}
	for i, d := range victim.Disks {
		if err := copyFile(thief.Disks[i].Path, d.Path); err != nil {
			return thief, fmt.Errorf("simrack: copy disk: %w", err)
		}
	}
	if err := thief.configure(nil); err != nil {
		return thief, err
	}
	thief.powerOn()
	return thief, thief.Start()
}

// Stranger builds and starts a sled that belongs to no rack. Its configuration lets this rack's key claim it.
func (r *Rack) Stranger(ctx context.Context) (*Sled, error) {
	s := r.newSled("stranger", strangerHost, "BRM99990000")
	r.outsider(s)
	return s, s.first(ctx, r.peers())
}

// first builds a new machine and boots it for the first time.
func (s *Sled) first(ctx context.Context, peers []string) error {
	if err := s.build(ctx); err != nil {
		return err
	}
	if err := s.makeDisks(); err != nil {
		return err
	}
	if err := s.configure(peers); err != nil {
		return err
	}
	s.powerOn()
	return s.Start()
}

// outsider notes a machine that is no member, so that Close finds it.
func (r *Rack) outsider(s *Sled) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sleds, r.extra = without(r.sleds, s), append(without(r.extra, s), s)
}

// insider notes a member.
func (r *Rack) insider(s *Sled) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sleds, r.extra = append(without(r.sleds, s), s), without(r.extra, s)
}

// without returns a new list.
func without(list []*Sled, s *Sled) []*Sled {
	return slices.DeleteFunc(slices.Clone(list), func(e *Sled) bool { return e == s })
}

// Scrap powers a machine off that does not belong to the rack, and removes it.
func (r *Rack) Scrap(s *Sled) error {
	if err := s.PowerOff(); err != nil && !errors.Is(err, ErrClosed) {
		return err
	}
	r.mu.Lock()
	r.extra = without(r.extra, s)
	r.mu.Unlock()
	return errors.Join(s.dismantle(), os.RemoveAll(s.Dir))
}

// copyTree copies a folder as a copy of its drive would be: with the modes of its files, for a daemon refuses files that
// others may read.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch into := filepath.Join(to, rel); {
		case e.IsDir():
			return os.MkdirAll(into, 0o700)
		case e.Type().IsRegular():
			return copyFile(into, path)
		}
		return nil
	})
}

// copyFile copies a file and its mode.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fi.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
