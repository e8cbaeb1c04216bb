package vault

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"slices"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
)

// maxEventLog bounds the firmware's event log (evidence.md).
const maxEventLog = 1 << 20

// attestor lets package rot make evidence with this sled's TPM.
type attestor struct {
	tpm     *tpm.TPM
	record  *enroll.Record // whose keys and counter to use
	counter tpm.Counter
	logPath string
}

// AKPublic is the attestation key's TPMT_PUBLIC.
func (a *attestor) AKPublic() []byte { return a.record.AKPublic }

// Quote signs the PCRs over extra and returns their values in ascending order.
func (a *attestor) Quote(ctx context.Context, extra [32]byte, pcrs []int) (q rot.Quoted, err error) {
	err = a.tpm.Do(ctx, func(s *tpm.Session) error {
		values, err := s.QuotedPCRs(pcrs)
		if err != nil {
			return err
		}
		ak, err := s.AK(a.record.AKName)
		if err != nil {
			return err
		}
		if q.Attest, q.Signature, err = s.Quote(ak, extra, pcrs); err != nil {
			return err
		}
		for _, p := range slices.Sorted(slices.Values(pcrs)) {
			q.PCRs = append(q.PCRs, values[p])
		}
		return nil
	})
	return q, err
}

// CertifyCounter signs the rollback counter over extra.
func (a *attestor) CertifyCounter(ctx context.Context, extra [32]byte) (attest, sig []byte, err error) {
	err = a.tpm.Do(ctx, func(s *tpm.Session) error {
		ak, err := s.AK(a.record.AKName)
		if err != nil {
			return err
		}
		attest, sig, err = s.CertifyCounter(ak, a.counter, extra)
		return err
	})
	return attest, sig, err
}

// EventLog reads the firmware's measurement log.
func (a *attestor) EventLog(context.Context) ([]byte, error) { return readEventLog(a.logPath) }

func readEventLog(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, reason.Wrap(err, "event-log", "check [tpm] event_log; on Linux securityfs must be mounted", "vault: read the event log")
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, maxEventLog+1)
	n := 0
	for n < len(b) { // the kernel's file reports no size
		m, err := f.Read(b[n:])
		n += m
		if err != nil || m == 0 {
			break
		}
	}
	if n > maxEventLog {
		return nil, reason.New("event-log", "the log is not a firmware log", "vault: the event log has more than 1 MiB")
	}
	return b[:n:n], nil
}

// setTPM reads who the TPM is and publishes it.
func (d *Daemon) setTPM(ctx context.Context, t *tpm.TPM) error {
	var id api.TPMIdentity
	var ekName []byte
	err := t.Do(ctx, func(s *tpm.Session) error {
		ek, err := s.EK(nil)
		if err != nil {
			return err
		}
		ekName = ek.Name.Buffer
		id.EKName = hex.EncodeToString(ekName)
		id.EKCertificate, err = s.EKCertificate()
		return err
	})
	if err != nil {
		_ = t.Close()
		return retry(err)
	}
	p := t.Properties()
	id.Manufacturer, id.Firmware, id.Software = p.Manufacturer, fmt.Sprintf("%016x", p.Firmware), t.Software()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tpm, d.tpmID, d.ek = t, id, ekName
	return nil
}

// TPMIdentity names the keys of the sled's TPM.
func (d *Daemon) TPMIdentity(context.Context) (api.TPMIdentity, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.tpm == nil {
		return api.TPMIdentity{}, d.notStarted()
	}
	return d.tpmID, nil
}

// SPIdentity asks the service processor again.
func (d *Daemon) SPIdentity(ctx context.Context) (api.SPIdentity, error) {
	d.mu.RLock()
	c := d.sp
	d.mu.RUnlock()
	if c == nil {
		return api.SPIdentity{}, d.notStarted()
	}
	id, err := c.Identity(ctx)
	return api.SPIdentity{Baseboard: id.Baseboard, Revision: id.Revision}, err
}
