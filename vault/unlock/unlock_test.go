package unlock_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/disk"
	"github.com/sledvault/sledvault/internal/rig"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/unlock"
)

const mib = 1 << 20

func rack() ident.RackID { return ident.RackID{0x00, 0x11, 0x22, 0x33, 0x44, 15: 0xff} }

func diskKey(tb testing.TB, fill byte) secret.DiskKey {
	tb.Helper()
	k, err := secret.Take[secret.DiskKeyKind](secret.Heap{}, bytes.Repeat([]byte{fill}, 32))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// emptyDisk is a sparse file of the given size.
func emptyDisk(tb testing.TB, size int64) unlock.Disk {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		tb.Fatal(err)
	}
	return diskAt(path)
}

func diskAt(path string) unlock.Disk {
	return unlock.Disk{
		ID: "d0", Backend: unlock.BackendLUKS2, Path: path,
		Identity: keys.Disk{Vendor: "1b96", Model: "WUS4C6432DSP3X3", Serial: "A079E3D1"},
	}
}

// backend never maps, even where the machine could: tests must not touch its device-mapper.
func backend(tb testing.TB) *unlock.LUKS2 {
	tb.Helper()
	rig.Need(tb, "cryptsetup")
	return unlock.New(unlock.Config{Mapper: tb.TempDir()})
}

func formatted(tb testing.TB, l *unlock.LUKS2, fill byte) (unlock.Disk, unlock.Record) {
	tb.Helper()
	d := emptyDisk(tb, 8*mib)
	r, err := l.Format(tb.Context(), d, unlock.FormatOptions{SectorSize: 512}, diskKey(tb, fill), 3, rack())
	if err != nil {
		tb.Fatal(err)
	}
	return d, r
}

func wantCode(tb testing.TB, err error, code reason.Code) {
	tb.Helper()
	if reason.CodeOf(err) != code {
		tb.Fatalf("have %q (%v), want %q", reason.CodeOf(err), err, code)
	}
	if reason.HintOf(err) == "" {
		tb.Errorf("%s: no hint", code)
	}
}

func TestFormatAndOpen(t *testing.T) {
	t.Parallel()
	l := backend(t)
	d, r := formatted(t, l, 7)
	if r.Epoch != 3 || r.KeySlot != 0 || len(r.Pins) != len(unlock.PinNames()) {
		t.Fatalf("record: have %+v", r)
	}
	h, err := l.Inspect(t.Context(), d)
	if err != nil || h.Epoch != 3 || h.Rack != rack() || h.Slot != 0 || !slices.Equal(h.Pins, r.Pins) {
		t.Fatalf("header: have %+v, %v", h, err)
	}
	res, err := l.Open(t.Context(), d, r, diskKey(t, 7))
	if err != nil || res.State != unlock.StateKeyProved || res.Proof != unlock.ProofTestPassphrase || res.Mapping != "" || res.Epoch != 3 {
		t.Fatalf("open: have %+v, %v", res, err)
	}
	res, err = l.Open(t.Context(), d, r, diskKey(t, 8))
	wantCode(t, err, unlock.CodeKey)
	if res.State != unlock.StateFailed || res.Code != unlock.CodeKey || res.Hint == "" {
		t.Fatalf("refused open: have %+v", res)
	}
	_, err = l.Open(t.Context(), d, r, secret.DiskKey{})
	wantCode(t, err, unlock.CodeKey)
	if err := l.Close(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	a, err := l.Adopt(t.Context(), d, diskKey(t, 7), 3)
	if err != nil || !slices.Equal(a.Pins, r.Pins) || a.KeySlot != r.KeySlot {
		t.Fatalf("adopt: have %+v, %v", a, err)
	}
}

func TestKeepData(t *testing.T) {
	t.Parallel()
	l := backend(t)
	path := filepath.Join(t.TempDir(), "disk")
	if err := disk.MakePattern(path, 40*mib, 42); err != nil {
		t.Fatal(err)
	}
	d := diskAt(path)
	r, err := l.Format(t.Context(), d, unlock.FormatOptions{KeepData: true}, diskKey(t, 1), 2, rack())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Open(t.Context(), d, r, diskKey(t, 1)); err != nil {
		t.Fatal(err)
	}
	have, err := disk.ReadPlain(t.Context(), path, diskKey(t, 1), 1000, 3*mib)
	if err != nil || !bytes.Equal(have, disk.Pattern(42, 1000, 3*mib)) {
		t.Fatalf("data was not preserved: %v", err)
	}
	all, err := os.ReadFile(path)
	if err != nil || bytes.Contains(all, disk.Pattern(42, 8192, 512)) {
		t.Fatalf("plain data is still on the disk: %v", err)
	}
}

func TestWritePlain(t *testing.T) {
	t.Parallel()
	l := backend(t)
	d := emptyDisk(t, 8*mib)
	if _, err := l.Format(t.Context(), d, unlock.FormatOptions{SectorSize: 4096}, diskKey(t, 1), 2, rack()); err != nil {
		t.Fatal(err)
	}
	if err := disk.WritePlain(t.Context(), d.Path, diskKey(t, 1), 8192, disk.Pattern(9, 0, 8192)); err != nil {
		t.Fatal(err)
	}
	have, err := disk.ReadPlain(t.Context(), d.Path, diskKey(t, 1), 8292, 5000)
	if err != nil || !bytes.Equal(have, disk.Pattern(9, 100, 5000)) {
		t.Fatalf("have other bytes: %v", err)
	}
}

func TestFormatRefuses(t *testing.T) {
	t.Parallel()
	l := backend(t)
	key := diskKey(t, 1)
	ext := func(p string) error { return writeAt(p, 0x438, []byte{0x53, 0xef}) }
	for _, c := range []struct {
		name string
		size int64
		prep func(string) error
		opt  unlock.FormatOptions
		code reason.Code
	}{
		{"file system", 8 * mib, ext, unlock.FormatOptions{}, unlock.CodeHasData},
		{"second header only", 8 * mib, func(p string) error { return writeAt(p, 0x4000, []byte("SKUL\xba\xbe")) }, unlock.FormatOptions{KeepData: true}, unlock.CodeHasHeader},
		{"LUKS1", 8 * mib, func(p string) error { return writeAt(p, 0, []byte("LUKS\xba\xbe\x00\x01")) }, unlock.FormatOptions{}, unlock.CodeHasHeader},
		{"too small", mib, nil, unlock.FormatOptions{}, unlock.CodeTooSmall},
		{"too small to keep", 32 * mib, nil, unlock.FormatOptions{KeepData: true}, unlock.CodeTooSmall},
		{"both", 8 * mib, nil, unlock.FormatOptions{KeepData: true, Overwrite: true}, unlock.CodeConfig},
		{"sector size", 8 * mib, nil, unlock.FormatOptions{SectorSize: 1000}, unlock.CodeConfig},
		{"odd size", 8*mib + 512, nil, unlock.FormatOptions{SectorSize: 4096}, unlock.CodeConfig},
		{"overwrite", 8 * mib, ext, unlock.FormatOptions{Overwrite: true}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := emptyDisk(t, c.size)
			if c.prep != nil {
				if err := c.prep(d.Path); err != nil {
					t.Fatal(err)
				}
			}
			_, err := l.Format(t.Context(), d, c.opt, key, 2, rack())
			if c.code == "" && err == nil {
				return
			}
			wantCode(t, err, c.code)
		})
	}
	d, _ := formatted(t, l, 1)
	_, err := l.Format(t.Context(), d, unlock.FormatOptions{}, key, 2, rack())
	wantCode(t, err, unlock.CodeHasHeader)
	d.Identity.Serial = ""
	_, err = l.Format(t.Context(), d, unlock.FormatOptions{Overwrite: true}, key, 2, rack())
	wantCode(t, err, unlock.CodeConfig)
}

func writeAt(path string, at int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}

func TestOpenReasons(t *testing.T) {
	t.Parallel()
	l := backend(t)
	d, r := formatted(t, l, 1)
	key := diskKey(t, 1)

	absent := d
	absent.Path += ".gone"
	res, err := l.Open(t.Context(), absent, r, key)
	wantCode(t, err, unlock.CodeAbsent)
	if res.State != unlock.StateAbsent || reason.RemedyOf(err) != reason.Retry {
		t.Errorf("absent: have %+v", res)
	}
	res, err = l.Open(t.Context(), emptyDisk(t, 8*mib), r, key)
	wantCode(t, err, unlock.CodeUnformatted)
	if res.State != unlock.StateUnformatted {
		t.Errorf("unformatted: have %+v", res)
	}
	swap := emptyDisk(t, 8*mib)
	if err := writeAt(swap.Path, 0xff6, []byte("SWAPSPACE2")); err != nil {
		t.Fatal(err)
	}
	_, err = l.Open(t.Context(), swap, r, key)
	wantCode(t, err, unlock.CodeNotLUKS2)

	folder := d
	folder.Path = filepath.Dir(d.Path)
	_, err = l.Open(t.Context(), folder, r, key)
	wantCode(t, err, unlock.CodeConfig)

	_, err = unlock.New(unlock.Config{Cryptsetup: "/nowhere/cryptsetup", Mapper: t.TempDir()}).Open(t.Context(), d, r, key)
	wantCode(t, err, unlock.CodeMissing)

	gone := r
	gone.KeySlot = 5
	_, err = l.Open(t.Context(), d, gone, key)
	wantCode(t, err, unlock.CodeChanged)
	_, err = l.Open(t.Context(), d, unlock.Record{}, key)
	wantCode(t, err, unlock.CodeChanged)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.Open(ctx, d, r, key)
	wantCode(t, err, unlock.CodeTimeout)
}

// tool writes a program that stands in for cryptsetup.
func tool(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cryptsetup")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestToolFails(t *testing.T) {
	t.Parallel()
	d, r := formatted(t, backend(t), 1)
	key := diskKey(t, 1)
	for _, c := range []struct {
		script string
		code   reason.Code
	}{
		{"yes 0123456789abcdef | head -c 1000000 >&2; exit 3", unlock.CodeTool},
		{"exit 4", unlock.CodeIO},
		{"exit 5", unlock.CodeBusy},
		{"kill -9 $$", unlock.CodeTool},
	} {
		l := unlock.New(unlock.Config{Cryptsetup: tool(t, c.script), Mapper: t.TempDir()})
		res, err := l.Open(t.Context(), d, r, key)
		wantCode(t, err, c.code)
		if len(res.Error) > 2000 {
			t.Errorf("%s: error of %d bytes", c.script, len(res.Error))
		}
	}
	l := unlock.New(unlock.Config{Cryptsetup: tool(t, "exec sleep 60"), Mapper: t.TempDir(), Timeout: 50 * time.Millisecond})
	start := time.Now()
	_, err := l.Open(t.Context(), d, r, key)
	wantCode(t, err, unlock.CodeTimeout)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("gave up after %v", took)
	}
}

// TestMapped runs the path with device-mapper against a stand-in for cryptsetup.
func TestMapped(t *testing.T) {
	t.Parallel()
	d, r := formatted(t, backend(t), 1)
	mapper := t.TempDir()
	if err := os.WriteFile(filepath.Join(mapper, "control"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	args := filepath.Join(t.TempDir(), "args")
	script := fmt.Sprintf(`echo "$@" >>%q
case $1 in
open) for last; do :; done; case "$*" in *--test-passphrase*) ;; *) : >%q/"$last";; esac; wc -c >>%q;;
close) rm %q/"$2";;
status) printf '  type:    LUKS2\n  cipher:  aes-xts-plain64\n  device:  %s\n';;
esac`, args, mapper, args, mapper, d.Path)
	l := unlock.New(unlock.Config{Cryptsetup: tool(t, script), Mapper: mapper})
	for _, note := range []string{"", "was mapped already"} {
		res, err := l.Open(t.Context(), d, r, diskKey(t, 1))
		if err != nil || res.State != unlock.StateUnlocked || res.Proof != unlock.ProofMapped || res.Note != note || res.Mapping != mapper+"/sledvault-d0" {
			t.Fatalf("have %+v, %v", res, err)
		}
	}
	if err := os.Rename(d.Path, d.Path+"2"); err != nil {
		t.Fatal(err)
	}
	d.Path += "2"
	_, err := l.Open(t.Context(), d, r, diskKey(t, 1))
	wantCode(t, err, unlock.CodeBusy)
	if err := l.Close(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mapper + "/sledvault-d0"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("still mapped: %v", err)
	}
	text, err := os.ReadFile(args)
	if err != nil || !strings.Contains(string(text), "--header /dev/fd/3") || !strings.Contains(string(text), "\n32\n") {
		t.Fatalf("have %s, %v", text, err)
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	l := backend(t)
	d, r := formatted(t, l, 1)
	one, two := diskKey(t, 1), diskKey(t, 2)
	next, err := l.AddKey(t.Context(), d, r, one, two, 4, rack())
	if err != nil || next.Epoch != 4 || next.KeySlot == r.KeySlot {
		t.Fatalf("have %+v, %v", next, err)
	}
	again, err := l.AddKey(t.Context(), d, r, one, two, 4, rack()) // as after a crash
	if err != nil || again.KeySlot != next.KeySlot {
		t.Fatalf("again: have %+v, %v", again, err)
	}
	for _, c := range []struct {
		r unlock.Record
		k secret.DiskKey
	}{{r, one}, {next, two}} {
		if _, err := l.Open(t.Context(), d, c.r, c.k); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, l.RetireOld(t.Context(), d, next, one), unlock.CodeKey)
	for range 2 { // the second time there is nothing left to do
		if err := l.RetireOld(t.Context(), d, next, two); err != nil {
			t.Fatal(err)
		}
	}
	_, err = l.Open(t.Context(), d, r, one)
	wantCode(t, err, unlock.CodeChanged)
	if _, err := l.Open(t.Context(), d, next, two); err != nil {
		t.Fatal(err)
	}
	h, err := l.Inspect(t.Context(), d)
	if err != nil || h.Epoch != 4 || h.Slot != next.KeySlot || len(h.Slots) != 1 {
		t.Fatalf("have %+v, %v", h, err)
	}
}

func TestParallel(t *testing.T) {
	t.Parallel()
	l := backend(t)
	var wg sync.WaitGroup
	for i := range 6 {
		d, r := formatted(t, l, byte(i+1))
		wg.Go(func() {
			if _, err := l.Open(t.Context(), d, r, diskKey(t, byte(i+1))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestHeaderCopies(t *testing.T) {
	t.Parallel()
	l := backend(t)
	d, r := formatted(t, l, 1)
	good, err := os.ReadFile(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		edit func(b []byte) []byte
		code reason.Code
	}{
		{"first copy lost", func(b []byte) []byte { clear(b[:4096]); return b }, ""},
		{"second copy lost", func(b []byte) []byte { clear(b[16384 : 16384+4096]); return b }, ""},
		{"first checksum", func(b []byte) []byte { b[5000] ^= 1; return b }, ""},
		{"both checksums", func(b []byte) []byte { b[5000] ^= 1; b[16384+5000] ^= 1; return b }, unlock.CodeDamaged},
		{"size", func(b []byte) []byte {
			binary.BigEndian.PutUint64(b[8:], 1<<62)
			clear(b[16384 : 16384+4096])
			return b
		}, unlock.CodeDamaged},
		{"truncated in the header", func(b []byte) []byte { return b[:9000] }, unlock.CodeDamaged},
		{"truncated in the key slots", func(b []byte) []byte { return b[:40000] }, unlock.CodeIO},
		{"truncated at once", func(b []byte) []byte { return b[:7] }, unlock.CodeUnformatted},
		{"key slot overwritten", func(b []byte) []byte { clear(b[32768:300000]); return b }, unlock.CodeKey},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(path, c.edit(bytes.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := l.Open(t.Context(), diskAt(path), r, diskKey(t, 1))
			if c.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantCode(t, err, c.code)
		})
	}
}

// TestResume: the encryption of existing data was interrupted right after it began.
func TestResume(t *testing.T) {
	t.Parallel()
	l := backend(t)
	path := filepath.Join(t.TempDir(), "disk")
	if err := disk.MakePattern(path, 40*mib, 42); err != nil {
		t.Fatal(err)
	}
	d, key := diskAt(path), diskKey(t, 1)
	_, err := l.Format(t.Context(), d, unlock.FormatOptions{KeepData: true, Resume: true}, key, 2, rack())
	wantCode(t, err, unlock.CodeUnformatted)

	real, err := rig.Path("cryptsetup")
	if err != nil {
		t.Fatal(err)
	}
	stopping := unlock.New(unlock.Config{Mapper: t.TempDir(), Cryptsetup: tool(t, fmt.Sprintf(`exec %q "$@" --init-only`, real))})
	_, err = stopping.Format(t.Context(), d, unlock.FormatOptions{KeepData: true}, key, 2, rack())
	wantCode(t, err, unlock.CodeReencrypt)
	_, err = l.Inspect(t.Context(), d)
	wantCode(t, err, unlock.CodeReencrypt)
	_, err = l.Format(t.Context(), d, unlock.FormatOptions{KeepData: true, Resume: true}, diskKey(t, 2), 2, rack())
	wantCode(t, err, unlock.CodeKey)

	r, err := l.Format(t.Context(), d, unlock.FormatOptions{KeepData: true, Resume: true}, key, 2, rack())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Open(t.Context(), d, r, key); err != nil {
		t.Fatal(err)
	}
	have, err := disk.ReadPlain(t.Context(), path, key, 0, 8*mib)
	if err != nil || !bytes.Equal(have, disk.Pattern(42, 0, 8*mib)) {
		t.Fatalf("data was not preserved: %v", err)
	}
	_, err = l.Format(t.Context(), d, unlock.FormatOptions{KeepData: true, Resume: true}, key, 2, rack())
	wantCode(t, err, unlock.CodeRefused)
	_, err = l.Format(t.Context(), d, unlock.FormatOptions{Resume: true}, key, 2, rack())
	wantCode(t, err, unlock.CodeConfig)
}

// TestKeyStaysInThePipe: no argument, no environment variable and no file of ours ever holds a key.
func TestKeyStaysInThePipe(t *testing.T) {
	t.Parallel()
	rig.Need(t, "cryptsetup")
	real, err := rig.Path("cryptsetup")
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	l := unlock.New(unlock.Config{Mapper: t.TempDir(), Cryptsetup: tool(t, fmt.Sprintf(`{ echo "$@"; cat /proc/self/environ; } >>%q; exec %q "$@"`, log, real))})
	d := emptyDisk(t, 8*mib)
	one, two := diskKey(t, 0xA5), diskKey(t, 0x5A)
	r, err := l.Format(t.Context(), d, unlock.FormatOptions{}, one, 1, rack())
	if err != nil {
		t.Fatal(err)
	}
	next, err := l.AddKey(t.Context(), d, r, one, two, 2, rack())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.RetireOld(t.Context(), d, next, two); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{log, d.Path} {
		text, err := os.ReadFile(path)
		if err != nil || len(text) == 0 {
			t.Fatal(err)
		}
		for _, b := range []byte{0xA5, 0x5A} {
			if bytes.Contains(text, bytes.Repeat([]byte{b}, 8)) || bytes.Contains(bytes.ToLower(text), []byte(strings.Repeat(fmt.Sprintf("%02x", b), 8))) {
				t.Errorf("%s holds a key", path)
			}
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	l := backend(b)
	d, r := formatted(b, l, 1)
	key := diskKey(b, 1)
	for b.Loop() {
		if _, err := l.Open(b.Context(), d, r, key); err != nil {
			b.Fatal(err)
		}
	}
}
