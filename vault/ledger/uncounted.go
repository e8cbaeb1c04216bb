package ledger

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/sledvault/sledvault/vault/reason"
)

// uncounted is a kind of file that costs no counter step: encrypted under a key of its own, numbered, one medium is
// enough, an older one brought back is not noticed (ledger.md §7).
type uncounted struct {
	name    string
	magic   string // 8 bytes
	version uint16
	label   string // of the key
	limit   int    // bytes of the file
	hook    string // first part of its steps
	code    reason.Code
}

// errForeign says that such a file is another sled's.
var errForeign = errors.New("ledger: file of another sled")

// head is what stands in clear: magic, version, rack, baseboard, number of the save. It is the associated data.
func (l *Ledger) head(k uncounted, number uint64) []byte {
	b := append(make([]byte, 0, 256), k.magic...)
	b = binary.BigEndian.AppendUint16(b, k.version)
	b = append(b, l.cfg.Rack[:]...)
	b = append16(b, []byte(l.cfg.Baseboard.Part))
	b = append16(b, []byte(l.cfg.Baseboard.Serial))
	return binary.BigEndian.AppendUint64(b, number)
}

func (l *Ledger) uncountedKey(k uncounted) (key []byte, err error) {
	err = l.sealer.Key().Use(func(b []byte) error {
		key, err = hkdf.Key(sha256.New, b, nil, k.label, chacha20poly1305.KeySize)
		return err
	})
	return key, err
}

func (l *Ledger) encodeUncounted(k uncounted, plain []byte, number uint64) ([]byte, error) {
	key, err := l.uncountedKey(k)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	head := l.head(k, number)
	out := append(make([]byte, 0, len(head)+nonceLen+len(plain)+tagLen), head...)
	out = out[:len(head)+nonceLen]
	if _, err := io.ReadFull(l.cfg.Rand, out[len(head):]); err != nil {
		return nil, err
	}
	return aead.Seal(out, out[len(head):], plain, head), nil
}

func (l *Ledger) decodeUncounted(k uncounted, b []byte) (plain []byte, number uint64, err error) {
	n := len(l.head(k, 0))
	if len(b) < n+nonceLen+tagLen {
		return nil, 0, formatError("%s of %d bytes, want at least %d", k.name, len(b), n+nonceLen+tagLen)
	}
	number = binary.BigEndian.Uint64(b[n-8:])
	head := l.head(k, number)
	if string(b[:n]) != string(head) {
		return nil, 0, errForeign
	}
	key, err := l.uncountedKey(k)
	if err != nil {
		return nil, 0, err
	}
	defer clear(key)
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, 0, err
	}
	plain, err = aead.Open(nil, b[n:n+nonceLen], b[n+nonceLen:], head)
	if err != nil {
		return nil, 0, errOpen
	}
	return plain, number, nil
}

// saveUncounted writes such a file to both media; one is enough. The number is used up even if neither takes it. The
// caller holds mu.
func (l *Ledger) saveUncounted(_ context.Context, k uncounted, plain []byte, number *uint64) error {
	data, err := l.encodeUncounted(k, plain, *number+1)
	if err != nil {
		return reason.Wrap(err, k.code, "", "ledger: encode %s", k.name)
	}
	*number++
	var errs [2]error
	for i := range l.folders {
		errs[i] = fmt.Errorf("ledger: copy %s: no medium", copyName(i))
		if l.folders[i] != nil {
			errs[i] = replace(l.folders[i], k.name, data, func(step string) error { return l.cfg.hook(k.hook + "/" + copyName(i) + "/" + step) })
		}
		if aborted(errs[i]) {
			l.stopped = true
			return errs[i]
		}
		l.cfg.count(CodeDegraded, i, errs[i])
	}
	if errs[0] != nil && errs[1] != nil {
		return reason.Wrap(errors.Join(errs[0], errs[1]), k.code, hintFolder, "ledger: %s not saved", k.name)
	}
	return nil
}

// loadUncounted reads both files. The one with the higher number that take accepts counts; what cannot be read is counted.
// It returns the bytes of that file, nil if there is none, and the copies that hold something else.
func (l *Ledger) loadUncounted(k uncounted, number *uint64, take func(plain []byte) error) (best []byte, differ []int) {
	var raws [2][]byte
	for i, dir := range l.folders {
		if dir == nil {
			continue
		}
		raw, err := dir.Read(k.name, k.limit)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		raws[i] = raw
		var plain []byte
		var n uint64
		if err == nil {
			plain, n, err = l.decodeUncounted(k, raw)
		}
		if err == nil && cmp.Compare(n, *number) > 0 {
			if err = take(plain); err == nil {
				best, *number = raw, n
			}
		}
		l.cfg.count(k.code, i, err)
	}
	for i, dir := range l.folders {
		if dir != nil && best != nil && !bytes.Equal(raws[i], best) {
			differ = append(differ, i)
		}
	}
	return best, differ
}
