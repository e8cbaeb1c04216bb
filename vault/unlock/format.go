package unlock

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// keyslotsArea is room for eight key slots of 252 KiB each: rotation needs two, people may add their own.
const keyslotsArea = "2m"

// iterations of PBKDF2. The key has 256 random bits: stretching it gains nothing, and argon2 would cost seconds a disk.
const iterations = "1000"

// Smallest disks in bytes: the header with something behind it, and twice the room that encrypting in place needs.
const (
	minSize     = 4 << 20
	minKeepSize = ReduceBytes + 4<<20
)

// formatArgs are common to formatting and encrypting in place.
func formatArgs(sector int) []string {
	return append([]string{
		"--type", "luks2", "--batch-mode", "--cipher", cipherName, "--key-size", "512", "--hash", "sha256",
		"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", iterations,
		"--luks2-metadata-size", "16k", "--luks2-keyslots-size", keyslotsArea, "--sector-size", strconv.Itoa(sector),
	}, keyArgs()...)
}

// keyArgs make cryptsetup read the key, and not a byte more, from standard input.
func keyArgs() []string { return []string{"--key-file", "-", "--keyfile-size", strconv.Itoa(keySize)} }

// Format implements [Backend]. The disk is read back and the key proved before a record is returned. After a crash in the
// middle: without KeepData run it again with Overwrite, or [LUKS2.Adopt]; with KeepData see docs/disks.md §5.
func (l *LUKS2) Format(ctx context.Context, d Disk, o FormatOptions, key secret.DiskKey, epoch ident.Epoch, rack ident.RackID) (Record, error) {
	if err := d.Identity.Validate(); err != nil {
		return Record{}, reason.Wrap(err, CodeConfig, hintConfig, "unlock: disk %s", d.ID)
	}
	if key.IsEmpty() {
		return Record{}, reason.Wrap(errNil, CodeKey, hintKey, "unlock: disk %s", d.ID)
	}
	f, err := openDevice(d)
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	args, err := formatCommand(f, d, o)
	if err != nil {
		return Record{}, err
	}
	if err := l.makeHeader(ctx, d, o, args, key); err != nil {
		return Record{}, err
	}
	r, err := l.Adopt(ctx, d, key, epoch)
	if err != nil {
		return Record{}, err
	}
	return r, l.setToken(ctx, d, r.KeySlot, epoch, rack, false)
}

// mayFormat applies the refusals and chooses the sector size.
func mayFormat(f *os.File, d Disk, o FormatOptions) (sector int, err error) {
	what := signature(f)
	switch {
	case o.KeepData && o.Overwrite:
		return 0, reason.New(CodeConfig, hintConfig, "unlock: disk %s: format: keep or overwrite the data: have both", d.ID)
	case strings.Contains(what, "LUKS") && !o.Overwrite:
		return 0, reason.New(CodeHasHeader, hintHasHeader, "unlock: disk %s: format refused: holds %s", d.ID, what)
	case what != "" && !o.Overwrite && !o.KeepData:
		return 0, reason.New(CodeHasData, hintHasData, "unlock: disk %s: format refused: holds %s", d.ID, what)
	}
	size, err := deviceSize(f)
	if err != nil {
		return 0, reason.Wrap(err, CodeIO, hintIO, "unlock: disk %s: size", d.ID)
	}
	want := int64(minSize)
	if o.KeepData {
		want = minKeepSize
	}
	if size < want {
		return 0, reason.New(CodeTooSmall, hintTooSmall, "unlock: disk %s: format refused: have %d bytes, want at least %d", d.ID, size, want)
	}
	switch o.SectorSize {
	case 512, 4096:
		sector = o.SectorSize
	case 0:
		if sector = blockSize(f); size%4096 != 0 || o.KeepData { // a file system inside may use smaller blocks
			sector = 512
		}
	default:
		return 0, reason.New(CodeConfig, hintConfig, "unlock: disk %s: sector size: have %d, want 512 or 4096", d.ID, o.SectorSize)
	}
	if size%int64(sector) != 0 {
		return 0, reason.New(CodeConfig, hintConfig, "unlock: disk %s: size %d is no multiple of the sector size %d", d.ID, size, sector)
	}
	return sector, nil
}

// formatCommand applies the refusals and composes the command.
func formatCommand(f *os.File, d Disk, o FormatOptions) (args []string, err error) {
	if o.Resume {
		if err := mayResume(f, d, o); err != nil {
			return nil, err
		}
		args = append([]string{"reencrypt", "--resume-only", "--batch-mode"}, keyArgs()...)
	} else {
		sector, err := mayFormat(f, d, o)
		if err != nil {
			return nil, err
		}
		args = append([]string{"luksFormat"}, formatArgs(sector)...)
		if o.KeepData {
			reduce := strconv.Itoa(ReduceBytes>>20) + "M"
			args = append([]string{"reencrypt", "--encrypt", "--reduce-device-size", reduce}, formatArgs(sector)...)
		}
	}
	if o.KeepData && isRegular(f) {
		// The lock lies in a folder that belongs to whoever ran cryptsetup first; a file is locked by itself.
		args = append(args, "--disable-locks")
		if o.Resume { // nor can cryptsetup tell whether a file is mapped
			args = append(args, "--force-offline-reencrypt")
		}
	}
	return append(args, d.Path), nil
}

// mayResume accepts only a header that is in the middle of a first encryption, in the form whose steps cryptsetup
// authenticates by the volume key.
func mayResume(f *os.File, d Disk, o FormatOptions) error {
	if !o.KeepData || o.Overwrite {
		return reason.New(CodeConfig, hintConfig, "unlock: disk %s: resume goes with keeping the data only", d.ID)
	}
	raw, err := readHeader(f, d.ID)
	if err != nil {
		return err
	}
	top, err := parseObject(raw.json)
	if err != nil {
		return reason.Wrap(err, CodeDamaged, hintDamaged, "unlock: disk %s", d.ID)
	}
	slots, _ := top["keyslots"].(object)
	for _, v := range slots {
		if s, ok := v.(object); ok && s["type"] == "reencrypt" && s["mode"] == "encrypt" &&
			reencrypting(top) == fmt.Sprintf("requirement %q", "online-reencrypt-v2") {
			return nil
		}
	}
	return reason.New(CodeRefused, hintRefused, "unlock: disk %s: resume: the header is not in the middle of a first encryption", d.ID)
}

func isRegular(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode().IsRegular()
}

func (l *LUKS2) makeHeader(ctx context.Context, d Disk, o FormatOptions, args []string, key secret.DiskKey) error {
	long, dir := *l, ""
	if o.KeepData {
		// cryptsetup builds the new header, which holds nothing in clear, in a file of its working folder.
		var err error
		if dir, err = os.MkdirTemp(l.cfg.TempDir, "sledvault-"); err != nil {
			return reason.Wrap(err, CodeIO, hintIO, "unlock: disk %s: folder for the new header", d.ID)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		long.cfg.Timeout = l.cfg.KeepTimeout
	}
	a, err := long.run(ctx, call{id: d.ID, args: args, key: key, dir: dir})
	if err != nil {
		return err
	}
	if a.exit != exitOK {
		return a.failed(d.ID, "format")
	}
	return nil
}

// setToken writes who encrypted the disk into its header. It helps people and [LUKS2.Adopt]; nothing trusts it.
func (l *LUKS2) setToken(ctx context.Context, d Disk, slot int, epoch ident.Epoch, rack ident.RackID, replace bool) error {
	text, err := json.Marshal(map[string]any{
		"type": tokenType, "version": 1, "keyslots": []string{strconv.Itoa(slot)},
		"rack": rack.String(), "epoch": strconv.FormatUint(uint64(epoch), 10),
	})
	if err != nil {
		return err
	}
	args := []string{"token", "import", "--batch-mode", "--token-id", "0", "--json-file", "-"}
	if replace {
		args = append(args, "--token-replace")
	}
	a, err := l.run(ctx, call{id: d.ID, args: append(args, d.Path), input: text})
	if err != nil {
		return err
	}
	if a.exit != exitOK {
		return a.failed(d.ID, "write the token")
	}
	return nil
}
