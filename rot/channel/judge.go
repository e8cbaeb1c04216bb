package channel

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/enroll"
)

// relaxPrefix marks the capabilities that name a relaxation. A sled with a relaxation is accepted only by sleds that
// have it too.
const relaxPrefix = "relax/"

// RelaxSoftwareTPM names the relaxation that lets sleds with software TPMs take part.
const RelaxSoftwareTPM = "software-tpm"

// softwareTPM tells by the manufacturer that the enrolment record names: swtpm, libtpms, reference code, simulators. The
// record is signed, so a sled cannot hide behind what it announces.
func softwareTPM(r *enroll.Record) bool {
	if r.Firmware == nil {
		return false
	}
	switch r.Firmware.Manufacturer {
	case "IBM", "XYZ", "xCG", "SIMU", "QEMU", "":
		return true
	}
	return false
}

// Expect turns a record of a set into what package rot appraises by. The selection is that of the quote, nil for the
// default. The controller judges sleds by the same function.
func Expect(set *enroll.Set, r *enroll.Record, selection []int) (rot.Expectation, error) {
	x := rot.Expectation{
		Baseboard: r.Baseboard, Kind: r.Kind, EKName: r.EKName, AKName: r.AKName, CounterName: r.CounterName,
		Selection: selection, PCRs: r.PCRs, ResetCount: r.ResetCount, MinSequence: r.Counter,
	}
	if r.Firmware != nil {
		x.MinFirmware = r.Firmware.Minimum
	}
	if r.Manifest == "" {
		return x, nil
	}
	m, ok := set.FindManifest(r.Manifest)
	if !ok {
		return x, refuse(rot.CodeManifest, "record of %v: manifest %.64q is not in the set", r.Baseboard, r.Manifest)
	}
	manifest, err := rot.DecodeManifest(m.Rules)
	if err != nil {
		return x, err
	}
	manifest.MinRelease = max(manifest.MinRelease, m.MinRelease)
	x.Manifest = manifest
	return x, nil
}

// judged is a peer whose evidence this side accepts.
type judged struct {
	verdict *rot.Verdict
	removed bool
}

// judge appraises evidence by this sled's present set, and remembers what was seen.
func (c *Config) judge(ev []byte, req rot.Request) (*judged, error) {
	e, err := rot.DecodeEvidence(ev)
	if err != nil {
		return nil, err
	}
	if e.Baseboard == c.Self {
		return nil, refuse(CodeSelf, "evidence refused: the peer claims to be this sled, %v", c.Self)
	}
	set := c.Set()
	if set == nil {
		return nil, refuse(CodeNoSet, "no enrolment set")
	}
	r, ok := set.Find(e.Baseboard)
	if !ok {
		return nil, refuse(CodeUnknownSled, "evidence refused: %v is not in the enrolment set of generation %d", e.Baseboard, set.Generation)
	}
	if softwareTPM(r) && !slices.Contains(c.Relaxations, RelaxSoftwareTPM) {
		return nil, refuse(CodeRelaxation, "evidence refused: %v was enrolled with a software TPM, this sled is not relaxed to %s", r.Baseboard, RelaxSoftwareTPM)
	}
	x, err := Expect(set, r, c.Selection)
	if err != nil {
		return nil, err
	}
	v, err := e.Appraise(req, x, c.Seen(r.EKName))
	if err != nil {
		return nil, err
	}
	c.Remember(r.EKName, v.Seen)
	return &judged{v, !r.Live()}, nil
}

// CheckSelf makes evidence and judges it by this sled's own record, as its peers would: what they are going to refuse is
// then known before they do. It also brings the counter's certificate out of the way of the first handshake.
func (c *Config) CheckSelf(ctx context.Context) (*rot.Verdict, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	set := c.Set()
	if set == nil {
		return nil, refuse(CodeNoSet, "no enrolment set")
	}
	r, ok := set.Find(c.Self)
	if !ok {
		return nil, refuse(CodeUnknownSled, "this sled, %v, is not in the enrolment set of generation %d", c.Self, set.Generation)
	}
	x, err := Expect(set, r, c.Selection)
	if err != nil {
		return nil, err
	}
	req := rot.Request{Role: rot.RoleUnderlay, ProverSPKI: c.Identity.SPKI(), VerifierSPKI: c.Identity.SPKI()}
	if _, err := rand.Read(req.Nonce[:]); err != nil {
		return nil, refuseBecause(err, CodeConfig, "nonce")
	}
	ev, err := c.Prover.Evidence(ctx, req)
	if err != nil {
		return nil, err
	}
	return rot.Appraise(ev, req, x, rot.Seen{})
}

// checkHello compares what both sides announced, once the evidence has made the peer's announcement worth believing.
func checkHello(mine, theirs hello) error {
	if mine.SetGeneration == theirs.SetGeneration && mine.SetDigest != theirs.SetDigest {
		return refuse(CodeSetFork, "enrolment set of generation %d: the peer holds another one", mine.SetGeneration)
	}
	for _, c := range theirs.Capabilities {
		if strings.HasPrefix(c, relaxPrefix) && !slices.Contains(mine.Capabilities, c) {
			return refuse(CodeRelaxation, "evidence refused: the peer runs with %s, this sled does not", c)
		}
	}
	return nil
}
