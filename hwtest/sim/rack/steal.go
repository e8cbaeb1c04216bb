//go:build linux

package simrack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// strangerHost is the last byte of the addresses of machines that do not belong to the rack: above all sleds.
const strangerHost = 100

// Steal copies a sled's disks and state folders into a machine that has a TPM of its own and knows no peers, and starts
// it. [Rack.Scrap] takes it down.
func (r *Rack) Steal(ctx context.Context, victim *Sled) (*Sled, error) {
	thief := r.newSled("stolen-"+victim.Name, strangerHost+victim.host, victim.Board.Serial)
	r.mu.Lock()
	r.extra = append(r.extra, thief)
	r.mu.Unlock()
	for i := range thief.Disks { // the drive tells who it is
		thief.Disks[i].Serial, thief.Disks[i].seed = victim.Disks[i].Serial, victim.Disks[i].seed
	}
	if err := thief.build(ctx); err != nil {
		return thief, err
	}
	for i, d := range victim.State {
		if err := os.CopyFS(filepath.Join(thief.State[i]), os.DirFS(d)); err != nil {
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
	r.mu.Lock()
	r.extra = append(r.extra, s)
	r.mu.Unlock()
	if err := s.build(ctx); err != nil {
		return s, err
	}
	if err := s.makeDisks(); err != nil {
		return s, err
	}
	if err := s.configure(r.peers()); err != nil {
		return s, err
	}
	s.powerOn()
	return s, s.Start()
}

// Scrap powers a machine off that does not belong to the rack, and removes it.
func (r *Rack) Scrap(s *Sled) error {
	if err := s.PowerOff(); err != nil && !errors.Is(err, ErrClosed) {
		return err
	}
	r.mu.Lock()
	for i, e := range r.extra {
		if e == s {
			r.extra = append(r.extra[:i:i], r.extra[i+1:]...)
			break
		}
	}
	r.mu.Unlock()
	return errors.Join(s.dismantle(), os.RemoveAll(s.Dir))
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
