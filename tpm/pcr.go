package tpm

import (
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/sledvault/sledvault/vault/reason"
)

const pcrCount = 24

// Selection is the SHA-256 bank's selection of the given PCRs.
func Selection(pcrs []int) (tpm2.TPMLPCRSelection, error) {
	list := make([]uint, 0, len(pcrs))
	for _, p := range pcrs {
		if p < 0 || p >= pcrCount {
			return tpm2.TPMLPCRSelection{}, usage("PCR %d, want 0 to %d", p, pcrCount-1)
		}
		list = append(list, uint(p))
	}
	if len(list) == 0 {
		return tpm2.TPMLPCRSelection{}, usage("no PCR selected")
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(list...)},
	}}, nil
}

// attempts bounds how often a read starts over because a PCR changed in between.
const attempts = 4

// ReadPCRs reads PCRs of the SHA-256 bank, 32 bytes each, in a salted audit session, so the values are the TPM's own.
// All are of one moment. Errors: tpm-pcr-bank if the TPM has no such bank, tpm-answer, tpm-rc.
func (s *Session) ReadPCRs(srk Key, pcrs []int) (map[int][32]byte, error) {
	if _, err := Selection(pcrs); err != nil {
		return nil, err
	}
	sess, closer, err := tpm2.HMACSession(s, tpm2.TPMAlgSHA256, nonceSize, salted(srk), tpm2.Audit())
	if err != nil {
		return nil, fail("read PCRs", err)
	}
	defer func() { _ = closer() }() // a session that stays is flushed at the end
	return s.steadyPCRs(pcrs, sess)
}

// QuotedPCRs reads the PCRs that a quote of the same turn covers. Without a session, so the values are only as good as the
// quote's digest of them: whoever judges the quote compares.
func (s *Session) QuotedPCRs(pcrs []int) (map[int][32]byte, error) {
	if _, err := Selection(pcrs); err != nil {
		return nil, err
	}
	return s.steadyPCRs(pcrs)
}

// steadyPCRs reads until nothing changes in between, so that all values are of one moment.
func (s *Session) steadyPCRs(pcrs []int, sess ...tpm2.Session) (map[int][32]byte, error) {
	for range attempts {
		values, still, err := s.readPCRs(pcrs, sess...)
		if err != nil || still {
			return values, err
		}
	}
	return nil, reason.Later(CodeBusy, "something extends PCRs all the time: retry", "tpm: read PCRs: values kept changing")
}

// readPCRs reads all, up to eight at a time, and reports whether the TPM's update counter stood still.
func (s *Session) readPCRs(pcrs []int, sess ...tpm2.Session) (values map[int][32]byte, still bool, err error) {
	left := slices.Compact(slices.Sorted(slices.Values(pcrs)))
	values = make(map[int][32]byte, len(left))
	still = true
	var counter uint32
	for first := true; len(left) > 0; first = false {
		sel, err := Selection(left)
		if err != nil {
			return nil, false, err
		}
		rsp, err := run(s, "read PCRs", tpm2.PCRRead{PCRSelectionIn: sel}, sess...)
		if err != nil {
			return nil, false, err
		}
		if !first && rsp.PCRUpdateCounter != counter {
			still = false
		}
		counter = rsp.PCRUpdateCounter
		got, err := pcrAnswer(rsp, left)
		if err != nil {
			return nil, false, err
		}
		maps.Copy(values, got)
		left = slices.DeleteFunc(left, func(p int) bool { _, ok := got[p]; return ok })
	}
	return values, still, nil
}

// pcrAnswer pairs the digests with the selection that came back: ascending, and part of what was asked.
func pcrAnswer(rsp *tpm2.PCRReadResponse, asked []int) (map[int][32]byte, error) {
	var selected []int
	for _, sel := range rsp.PCRSelectionOut.PCRSelections {
		if sel.Hash != tpm2.TPMAlgSHA256 {
			continue
		}
		for i := range min(8*len(sel.PCRSelect), pcrCount) {
			if sel.PCRSelect[i/8]&(1<<(i%8)) != 0 {
				selected = append(selected, i)
			}
		}
	}
	if len(selected) == 0 || len(selected) != len(rsp.PCRValues.Digests) {
		return nil, reason.New(CodeBank, "switch on the SHA-256 bank in the firmware's TPM settings",
			"tpm: read PCRs: have %d values for %d of PCRs %v", len(rsp.PCRValues.Digests), len(selected), asked)
	}
	got := make(map[int][32]byte, len(selected))
	for i, p := range selected {
		v := rsp.PCRValues.Digests[i].Buffer
		if len(v) != 32 || !slices.Contains(asked, p) {
			return nil, reason.New(CodeAnswer, hintAnswer, "tpm: read PCRs: PCR %d of %d bytes was not asked for", p, len(v))
		}
		got[p] = [32]byte(v)
	}
	return got, nil
}

// ExtendPCR extends one PCR of the SHA-256 bank, as firmware does. For simulated firmware, fences and tests.
func (s *Session) ExtendPCR(pcr int, digest [32]byte) error {
	if pcr < 0 || pcr >= pcrCount {
		return usage("PCR %d, want 0 to %d", pcr, pcrCount-1)
	}
	_, err := run(s, "extend PCR", tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	})
	return err
}
