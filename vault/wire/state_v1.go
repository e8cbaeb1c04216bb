package wire

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/quorum"
)

// Version 1 of the state: a CBOR map with integer keys in this order, every key present but the last, which is there only
// where the older scheme left a package (wire.md §7). A later version is a new file; this one stays as it is, so that every released ledger still opens.
const stateV1 = "sledvault/state/v1"

const (
	keyVersion = iota
	keySequence
	keyGeneration
	keyConfigs      // ascending by epoch, each as on the wire
	keyShares       // [epoch, x, bytes]
	keyCommits      // epochs
	keyCertificates // as in a CommitProof
	keyExpunged     // null, or [epoch, [part, serial]]
	keySet          // [generation, digest]
	keyDisks
	keyBreakGlass
	keyLRTQ // [rack id, epoch, threshold, x, bytes, digests]

	stateV1Keys = keyLRTQ // without the package
)

func (w *writer) stateV1(s LedgerState) {
	keys := stateV1Keys
	if s.Quorum.LRTQ != nil {
		keys++
	}
	w.mapOf(keys)
	w.uint(keyVersion)
	w.text(stateV1)
	w.uint(keySequence)
	w.uint(s.Sequence)
	w.uint(keyGeneration)
	w.uint(s.Generation)
	w.quorumV1(s.Quorum)
	w.uint(keySet)
	w.array(2)
	w.uint(s.SetGeneration)
	w.bytes(s.SetDigest[:])
	w.uint(keyDisks)
	w.disksV1(s.Disks)
	w.uint(keyBreakGlass)
	w.checkLen("break-glass shares", len(s.BreakGlass), maxBreak)
	w.bytes(s.BreakGlass)
	if p := s.Quorum.LRTQ; p != nil {
		w.uint(keyLRTQ)
		w.packageV1(p)
	}
}

func (w *writer) packageV1(p *lrtq.Package) {
	w.checkShare(p.Share)
	w.checkLen("digests", len(p.Digests), lrtq.TotalShares)
	w.array(6)
	w.bytes(p.RackID[:])
	w.uint(uint64(p.Epoch))
	w.uint(uint64(p.Threshold))
	w.uint(uint64(p.Share.X))
	w.revealBytes(p.Share.Y)
	w.array(len(p.Digests))
	for i, d := range p.Digests {
		if i > 0 && bytes.Compare(p.Digests[i-1][:], d[:]) >= 0 {
			w.fail(CodeOrder, "digests are not ascending at %d", i)
		}
		w.bytes(d[:])
	}
}

func (w *writer) quorumV1(s quorum.State) {
	w.uint(keyConfigs)
	mapV1(w, s.Configs, func(e ident.Epoch, c *quorum.Configuration) {
		if c != nil && c.Epoch != e {
			w.fail(CodeEncode, "configuration of epoch %d stored under %d", c.Epoch, e)
		}
		w.configuration(c)
	})
	w.uint(keyShares)
	mapV1(w, s.Shares, func(e ident.Epoch, sh gfss.Share) {
		w.checkShare(sh)
		w.array(3)
		w.uint(uint64(e))
		w.uint(uint64(sh.X))
		w.revealBytes(sh.Y)
	})
	w.uint(keyCommits)
	mapV1(w, s.Commits, func(e ident.Epoch, committed bool) {
		if !committed {
			w.fail(CodeEncode, "epoch %d is stored as not committed", e)
		}
		w.uint(uint64(e))
	})
	w.uint(keyCertificates)
	mapV1(w, s.Certificates, func(e ident.Epoch, c *quorum.Certificate) {
		if c != nil && c.Epoch != e {
			w.fail(CodeEncode, "certificate of epoch %d stored under %d", c.Epoch, e)
		}
		w.certificate(c)
	})
	w.uint(keyExpunged)
	if s.Expunged == nil {
		w.null()
		return
	}
	w.array(2)
	w.uint(uint64(s.Expunged.Epoch))
	w.pair(s.Expunged.From)
}

// mapV1 writes the values of a map by epoch as an array in ascending order.
func mapV1[V any](w *writer, m map[ident.Epoch]V, value func(ident.Epoch, V)) {
	w.checkLen("epochs", len(m), maxEpochs)
	w.array(len(m))
	for _, e := range slices.Sorted(maps.Keys(m)) {
		value(e, m[e])
	}
}

func (w *writer) disksV1(ds []DiskRecord) {
	w.checkLen("disks", len(ds), maxDisks)
	w.array(len(ds))
	for i, d := range ds {
		if i > 0 && ds[i-1].ID >= d.ID {
			w.fail(CodeOrder, "disks are not ascending at %d", i)
		}
		w.array(9)
		for _, t := range []string{d.ID, d.Backend, d.Vendor, d.Model, d.Serial} {
			w.checkLen("disk text", len(t), maxDiskText)
			w.text(t)
		}
		w.uint(uint64(d.Epoch))
		w.checkLen("header pins", len(d.HeaderPins), maxPins)
		w.array(len(d.HeaderPins))
		for _, p := range d.HeaderPins {
			w.checkLen("pin name", len(p.Name), maxDiskText)
			w.checkLen("pin value", len(p.Value), maxPinValue)
			w.array(2)
			w.text(p.Name)
			w.text(p.Value)
		}
		w.int(int64(d.KeySlot))
		w.checkLen("disk text", len(d.State), maxDiskText)
		w.text(d.State)
	}
}

// stateV1 reads what follows the version in a map of n entries.
func (r *reader) stateV1(n uint64) (s LedgerState) {
	if n != stateV1Keys && n != stateV1Keys+1 {
		r.fail(CodeLength, "have %d keys, want %d or one more", n, stateV1Keys)
	}
	r.keyV1(keySequence, "sequence", func() { s.Sequence = r.uint() })
	r.keyV1(keyGeneration, "generation", func() { s.Generation = r.uint() })
	s.Quorum = r.quorumV1()
	r.keyV1(keySet, "enrolment set", func() {
		r.tuple(func() { s.SetGeneration = r.uint() }, func() { r.fixed(s.SetDigest[:]) })
	})
	r.keyV1(keyDisks, "disks", func() { s.Disks = r.disksV1() })
	r.keyV1(keyBreakGlass, "break glass", func() { s.BreakGlass = r.bytes(maxBreak) })
	if n == stateV1Keys+1 {
		r.keyV1(keyLRTQ, "older scheme", func() { s.Quorum.LRTQ = r.packageV1() })
	}
	return s
}

func (r *reader) packageV1() *lrtq.Package {
	p := &lrtq.Package{}
	r.tuple(
		func() { r.fixed(p.RackID[:]) },
		func() {
			if e := r.uint(); r.err == nil && e != 0 { // as in every package of that scheme
				r.fail(CodeRange, "epoch: have %d, want 0", e)
			}
		},
		func() { p.Threshold = ident.Threshold(r.uint8()) },
		func() { p.Share.X = r.shareX() },
		func() { p.Share.Y = r.shareY(r.fixed) },
		func() {
			r.each(lrtq.TotalShares, func(i int) {
				var d [32]byte
				r.fixed(d[:])
				if i > 0 {
					r.checkAscending(bytes.Compare(p.Digests[i-1][:], d[:]))
				}
				p.Digests = append(p.Digests, d)
			})
		},
	)
	return p
}

func (r *reader) keyV1(key uint64, name string, read func()) {
	if have := r.uint(); r.err == nil && have != key {
		r.fail(CodeOrder, "have key %d, want %d (%s)", have, key, name)
	}
	r.enter(name)
	read()
	r.leave()
}

func (r *reader) quorumV1() (s quorum.State) {
	r.keyV1(keyConfigs, "configs", func() {
		s.Configs = readMapV1(r, func() (ident.Epoch, *quorum.Configuration) {
			c := r.configuration()
			return c.Epoch, c
		})
	})
	r.keyV1(keyShares, "shares", func() { s.Shares = readMapV1(r, r.shareV1) })
	r.keyV1(keyCommits, "commits", func() {
		s.Commits = readMapV1(r, func() (ident.Epoch, bool) { return r.epoch(), true })
	})
	r.keyV1(keyCertificates, "certificates", func() {
		s.Certificates = readMapV1(r, func() (ident.Epoch, *quorum.Certificate) {
			c := r.certificate()
			return c.Epoch, c
		})
	})
	r.keyV1(keyExpunged, "expunged", func() {
		if !r.isNull() {
			s.Expunged = &quorum.Expunged{}
			r.tuple(func() { s.Expunged.Epoch = r.epoch() }, func() { s.Expunged.From = r.pair() })
		}
	})
	return s
}

func (r *reader) shareV1() (e ident.Epoch, s gfss.Share) {
	r.tuple(
		func() { e = r.epoch() },
		func() { s.X = r.shareX() },
		func() { s.Y = r.shareY(r.fixed) },
	)
	return e, s
}

// readMapV1 reads an array whose elements are strictly ascending by epoch.
func readMapV1[V any](r *reader, element func() (ident.Epoch, V)) map[ident.Epoch]V {
	out := map[ident.Epoch]V{}
	var last ident.Epoch
	r.eachNamed(maxEpochs, func(i int) {
		e, v := element()
		if i > 0 {
			r.checkAscending(cmp.Compare(last, e))
		}
		last = e
		if r.err == nil {
			out[e] = v
		}
	})
	return out
}

func (r *reader) disksV1() (ds []DiskRecord) {
	r.eachNamed(maxDisks, func(i int) {
		var d DiskRecord
		text := func(to *string) func() { return func() { *to = r.text(maxDiskText) } }
		r.tuple(text(&d.ID), text(&d.Backend), text(&d.Vendor), text(&d.Model), text(&d.Serial),
			func() { d.Epoch = r.epoch() },
			func() { d.HeaderPins = r.pinsV1() },
			func() { d.KeySlot = r.slotV1() },
			text(&d.State))
		if i > 0 {
			r.checkAscending(strings.Compare(ds[i-1].ID, d.ID))
		}
		ds = append(ds, d)
	})
	return ds
}

func (r *reader) pinsV1() (ps []Pin) {
	r.each(maxPins, func(int) {
		var p Pin
		r.tuple(func() { p.Name = r.text(maxDiskText) }, func() { p.Value = r.text(maxPinValue) })
		ps = append(ps, p)
	})
	return ps
}

func (r *reader) slotV1() int {
	v := r.int()
	if v < -1<<31 || v >= 1<<31 {
		r.fail(CodeRange, "key slot: have %d, want 32 bits", v)
	}
	return int(v)
}
