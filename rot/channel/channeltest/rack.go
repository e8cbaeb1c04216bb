// Package channeltest makes enrolled racks of sleds with fake TPMs, for tests of whatever opens channels.
//
// It owns nothing that ships. Read next: package rottest for the fake TPM, package channel for what a sled's
// configuration means.
package channeltest

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/rot/rottest"
	"github.com/sledvault/sledvault/vault/ident"
)

// Rack is an enrolled rack of booted sleds with fake TPMs. Every sled holds its own copy of the set.
type Rack struct {
	Key, Recovery ed25519.PrivateKey
	Set           *enroll.Set // the newest one that was signed
	Sleds         []*Sled
}

// Sled is one sled of a [Rack]: its TPM, its prover, and how it opens channels.
type Sled struct {
	ID      ident.Baseboard
	TPM     *rottest.TPM
	Facts   *rottest.Facts
	Prover  *rot.Prover
	Channel *channel.Config

	mu   sync.Mutex
	set  *enroll.Set
	seen map[string]rot.Seen
}

// PinnedPCRs are the registers that records of [NewRack] pin by value.
func PinnedPCRs() []int { return []int{0, 2, 4, 7, 11, 12, 14} }

// NewRack makes n booted sleds and a set that names them all. Provers end with the test.
func NewRack(tb testing.TB, n int) *Rack {
	tb.Helper()
	r := &Rack{Key: signingKey("membership"), Recovery: signingKey("recovery")}
	set := enroll.NewSet(ident.RackID{0x51, 0xed, 1}, publicOf(r.Key), publicOf(r.Recovery))
	for i := range n {
		s := NewSled(tb, fmt.Sprintf("SIM%05d", i+1))
		r.Sleds = append(r.Sleds, s)
		if err := set.Put(s.Record()); err != nil {
			tb.Fatal(err)
		}
	}
	r.Publish(tb, set)
	for _, s := range r.Sleds {
		s.SetSet(r.Set)
	}
	return r
}

// Publish signs a set. It gives it to no sled.
func (r *Rack) Publish(tb testing.TB, set *enroll.Set) {
	tb.Helper()
	if err := set.Sign(r.Key); err != nil {
		tb.Fatal(err)
	}
	r.Set = set
}

// NewSled makes a booted sled that belongs to no rack. Its prover ends with the test.
func NewSled(tb testing.TB, serial string) *Sled {
	tb.Helper()
	s := &Sled{ID: ident.Baseboard{Part: "913-0000019", Serial: serial}, TPM: rottest.NewTPM(serial), Facts: &rottest.Facts{}, seen: map[string]rot.Seen{}}
	if err := s.TPM.Boot(firmware.Options{}); err != nil {
		tb.Fatal(err)
	}
	s.Facts.Set(rot.Facts{LedgerSequence: s.TPM.Counter, LedgerGeneration: 1})
	identity, err := channel.NewIdentity()
	if err != nil {
		tb.Fatal(err)
	}
	s.Prover, err = rot.NewProver(rot.ProverConfig{Attestor: s.TPM, Baseboard: s.ID, Facts: s.Facts.Get})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Prover.Close)
	s.Channel = &channel.Config{
		Self: s.ID, Identity: identity, Prover: s.Prover, Set: s.Set, AdoptSet: s.Adopt, Seen: s.Seen, Remember: s.remember,
		Capabilities: []string{"authority/1"},
	}
	return s
}

// Record is what an enrolment of the sled as it is now would write.
func (s *Sled) Record() enroll.Record {
	srk := rottest.NewTPM("srk of " + s.ID.Serial)
	return enroll.Record{
		Baseboard: s.ID, EKName: s.TPM.EKName(), AKPublic: s.TPM.AKPublic(), AKName: s.TPM.AKName(),
		SRKPublic: srk.AKPublic(), SRKName: srk.AKName(), CounterName: s.TPM.CounterName(), Counter: s.TPM.Counter,
		Firmware:   &enroll.Firmware{Manufacturer: "FAKE", Version: s.TPM.Firmware, Minimum: s.TPM.Firmware},
		ResetCount: s.TPM.Reset, PCRs: s.TPM.Pins(PinnedPCRs()...), Kind: enroll.KindTPM,
	}
}

// Set is the set that the sled holds.
func (s *Sled) Set() *enroll.Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set
}

// SetSet gives the sled a set without any check.
func (s *Sled) SetSet(set *enroll.Set) {
	s.mu.Lock()
	s.set = set
	s.mu.Unlock()
	f := s.Facts.Get()
	f.SetGeneration = set.Generation
	s.Facts.Set(f)
}

// Adopt takes over a newer set as a sled does.
func (s *Sled) Adopt(_ context.Context, encoded []byte) error {
	set, err := enroll.DecodeSet(encoded)
	if err != nil {
		return err
	}
	if err := enroll.VerifySuccessor(s.Set(), set); err != nil {
		return err
	}
	s.SetSet(set)
	return nil
}

// Seen is what the sled remembers of a TPM.
func (s *Sled) Seen(ekName []byte) rot.Seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[string(ekName)]
}

func (s *Sled) remember(ekName []byte, seen rot.Seen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[string(ekName)] = s.seen[string(ekName)].Merge(seen)
}

// Advance moves counter and ledger by one, as a save does.
func (s *Sled) Advance() {
	s.TPM.Set(func(t *rottest.TPM) { t.Counter++ })
	f := s.Facts.Get()
	f.LedgerSequence++
	f.LedgerGeneration++
	s.Facts.Set(f)
	s.Prover.CounterMoved()
}

func signingKey(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("channeltest " + name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func publicOf(k ed25519.PrivateKey) ed25519.PublicKey {
	return k.Public().(ed25519.PublicKey) //nolint:forcetypeassert // the type of the key says so
}
