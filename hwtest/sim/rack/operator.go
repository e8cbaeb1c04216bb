//go:build linux

package simrack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/disk"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Pauses while a state is awaited that no call of the API can wait for: a socket that is not there yet, a refusal.
const (
	lookFirst = 2 * time.Millisecond
	lookLast  = 50 * time.Millisecond
)

// keySize is the length of a disk key in bytes.
const keySize = 32

// Init sets the rack up through the commands that an operator uses: keys, configurations, daemons, enrolment, the first
// rack secret, disks encrypted with their patterns kept.
func (r *Rack) Init(ctx context.Context) error {
	if err := r.newRack(ctx); err != nil {
		return err
	}
	if err := r.all(ctx, r.sleds, func(_ context.Context, s *Sled) error {
		if err := s.configure(r.peers()); err != nil {
			return err
		}
		s.powerOn()
		return s.Start()
	}); err != nil {
		return err
	}
	r.tell("", "%d daemons started", len(r.sleds))
	if err := r.each(ctx, r.sleds, func(ctx context.Context, s *Sled) error { return s.table(ctx) }); err != nil {
		return err
	}
	var tables strings.Builder
	for _, s := range r.sleds {
		tables.WriteString(s.entry)
	}
	if err := appendFile(r.File, tables.String()); err != nil {
		return err
	}
	for _, verb := range []string{"enroll", "init"} {
		if _, err := r.Run(ctx, "rack", verb, "--rack", r.File, "--json"); err != nil {
			return err
		}
		r.tell("", "rack %s done", verb)
	}
	return r.each(ctx, r.sleds, func(ctx context.Context, s *Sled) error { return s.format(ctx) })
}

// format encrypts the sled's disks in place.
func (s *Sled) format(ctx context.Context) error {
	for _, d := range s.Disks {
		if _, err := s.rack.On(ctx, s, "disks", "format", d.ID, "--keep-data", "--yes", "--json"); err != nil {
			return err
		}
		s.rack.tell(s.Name, "disk %s encrypted", d.ID)
	}
	return nil
}

// newRack makes the rack's keys and its file. The recovery key is of no use here and is not kept.
func (r *Rack) newRack(ctx context.Context) error {
	out, err := r.Run(ctx, "rack", "new", r.Dir+"/rack", "--name", "demo", "--json")
	if err != nil {
		return err
	}
	defer clear(out)
	var made struct{ Rackfile, Fingerprint string }
	if err := json.Unmarshal(out, &made); err != nil || made.Rackfile == "" || made.Fingerprint == "" {
		return fmt.Errorf("simrack: answer of rack new: want a rack file and a fingerprint (%w)", err)
	}
	r.File, r.fingerprint = made.Rackfile, made.Fingerprint
	return nil
}

func (r *Rack) peers() []string {
	out := make([]string, len(r.sleds))
	for i, s := range r.sleds {
		out[i] = s.Peer
	}
	return out
}

// table makes the sled's part of the rack file. It asks the sled itself for the name of its endorsement key.
func (s *Sled) table(ctx context.Context) error {
	if _, err := s.Await(ctx, "unclaimed", func(st api.Status) bool { return st.State == api.StateUnclaimed }); err != nil {
		return err
	}
	out, err := s.rack.On(ctx, s, "tpm", "ek", "--json")
	if err != nil {
		return err
	}
	var id api.TPMIdentity
	if err := json.Unmarshal(out, &id); err != nil {
		return fmt.Errorf("simrack: answer of tpm ek: %w", err)
	}
	s.entry = fmt.Sprintf("\n[[sled]]\nname = %q\npart = %q\nserial = %q\nunderlay = %q\nek_name = %q\n",
		s.Name, s.Board.Part, s.Board.Serial, s.Underlay, id.EKName)
	return nil
}

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("simrack: extend the rack file: %w", err)
	}
	_, err = io.WriteString(f, text)
	return errors.Join(err, f.Close())
}

// strike takes a sled's table out of the rack file.
func (r *Rack) strike(s *Sled) error {
	b, err := os.ReadFile(r.File)
	if err != nil {
		return fmt.Errorf("simrack: read the rack file: %w", err)
	}
	if err := os.WriteFile(r.File, bytes.Replace(b, []byte(s.entry), nil, 1), 0o600); err != nil {
		return fmt.Errorf("simrack: write the rack file: %w", err)
	}
	return nil
}

// Await waits until the sled's status is as wanted. A daemon that does not answer yet is waited for.
func (s *Sled) Await(ctx context.Context, what string, ok func(api.Status) bool) (st api.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = s.insist(ctx, what, func() (bool, error) {
		now, err := s.Client().Status(ctx)
		if err != nil {
			return false, err
		}
		st = now
		return ok(st), nil
	})
	return st, err
}

// insist calls f until it says yes. Daemons that do not answer yet count as no; other errors end it. If ctx ends first,
// the error says where the sled stands.
func (s *Sled) insist(ctx context.Context, what string, f func() (bool, error)) error {
	for pause := lookFirst; ; pause = min(2*pause, lookLast) {
		yes, err := f()
		switch {
		case err == nil && yes:
			return nil
		case ctx.Err() != nil:
			return s.late(ctx, what)
		case err != nil && reason.CodeOf(err) != client.CodeUnreachable:
			return err
		}
		select {
		case <-ctx.Done():
			return s.late(ctx, what)
		case <-time.After(pause):
		}
	}
}

// late says why something did not happen in time, or that it was broken off.
func (s *Sled) late(ctx context.Context, what string) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	st, err := s.Client().Status(look)
	if err != nil {
		return fmt.Errorf("simrack: not %s in time: %w", what, err)
	}
	text := st.Boot.Waiting
	if e := cause(st); e != nil {
		text += ": " + e.Text
	}
	return fmt.Errorf("simrack: not %s in time: state %s, boot at %s, waiting for %s", what, st.State, st.Boot.Step, text)
}

// Unlock waits until every disk of the sled is open and returns what it says then.
func (s *Sled) Unlock(ctx context.Context) (api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c := s.Client()
	if err := s.insist(ctx, "unlocked", func() (bool, error) {
		_, err := c.Unlock(ctx, patience)
		return err == nil, err
	}); err != nil {
		return api.Status{}, err
	}
	st, err := s.Await(ctx, "unlocked", func(st api.Status) bool { return st.Boot.MSToUnlocked > 0 })
	if err != nil {
		return st, err
	}
	return st, open(st)
}

func open(st api.Status) error {
	if len(st.Disks) == 0 {
		return errors.New("simrack: the sled knows of no disk")
	}
	for _, d := range st.Disks {
		if d.State != "unlocked" {
			return fmt.Errorf("simrack: disk %s: have %q, want unlocked", d.ID, d.State)
		}
	}
	return nil
}

// Key fetches the key of one disk, as a boot script may.
func (s *Sled) Key(ctx context.Context, id string) (secret.DiskKey, error) {
	w := keyBuffer{b: make([]byte, 0, keySize)}
	defer clear(w.b[:keySize])
	if err := s.Client().Key(ctx, id, &w); err != nil {
		return secret.DiskKey{}, err
	}
	if len(w.b) != keySize {
		return secret.DiskKey{}, fmt.Errorf("simrack: key of disk %s: have %d bytes, want %d", id, len(w.b), keySize)
	}
	return secret.Take[secret.DiskKeyKind](secret.Heap{}, w.b)
}

// keyBuffer holds a key in one place, so that it can be wiped.
type keyBuffer struct{ b []byte }

func (k *keyBuffer) Write(p []byte) (int, error) {
	if len(k.b)+len(p) > keySize {
		return 0, fmt.Errorf("simrack: more than %d bytes of key", keySize)
	}
	k.b = append(k.b, p...)
	return len(p), nil
}

// CheckDisks reads every disk of the sled back with the key that the sled releases, and compares all of it with what was
// written before it was encrypted.
func (s *Sled) CheckDisks(ctx context.Context) error {
	for _, d := range s.Disks {
		key, err := s.Key(ctx, d.ID)
		if err != nil {
			return err
		}
		err = d.check(ctx, key)
		key.Destroy()
		if err != nil {
			return err
		}
	}
	return nil
}

func (d Disk) check(ctx context.Context, key secret.DiskKey) error {
	n := int(d.size - disk.Reserve)
	have, err := disk.ReadPlain(ctx, d.Path, key, 0, n)
	if err != nil {
		return err
	}
	if !bytes.Equal(have, disk.Pattern(d.seed, 0, n)) {
		return fmt.Errorf("simrack: disk %s: the data differ from what was written", d.ID)
	}
	raw, err := os.ReadFile(d.Path)
	if err != nil {
		return err
	}
	if bytes.Contains(raw, disk.Pattern(d.seed, 0, 64)) {
		return fmt.Errorf("simrack: disk %s: the data lie there in clear", d.ID)
	}
	return nil
}

// Recover waits until every sled's disks are open and checks their data.
func (r *Rack) Recover(ctx context.Context, sleds []*Sled) error {
	if err := r.all(ctx, sleds, func(ctx context.Context, s *Sled) error {
		_, err := s.Unlock(ctx)
		return err
	}); err != nil {
		return err
	}
	return r.each(ctx, sleds, func(ctx context.Context, s *Sled) error { return s.CheckDisks(ctx) })
}
