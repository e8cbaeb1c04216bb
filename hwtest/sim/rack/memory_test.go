//go:build linux

package simrack_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/vault/api"
)

// TestKeysLeaveMemory searches the whole memory of daemons that have opened their disks for the keys of those disks.
// Pages of memfd_secret cannot be read even by root; what is searched is everything else: heap, stacks, buffers.
func TestKeysLeaveMemory(t *testing.T) {
	t.Parallel()
	r := newRack(t)
	keys := map[*simrack.Sled][]byte{}
	for _, s := range r.Sleds() {
		k, err := s.Key(t.Context(), s.Disks[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Use(func(b []byte) error { keys[s] = bytes.Clone(b); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	lo := listenLoopback(t, r)
	play(t, r, simrack.SceneColdBoot) // new daemons, which have opened the disks and released no key
	for _, s := range r.Sleds() {
		if _, err := s.Await(t.Context(), "done", func(st api.Status) bool { return st.Boot.Step == "done" }); err != nil {
			t.Fatal(err)
		}
		look := needles(keys[s])
		look["control"] = []byte(s.Board.Serial)
		found, err := scan(s.Pid(), look)
		if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			t.Log("not root: the daemon's memory is closed to us, and to everybody like us")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if found["control"] == 0 {
			t.Errorf("%s: control: its serial number is not found: nothing was searched", s.Name)
		}
		delete(found, "control")
		for form, n := range found {
			t.Errorf("%s: its disk key as %s: %d times in memory", s.Name, form, n)
		}
	}
	searchPlaces(t, r, lo, keys)
	look := needles(keys[r.Sled(0)]) // control: they are on the heap here
	found, err := scan(os.Getpid(), look)
	if err != nil {
		t.Fatal(err)
	}
	for form := range look {
		if found[form] == 0 {
			t.Errorf("control: a key as %s is not found in this process, which has it", form)
		}
	}
}

// scan counts the needles in what a process can write to.
func scan(pid int, look map[string][]byte) (map[string]int, error) {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = maps.Close() }()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = mem.Close() }()
	found := map[string]int{}
	longest := 0
	for _, n := range look {
		longest = max(longest, len(n))
	}
	buf := make([]byte, 1<<20+longest)
	defer clear(buf)
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		for at := from; at < to; at += 1 << 20 {
			b := buf[:min(int64(len(buf)), to-at)]
			n, _ := mem.ReadAt(b, at) // what cannot be read at all, memfd_secret, is passed over
			b = b[:n]
			if len(bytes.TrimLeft(b, "\x00")) == 0 {
				continue
			}
			for form, needle := range look {
				found[form] += bytes.Count(b, needle)
				if found[form] == 0 {
					delete(found, form)
				}
			}
		}
	}
	return found, nil
}
