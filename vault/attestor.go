package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
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

// maxEventLog bounds the firmware's event log (evidence.md); most logs are no longer than usualEventLog. It is read for every
// quote, so the buffer counts.
const (
	maxEventLog   = 1 << 20
	usualEventLog = 32 << 10
)

// attestor lets package rot make evidence with this sled's TPM.
type attestor struct {
	tpm     *tpm.TPM
	record  *enroll.Record // whose keys and counter to use
	counter tpm.Counter
	logPath string

	known map[int][32]byte // registers as last read; calls never overlap
}

// AKPublic is the attestation key's TPMT_PUBLIC.
func (a *attestor) AKPublic() []byte { return a.record.AKPublic }

// Quote signs the PCRs over extra and returns their values in ascending order. They are read again only when the quote says
// that they have changed: two commands less for each of the quotes that a rack's boot takes.
func (a *attestor) Quote(ctx context.Context, extra [32]byte, pcrs []int) (q rot.Quoted, err error) {
	err = a.tpm.Do(ctx, func(s *tpm.Session) error {
		ak, err := s.AK(a.record.AKName)
		if err != nil {
			return err
		}
		if q.Attest, q.Signature, err = s.Quote(ak, extra, pcrs); err != nil {
			return err
		}
		if q.PCRs = a.values(pcrs); quotes(q.Attest, q.PCRs) {
			return nil
		}
		if a.known, err = s.QuotedPCRs(pcrs); err != nil {
			return err
		}
		q.PCRs = a.values(pcrs)
		return nil
	})
	return q, err
}

// values are the known values of registers, in ascending order.
func (a *attestor) values(pcrs []int) (out [][32]byte) {
	for _, p := range slices.Sorted(slices.Values(pcrs)) {
		out = append(out, a.known[p])
	}
	return out
}

// quotes reports whether a quote, which ends with the digest of its registers, is over these values. Whoever uses the quote
// verifies it in full.
func quotes(attest []byte, values [][32]byte) bool {
	h := sha256.New()
	for _, v := range values {
		h.Write(v[:])
	}
	return bytes.HasSuffix(attest, h.Sum(nil))
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
	b := make([]byte, 0, usualEventLog)
	for len(b) <= maxEventLog { // the kernel's file reports no size
		b = slices.Grow(b, 1)
		m, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+m]
		if err != nil || m == 0 {
			break
		}
	}
	if len(b) > maxEventLog {
		return nil, reason.New("event-log", "the log is not a firmware log", "vault: the event log has more than 1 MiB")
	}
	return slices.Clip(b), nil
}

// setTPM publishes the TPM and what it says about itself.
func (d *Daemon) setTPM(t *tpm.TPM) {
	p := t.Properties()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tpm = t
	d.tpmID = api.TPMIdentity{Manufacturer: p.Manufacturer, Firmware: fmt.Sprintf("%016x", p.Firmware), Software: t.Software()}
}

// TPMIdentity names the endorsement key of the sled's TPM. It is made when somebody first asks: a boot needs it only to say
// whose a foreign TPM is.
func (d *Daemon) TPMIdentity(ctx context.Context) (api.TPMIdentity, error) {
	d.mu.RLock()
	t, id := d.tpm, d.tpmID
	d.mu.RUnlock()
	if t == nil {
		return api.TPMIdentity{}, d.notStarted()
	}
	if id.EKName != "" {
		return id, nil
	}
	err := t.Do(ctx, func(s *tpm.Session) error {
		ek, err := s.EK(nil)
		if err != nil {
			return err
		}
		id.EKName = hex.EncodeToString(ek.Name.Buffer)
		id.EKCertificate, err = s.EKCertificate()
		return err
	})
	if err != nil {
		return api.TPMIdentity{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tpmID = id
	return id, nil
}

// nameTPM has the status show the endorsement key, once nothing waits for the TPM.
func (d *Daemon) nameTPM(ctx context.Context) {
	if _, err := d.TPMIdentity(ctx); err != nil && ctx.Err() == nil {
		d.reasons.CountError(api.CodeInternal, "", err)
		d.log.Warn("TPM", "err", err, "hint", reason.HintOf(err))
	}
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
