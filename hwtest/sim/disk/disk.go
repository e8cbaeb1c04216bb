// Package disk makes the disks of simulated sleds and reads encrypted ones back without device-mapper.
//
// It serves the demo and tests. It asks cryptsetup for the volume key and decrypts in this process, so the plain bytes
// and the volume key lie in ordinary memory: never use it on disks that matter. Next: docs/disks.md §4.
package disk

import (
	"bytes"
	"context"
	"crypto/aes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/crypto/xts"

	"github.com/sledvault/sledvault/vault/secret"
)

// Reserve is how much at the end of a disk [MakePattern] leaves empty: encrypting in place needs it.
const Reserve = 32 << 20

// MakePattern makes a file of size bytes whose content follows from the seed, up to [Reserve] bytes before its end. The
// file must not exist.
func MakePattern(path string, size int64, seed uint64) error {
	if size < Reserve {
		return fmt.Errorf("disk: pattern: size: have %d, want at least %d", size, Reserve)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	for off := int64(0); off < size-Reserve; off += chunk {
		if _, err := f.WriteAt(Pattern(seed, off, int(min(chunk, size-Reserve-off))), off); err != nil {
			return err
		}
	}
	return f.Close()
}

const (
	chunk  = 1 << 20
	block  = 4096
	sector = 512
)

// Pattern is n bytes of the content that [MakePattern] writes at an offset.
func Pattern(seed uint64, off int64, n int) []byte {
	out := make([]byte, 0, n+block)
	skip := off % block
	for at := off - skip; len(out) < int(skip)+n; at += block {
		var key [32]byte
		binary.LittleEndian.PutUint64(key[:], seed)
		binary.LittleEndian.PutUint64(key[8:], uint64(at))
		b := make([]byte, block)
		_, _ = rand.NewChaCha8(key).Read(b) // cannot fail
		out = append(out, b...)
	}
	return out[skip : int(skip)+n]
}

// volume is what is needed to read a LUKS2 disk's data.
type volume struct {
	offset int64
	sector int64
	cipher *xts.Cipher
}

// ReadPlain opens a LUKS2 disk with a key and returns n plain bytes at an offset of its data, without device-mapper.
func ReadPlain(ctx context.Context, path string, key secret.DiskKey, off int64, n int) ([]byte, error) {
	v, err := openVolume(ctx, path, key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	first := off - off%v.sector
	last := (off + int64(n) + v.sector - 1) / v.sector * v.sector
	buf := make([]byte, last-first)
	if _, err := f.ReadAt(buf, v.offset+first); err != nil {
		return nil, fmt.Errorf("disk: read: %w", err)
	}
	for at := int64(0); at < int64(len(buf)); at += v.sector {
		// dm-crypt numbers units of 512 bytes whatever the size of its sectors.
		v.cipher.Decrypt(buf[at:at+v.sector], buf[at:at+v.sector], uint64((first+at)/sector))
	}
	return buf[off-first:][:n], nil
}

// WritePlain encrypts whole sectors into the data of a LUKS2 disk. Offset and length must be multiples of 4096.
func WritePlain(ctx context.Context, path string, key secret.DiskKey, off int64, data []byte) error {
	if off%block != 0 || len(data)%block != 0 {
		return fmt.Errorf("disk: write: have %d bytes at %d, want multiples of %d", len(data), off, block)
	}
	v, err := openVolume(ctx, path, key)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	out := make([]byte, len(data))
	for at := int64(0); at < int64(len(data)); at += v.sector {
		v.cipher.Encrypt(out[at:at+v.sector], data[at:at+v.sector], uint64((off+at)/sector))
	}
	if _, err := f.WriteAt(out, v.offset+off); err != nil {
		return err
	}
	return f.Close()
}

func openVolume(ctx context.Context, path string, key secret.DiskKey) (volume, error) {
	text, err := cryptsetup(ctx, secret.DiskKey{}, "luksDump", "--dump-json-metadata", path)
	if err != nil {
		return volume{}, err
	}
	var meta struct {
		Segments map[string]struct {
			Offset     string
			Encryption string
			SectorSize int64 `json:"sector_size"`
		}
	}
	if err := json.Unmarshal(text, &meta); err != nil {
		return volume{}, fmt.Errorf("disk: header: %w", err)
	}
	s := meta.Segments["0"]
	offset, err := strconv.ParseInt(s.Offset, 10, 64)
	if err != nil || len(meta.Segments) != 1 || s.Encryption != "aes-xts-plain64" || s.SectorSize < sector {
		return volume{}, fmt.Errorf("disk: header: have %d segments, %q, sectors of %d", len(meta.Segments), s.Encryption, s.SectorSize)
	}
	text, err = cryptsetup(ctx, key, "luksDump", "--batch-mode", "--dump-volume-key", "--key-file", "-", "--keyfile-size", "32", path)
	if err != nil {
		return volume{}, err
	}
	_, dump, _ := strings.Cut(string(text), "MK dump:")
	raw, err := hex.DecodeString(strings.Join(strings.Fields(dump), ""))
	if err != nil {
		return volume{}, fmt.Errorf("disk: volume key: %w", err)
	}
	c, err := xts.NewCipher(aes.NewCipher, raw)
	return volume{offset, s.SectorSize, c}, err
}

func cryptsetup(ctx context.Context, key secret.DiskKey, args ...string) ([]byte, error) {
	path, err := exec.LookPath("cryptsetup")
	if err != nil {
		path = "/usr/sbin/cryptsetup"
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"LC_ALL=C"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if !key.IsEmpty() {
		in, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer in.Close()
		err = key.Use(func(b []byte) error { _, err := w.Write(b); return err })
		if err := w.Close(); err != nil {
			return nil, err
		}
		if err != nil {
			return nil, err
		}
		cmd.Stdin = in
	}
	out, err := cmd.Output()
	if err != nil {
		line, _ := io.ReadAll(io.LimitReader(&stderr, 300))
		return nil, fmt.Errorf("disk: cryptsetup %s: %w: %q", args[0], err, line)
	}
	return out, nil
}
