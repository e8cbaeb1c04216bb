package replay

import (
	"io"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/secret"
)

// stored is what the sleds of a new rack begin with: nothing, or what the older scheme left them.
func (r *Rack) stored(e InitialSetup) (map[ident.Baseboard]quorum.State, error) {
	if !e.LRTQ {
		return nil, nil
	}
	k := e.Change.Threshold
	if int(k) < lrtq.MinThreshold || int(k) > len(e.Change.Members) {
		return nil, impossible("older scheme with threshold %d and %d members", k, len(e.Change.Members))
	}
	packages, err := packages(r.random, ident.RackID{}, k, len(e.Change.Members))
	if err != nil {
		return nil, err
	}
	out := map[ident.Baseboard]quorum.State{}
	for i, m := range e.Change.Members {
		if _, err := r.find(m); err != nil {
			return nil, err
		}
		out[m] = quorum.State{LRTQ: packages[i]}
	}
	return out, nil
}

// packages makes a rack of the older scheme: a secret, 255 shares of it, and a package for each of n members. The secret
// and the shares that nobody gets are gone afterwards.
func packages(random io.Reader, rack ident.RackID, k ident.Threshold, n int) ([]*lrtq.Package, error) {
	sec, err := lrtq.NewSecret(secret.Heap{}, random)
	if err != nil {
		return nil, err
	}
	defer sec.Destroy()
	shares, err := lrtq.Split(secret.Heap{}, random, sec, lrtq.TotalShares, int(k))
	if err != nil {
		return nil, err
	}
	var digests [][lrtq.Size]byte
	for _, s := range shares {
		d, err := s.Digest()
		if err != nil {
			return nil, err
		}
		digests = append(digests, d)
	}
	slices.SortFunc(digests, func(a, b [lrtq.Size]byte) int { return slices.Compare(a[:], b[:]) })
	var out []*lrtq.Package
	for i, s := range shares {
		if i >= n {
			s.Destroy()
			continue
		}
		out = append(out, &lrtq.Package{RackID: rack, Threshold: k, Share: s, Digests: digests})
	}
	return out, nil
}
