package rottest_test

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/rottest"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/tpm/tpmtest"
	"github.com/sledvault/sledvault/vault/ident"
)

func TestContractFake(t *testing.T) {
	t.Parallel()
	rottest.Run(t, func(testing.TB) rottest.Device { return rottest.NewTPM("contract") })
}

func TestContractSwtpm(t *testing.T) {
	t.Parallel()
	rottest.Run(t, func(tb testing.TB) rottest.Device { tb.Helper(); return openSwtpm(tb) })
}

// swtpmDevice is a swtpm with a counter.
type swtpmDevice struct {
	dev     *tpmtest.TPM
	tpm     *tpm.TPM
	counter tpm.Counter
	sign    tpm.Signer
	ak      []byte
	names   [2][]byte // EK, AK
	log     []byte
}

func openSwtpm(tb testing.TB) *swtpmDevice {
	tb.Helper()
	d := &swtpmDevice{dev: tpmtest.New(tb)}
	d.tpm = d.dev.Open()
	pub, sign := tpmtest.NewKey(tb)
	d.sign = sign
	tpmtest.Do(tb, d.tpm, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		d.counter, err = s.DefineCounter(srk, 0x01805ed0, pub)
		if err != nil {
			return err
		}
		ek, err := s.EK(nil)
		if err != nil {
			return err
		}
		d.names[0] = bytes.Clone(ek.Name.Buffer)
		return nil
	})
	tpmtest.Do(tb, d.tpm, func(s *tpm.Session) error {
		ak, err := s.AK(nil)
		d.ak, d.names[1] = ak.Marshal(), bytes.Clone(ak.Name.Buffer)
		return err
	})
	return d
}

func (d *swtpmDevice) AKPublic() []byte                         { return d.ak }
func (d *swtpmDevice) EKName() []byte                           { return d.names[0] }
func (d *swtpmDevice) AKName() []byte                           { return d.names[1] }
func (d *swtpmDevice) CounterName() []byte                      { return d.counter.Name }
func (d *swtpmDevice) EventLog(context.Context) ([]byte, error) { return d.log, nil }

func (d *swtpmDevice) Quote(ctx context.Context, extra [32]byte, pcrs []int) (q rot.Quoted, err error) {
	err = d.tpm.Do(ctx, func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		values, err := s.ReadPCRs(srk, pcrs)
		if err != nil {
			return err
		}
		for _, p := range pcrs {
			q.PCRs = append(q.PCRs, values[p])
		}
		ak, err := s.AK(d.names[1])
		if err != nil {
			return err
		}
		q.Attest, q.Signature, err = s.Quote(ak, extra, pcrs)
		return err
	})
	return q, err
}

func (d *swtpmDevice) CertifyCounter(ctx context.Context, extra [32]byte) (attest, sig []byte, err error) {
	err = d.tpm.Do(ctx, func(s *tpm.Session) error {
		ak, err := s.AK(d.names[1])
		if err != nil {
			return err
		}
		attest, sig, err = s.CertifyCounter(ak, d.counter, extra)
		return err
	})
	return attest, sig, err
}

func (d *swtpmDevice) Boot(o firmware.Options) error {
	d.dev.PowerCycle()
	return d.tpm.Do(context.Background(), func(s *tpm.Session) (err error) {
		d.log, err = firmware.Boot(o, s.ExtendPCR)
		return err
	})
}

func (d *swtpmDevice) ExtendPCR(pcr int, digest [32]byte) error {
	return d.tpm.Do(context.Background(), func(s *tpm.Session) error { return s.ExtendPCR(pcr, digest) })
}

func (d *swtpmDevice) Advance() (value uint64, err error) {
	from, err := d.Value()
	if err != nil {
		return 0, err
	}
	err = d.tpm.Do(context.Background(), func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		value, err = s.Increment(srk, d.counter, from, d.sign)
		return err
	})
	return value, err
}

func (d *swtpmDevice) Value() (value uint64, err error) {
	err = d.tpm.Do(context.Background(), func(s *tpm.Session) error {
		srk, err := s.SRK(nil)
		if err != nil {
			return err
		}
		value, err = s.ReadCounter(srk, d.counter)
		return err
	})
	return value, err
}

// BenchmarkEvidence on swtpm: what one peer costs, and 31 at once.
func BenchmarkEvidence(b *testing.B) {
	for name, peers := range map[string]int{"alone": 1, "batch-31": 31} {
		b.Run(name, func(b *testing.B) {
			d := openSwtpm(b)
			if err := d.Boot(firmware.Options{}); err != nil {
				b.Fatal(err)
			}
			value, err := d.Value()
			if err != nil {
				b.Fatal(err)
			}
			p, err := rot.NewProver(rot.ProverConfig{
				Attestor: d, Baseboard: ident.Baseboard{Part: "p", Serial: "s"},
				Facts: func() rot.Facts { return rot.Facts{LedgerSequence: value} },
			})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(p.Close)
			for b.Loop() {
				var wg sync.WaitGroup
				for i := range peers {
					wg.Go(func() {
						if _, err := p.Evidence(b.Context(), rot.Request{Role: rot.RoleDialer, Nonce: [32]byte{byte(i)}}); err != nil {
							b.Error(err)
						}
					})
				}
				wg.Wait()
			}
		})
	}
}
