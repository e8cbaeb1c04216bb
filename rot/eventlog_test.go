package rot_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/rot"
)

// bootLog measures one start in software: the log, and what the registers of the default selection hold.
func bootLog(tb testing.TB, o firmware.Options) (log []byte, quoted map[int][32]byte) {
	tb.Helper()
	var regs [24][32]byte
	regs[0][31] = o.Locality
	log, err := firmware.Boot(o, func(pcr int, digest [32]byte) error {
		regs[pcr] = sha256.Sum256(append(regs[pcr][:], digest[:]...))
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	quoted = map[int][32]byte{}
	for _, p := range rot.DefaultPCRs() {
		quoted[p] = regs[p]
	}
	return log, quoted
}

func parse(tb testing.TB, log []byte) *rot.EventLog {
	tb.Helper()
	l, err := rot.ParseEventLog(log)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func TestEventLogExplains(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]firmware.Options{
		"plain": {}, "locality 3": {Locality: 3}, "two banks": {SHA1: true}, "no secure boot": {SecureBootOff: true},
	} {
		log, quoted := bootLog(t, o)
		l := parse(t, log)
		if err := l.Explains(quoted, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s, err := l.SecureBoot()
		if err != nil || s.Enabled == o.SecureBootOff || s.PK != sha256.Sum256([]byte("platform key")) || s.Enabled != (s.Authorities == 1) {
			t.Errorf("%s: secure boot: have %+v, %v", name, s, err)
		}
	}
	log, quoted := bootLog(t, firmware.Options{Locality: 3})
	l := parse(t, log)
	l.Locality = 0
	wantCode(t, l.Explains(quoted, nil), rot.CodeEventLog)
}

// TestEventLogFrozen: a log written by hand from the TCG profile, with its replay, so that writer and reader of this
// project cannot agree on a mistake.
func TestEventLogFrozen(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/eventlog.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Name   string           `json:"name"`
		Log    hexBytes         `json:"log"`
		PCRs   map[int]hexBytes `json:"pcrs"`
		Refuse string           `json:"refuse"` // part of the error; empty if the log parses
		Secure *bool            `json:"secure_boot"`
	}
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			l, err := rot.ParseEventLog(v.Log)
			if v.Refuse != "" {
				wantCode(t, err, rot.CodeEventLog)
				if !strings.Contains(err.Error(), v.Refuse) {
					t.Errorf("have %v, want %q", err, v.Refuse)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			have := l.Replay()
			if len(have) != len(v.PCRs) {
				t.Errorf("have %d registers, want %d", len(have), len(v.PCRs))
			}
			for pcr, want := range v.PCRs {
				if got := have[pcr]; !bytes.Equal(got[:], want) {
					t.Errorf("PCR %d: have %x, want %x", pcr, got, want)
				}
			}
			if v.Secure != nil {
				if s, err := l.SecureBoot(); err != nil || s.Enabled != *v.Secure {
					t.Errorf("secure boot: have %+v, %v", s, err)
				}
			}
		})
	}
}

func TestManifest(t *testing.T) {
	t.Parallel()
	log, _ := bootLog(t, firmware.Options{})
	pcrs := []int{0, 4, 7, 11, 12}
	m := rot.LearnManifest("release-1", parse(t, log), pcrs, 5)
	enc, err := rot.EncodeManifest(m)
	if err != nil {
		t.Fatal(err)
	}
	m, err = rot.DecodeManifest(enc)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Appraise(parse(t, log)); err != nil {
		t.Fatalf("the machine it was learned from: %v", err)
	}
	for name, o := range map[string]firmware.Options{
		"image": {Image: "x"}, "command line": {CommandLine: "init=/bin/sh"}, "firmware": {Version: "x"}, "secure boot off": {SecureBootOff: true},
		"type": {Fault: firmware.WrongType},
	} {
		log, _ := bootLog(t, o)
		if err := m.Appraise(parse(t, log)); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			wantCode(t, err, rot.CodeManifest)
		}
	}
	log2, _ := bootLog(t, firmware.Options{MachineKeys: "of the site", Config: "more"})
	if err := m.Appraise(parse(t, log2)); err != nil {
		t.Errorf("registers that no rule governs: %v", err)
	}
	for i := range m.Rules {
		m.Rules[i].MinVersion = 6
	}
	wantCode(t, m.Appraise(parse(t, log)), rot.CodeManifest)
}

// TestTwoReleases: during an update both releases pass; raising the minimum release ends the older one.
func TestTwoReleases(t *testing.T) {
	t.Parallel()
	older, _ := bootLog(t, firmware.Options{Image: "1"})
	newer, _ := bootLog(t, firmware.Options{Image: "2"})
	m := rot.LearnManifest("both", parse(t, older), []int{4, 11}, 1)
	n := rot.LearnManifest("both", parse(t, newer), []int{4, 11}, 2)
	for i := range m.Rules {
		for j := range m.Rules[i].Allowed {
			m.Rules[i].Allowed[j].Release = 1
		}
		for _, a := range n.Rules[i].Allowed {
			a.Release = 2
			m.Rules[i].Allowed = append(m.Rules[i].Allowed, a)
		}
	}
	for _, log := range [][]byte{older, newer} {
		if err := m.Appraise(parse(t, log)); err != nil {
			t.Error(err)
		}
	}
	m.MinRelease = 2
	wantCode(t, m.Appraise(parse(t, older)), rot.CodeManifest)
	if err := m.Appraise(parse(t, newer)); err != nil {
		t.Error(err)
	}
}

func TestManifestRefuses(t *testing.T) {
	t.Parallel()
	good := rot.Rule{Component: "c", PCR: 4, Type: rot.EvIPL, Allowed: []rot.Allowed{{}}}
	for name, m := range map[string]rot.Manifest{
		"no rules":       {ID: "m"},
		"no id":          {Rules: []rot.Rule{good}},
		"allows nothing": {ID: "m", Rules: []rot.Rule{{Component: "c", PCR: 4, Type: rot.EvIPL}}},
		"no register":    {ID: "m", Rules: []rot.Rule{{Component: "c", PCR: 24, Type: rot.EvIPL, Optional: true}}},
		"unknown type":   {ID: "m", Rules: []rot.Rule{{Component: "c", PCR: 4, Type: 0x77, Optional: true}}},
		"no component":   {ID: "m", Rules: []rot.Rule{{PCR: 4, Type: rot.EvIPL, Optional: true}}},
	} {
		if err := m.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := rot.DecodeManifest([]byte{0xa0}); err == nil {
		t.Error("empty map accepted")
	}
}

// hexBytes reads hexadecimal text from JSON.
type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	out, err := hex.DecodeString(s)
	*h = out
	return err
}
