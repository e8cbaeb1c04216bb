package firmware_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
)

// measured is a start: its log and its registers.
type measured struct {
	log  []byte
	pcrs [24][32]byte
}

func boot(tb testing.TB, o firmware.Options) (m measured) {
	tb.Helper()
	log, err := firmware.Boot(o, func(pcr int, digest [32]byte) error {
		m.pcrs[pcr] = sha256.Sum256(append(m.pcrs[pcr][:], digest[:]...))
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	m.log = log
	return m
}

func TestDeterministic(t *testing.T) {
	t.Parallel()
	a, b := boot(t, firmware.Options{}), boot(t, firmware.Options{})
	if !bytes.Equal(a.log, b.log) || a.pcrs != b.pcrs {
		t.Error("equal options give different starts")
	}
	for _, pcr := range []int{0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14} {
		if a.pcrs[pcr] == [32]byte{} {
			t.Errorf("PCR %d is not extended", pcr)
		}
	}
	for _, pcr := range []int{8, 9, 10, 15, 16, 23} {
		if a.pcrs[pcr] != [32]byte{} {
			t.Errorf("PCR %d is extended", pcr)
		}
	}
}

// TestOptions: each option changes exactly the registers that depend on it.
func TestOptions(t *testing.T) {
	t.Parallel()
	base := boot(t, firmware.Options{})
	for name, row := range map[string]struct {
		o    firmware.Options
		pcrs []int
	}{
		"version":      {firmware.Options{Version: "2"}, []int{0}},
		"image":        {firmware.Options{Image: "2"}, []int{4, 11}},
		"command line": {firmware.Options{CommandLine: "debug"}, []int{12}},
		"config":       {firmware.Options{Config: "2"}, []int{13}},
		"keys":         {firmware.Options{MachineKeys: "2"}, []int{14}},
		"secure boot":  {firmware.Options{SecureBootOff: true}, []int{7}},
		"second bank":  {firmware.Options{SHA1: true}, nil},
	} {
		m := boot(t, row.o)
		var changed []int
		for pcr := range m.pcrs {
			if m.pcrs[pcr] != base.pcrs[pcr] {
				changed = append(changed, pcr)
			}
		}
		if !slices.Equal(changed, row.pcrs) {
			t.Errorf("%s: have changes in %v, want %v", name, changed, row.pcrs)
		}
		if bytes.Equal(m.log, base.log) {
			t.Errorf("%s: the log is the same", name)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	if _, err := firmware.Boot(firmware.Options{Locality: 2}, nil); !errors.Is(err, firmware.ErrOptions) {
		t.Errorf("have %v", err)
	}
	dead, calls := errors.New("dead"), 0
	_, err := firmware.Boot(firmware.Options{}, func(int, [32]byte) error { calls++; return dead })
	if !errors.Is(err, dead) || calls != 1 {
		t.Errorf("have %v after %d calls", err, calls)
	}
}
