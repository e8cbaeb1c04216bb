package quorumtest

import (
	"errors"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
)

// forgeRequest has somebody without the operator's key make a request at a sled, or somebody with it at the wrong sled. All
// must be refused, and change nothing.
func (s *Sim) forgeRequest(a Action) {
	sled := s.sled(a.A)
	if d := s.oracle.last(); d != nil && sled.Up() && !d.config.Has(sled.ID) && a.C%2 == 0 {
		s.fault(FaultForgedRequest)
		s.intrude(sled, d)
		return
	}
	in, rule := s.forgedRequest(sled, a)
	if in == nil || !sled.Up() {
		return
	}
	s.fault(FaultForgedRequest)
	before := sled.Disk
	fx, err := s.do(sled, in)
	if errors.Is(err, ErrDown) {
		return
	}
	if s.bad(rule, sled, err != nil && len(fx.Send) == 0 && kept(&sled.Disk, &before)) {
		s.broken(rule, "%s accepts a forged %T: %+v", sled.ID, in, in)
	}
}

func (s *Sim) forgedRequest(sled *Sled, a Action) (quorum.Input, Invariant) {
	latest, _ := sled.Disk.LatestCommitted()
	d := s.someDecision(a.C)
	switch a.B % 12 {
	case 0, 1, 2:
		return s.forgedReconfigure(sled, latest, a), P8
	case 3: // an upgrade that nobody granted
		r := s.anyRequest(sled, latest)
		g := r.Grant
		g.LRTQUpgrade, g.LastCommitted = true, 0
		return quorum.UpgradeLRTQ{RackID: r.RackID, Epoch: max(r.Epoch, 2), Members: r.Members, Threshold: r.Threshold, Grant: g}, P8
	case 4: // an authority that believes everything may not come in
		return quorum.SetAuthority{}, P8
	case 5, 6: // what is prepared here and not committed, without or with a wrong certificate
		for _, e := range quorum.Epochs(sled.Disk.Shares) {
			if e > latest {
				return quorum.Commit{RackID: RackID(), Epoch: e, Certificate: s.wrongCertificate(sled.Disk.Configs[e], d, a)}, P9
			}
		}
	case 7: // a configuration of our own
		c, _ := Forge(uint64(a.C), sled.ID, s.ctl.disk.Highest+1000, 2, nil, s.ids()...)
		return quorum.PrepareAndCommit{Config: c, Certificate: s.wrongCertificate(c, d, a)}, P9
	case 8: // a true certificate for something else
		if d != nil {
			other := *d.config
			other.Threshold = 2 + other.Threshold%ident.Threshold(len(other.Members)-2)
			if other.Threshold != d.config.Threshold {
				return quorum.PrepareAndCommit{Config: &other, Certificate: d.cert}, P9
			}
		}
	case 9, 10, 11: // a true grant for a sled that may not use it
		return s.misdirected(sled, latest, a), P8
	}
	return nil, P8
}

// misdirected is a request with a true grant that the sled's state forbids: it is out, or behind, or computes its share, or
// the epoch is used.
func (s *Sim) misdirected(sled *Sled, latest ident.Epoch, a Action) quorum.Input {
	ch := &rack.Change{Kind: rack.Rotate, Epoch: s.ctl.disk.Highest + 1000, LastCommitted: latest, Coordinator: sled.ID, Members: s.ids(), Threshold: 2}
	if c := sled.Disk.LatestConfig(); c != nil && a.C%3 == 0 {
		ch.Epoch = c.Epoch
	}
	if a.C%3 == 1 && ch.LastCommitted > 0 {
		ch.LastCommitted--
	}
	if !sled.Up() || s.mayCoordinate(sled, ch) {
		return nil
	}
	return s.request(ch)
}

// intrude hands a decided configuration to a sled that it leaves out. That is no error, and has no effect.
func (s *Sim) intrude(sled *Sled, d *decision) {
	before := sled.Disk
	fx, err := s.do(sled, quorum.PrepareAndCommit{Config: d.config, Certificate: d.cert})
	if errors.Is(err, ErrDown) {
		return
	}
	if s.bad(P9, sled, len(fx.Send) == 0 && kept(&sled.Disk, &before)) {
		s.broken(P9, "%s takes part in epoch %d, which leaves it out", sled.ID, d.epoch)
	}
}

func (s *Sim) ids() (out []ident.Baseboard) {
	for _, sled := range s.Sleds {
		out = append(out, sled.ID)
	}
	return out
}

// anyRequest is one that would be welcome, if only it were signed.
func (s *Sim) anyRequest(sled *Sled, latest ident.Epoch) quorum.Reconfigure {
	r := s.Request(sled, s.ctl.disk.Highest+1000, latest, 2, s.Sleds...)
	r.Grant.Signature[a0(r.Epoch)] ^= 1
	return r
}

func a0(e ident.Epoch) int { return int(e) % len(quorum.Signature{}) % 32 } // the stand-in for a signature has 32 bytes

func (s *Sim) forgedReconfigure(sled *Sled, latest ident.Epoch, a Action) quorum.Input {
	r := s.anyRequest(sled, latest)
	switch ch := s.ctl.disk.Change; {
	case a.B%12 == 1:
		r.Grant = nil
	case a.B%12 == 2 && ch != nil && ch.Coordinator != sled.ID: // the grant of another coordinator
		r.Grant = s.grant(&rack.Change{
			Kind: ch.Kind, Epoch: r.Epoch, Coordinator: ch.Coordinator, Members: r.Members, Threshold: r.Threshold, LastCommitted: latest,
		})
	}
	return r
}

// wrongCertificate does not certify a configuration.
func (s *Sim) wrongCertificate(c *quorum.Configuration, d *decision, a Action) *quorum.Certificate {
	switch {
	case a.C%4 == 0:
		return nil
	case a.C%4 == 1 && d != nil && d.epoch != c.Epoch:
		return d.cert
	}
	cert := s.Auth.Certify(c)
	cert.Signature[int(a.C>>2)%32] ^= 1
	return cert
}
