package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/wire"
)

// Limits of a ledger file, in bytes unless said otherwise. They hold before anything is allocated.
const (
	MaxFile      = wire.MaxState + 64<<10
	maxBlob      = 2048
	maxCipher    = wire.MaxState + 1 + tagLen
	maxApprovals = 8 // count
	maxApproval  = 1024
)

const (
	ledgerMagic = "svledger"
	version1    = 1
	nonceLen    = 24
	tagLen      = 16
	sumLen      = sha256.Size
)

// File is the outside of one copy of the ledger (ledger.md §3). Everything but the ciphertext is in clear: it is needed
// before the seal is open. None of it is secret, and none of it is believed before the ciphertext has been opened with
// it as associated data and the TPM has accepted blob and approval.
type File struct {
	Rack       ident.RackID
	Baseboard  ident.Baseboard
	Epoch      ident.Epoch // of the newest commit, 0 before the first
	Sequence   uint64
	Generation uint64
	Blob       []byte   // what package sealing made; opaque here
	Approvals  [][]byte // one per platform state that may open the blob; opaque here
	Nonce      [nonceLen]byte
	Ciphertext []byte // with tag
}

var errFormat = errors.New("ledger: file format")

func formatError(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errFormat}, args...)...)
}

// AppendTo encodes the file. It refuses what [DecodeFile] would refuse.
func (f *File) AppendTo(b []byte) ([]byte, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	start := len(b)
	b = append(b, ledgerMagic...)
	b = binary.BigEndian.AppendUint16(b, version1)
	b = append(b, f.Rack[:]...)
	b = append16(b, []byte(f.Baseboard.Part))
	b = append16(b, []byte(f.Baseboard.Serial))
	b = binary.BigEndian.AppendUint64(b, uint64(f.Epoch))
	b = binary.BigEndian.AppendUint64(b, f.Sequence)
	b = binary.BigEndian.AppendUint64(b, f.Generation)
	b = append16(b, f.Blob)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.Approvals)))
	for _, a := range f.Approvals {
		b = append16(b, a)
	}
	b = append(b, f.Nonce[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Ciphertext)))
	b = append(b, f.Ciphertext...)
	sum := sha256.Sum256(b[start:])
	return append(b, sum[:]...), nil
}

func (f *File) validate() error {
	switch {
	case f.Baseboard.Validate() != nil:
		return formatError("%v", f.Baseboard.Validate())
	case len(f.Blob) == 0 || len(f.Blob) > maxBlob:
		return formatError("blob of %d bytes, want 1 to %d", len(f.Blob), maxBlob)
	case len(f.Approvals) == 0 || len(f.Approvals) > maxApprovals:
		return formatError("%d approvals, want 1 to %d", len(f.Approvals), maxApprovals)
	case len(f.Ciphertext) <= tagLen || len(f.Ciphertext) > maxCipher:
		return formatError("ciphertext of %d bytes, want %d to %d", len(f.Ciphertext), tagLen+1, maxCipher)
	case f.Sequence == 0:
		return formatError("sequence 0")
	}
	for _, a := range f.Approvals {
		if len(a) == 0 || len(a) > maxApproval {
			return formatError("approval of %d bytes, want 1 to %d", len(a), maxApproval)
		}
	}
	return nil
}

// DecodeFile reads one copy. Whatever is not exactly what [File.AppendTo] writes is refused; a checksum tells a torn
// write from everything else. Slices of the result point into b.
func DecodeFile(b []byte) (*File, error) {
	if len(b) > MaxFile {
		return nil, formatError("%d bytes, want at most %d", len(b), MaxFile)
	}
	if len(b) < len(ledgerMagic)+2+sumLen || string(b[:len(ledgerMagic)]) != ledgerMagic {
		return nil, formatError("no ledger: wrong first bytes")
	}
	if v := binary.BigEndian.Uint16(b[len(ledgerMagic):]); v != version1 {
		return nil, formatError("version %d, want %d: written by a newer release?", v, version1)
	}
	body := b[:len(b)-sumLen]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[len(body):]) {
		return nil, formatError("checksum mismatch: torn or damaged")
	}
	f, r := &File{}, reader{b: body[len(ledgerMagic)+2:]}
	copy(f.Rack[:], r.take(16))
	f.Baseboard.Part = string(r.take16(ident.MaxField))
	f.Baseboard.Serial = string(r.take16(ident.MaxField))
	f.Epoch = ident.Epoch(r.u64())
	f.Sequence = r.u64()
	f.Generation = r.u64()
	f.Blob = r.take16(maxBlob)
	for range r.count(maxApprovals) {
		f.Approvals = append(f.Approvals, r.take16(maxApproval))
	}
	copy(f.Nonce[:], r.take(nonceLen))
	f.Ciphertext = r.take32(MaxFile / 2)
	if err := r.end(); err != nil {
		return nil, err
	}
	return f, f.validate()
}

// associatedData is what the ciphertext is bound to, each part with its length (ledger.md §4).
func (f *File) associatedData() []byte {
	u64 := func(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
	ad := make([]byte, 0, 256)
	for _, part := range [][]byte{
		binary.BigEndian.AppendUint16(nil, version1), u64(f.Sequence), u64(f.Generation), f.Rack[:], u64(uint64(f.Epoch)),
		[]byte(f.Baseboard.Part), []byte(f.Baseboard.Serial),
	} {
		ad = append16(ad, part)
	}
	return ad
}

func append16(b, part []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(part))), part...)
}

// reader takes fields off a byte slice; after the first error all results are empty.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err == nil && len(r.b) < n {
		r.err = formatError("field of %d bytes, have %d", n, len(r.b))
	}
	if r.err != nil {
		return make([]byte, min(n, 32))
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) count(limit int) int {
	return r.bounded(int(binary.BigEndian.Uint16(r.take(2))), limit)
}

func (r *reader) bounded(n, limit int) int {
	if n > limit && r.err == nil {
		r.err = formatError("length %d, want at most %d", n, limit)
	}
	if r.err != nil {
		return 0
	}
	return n
}

func (r *reader) take16(limit int) []byte { return r.take(r.count(limit)) }

func (r *reader) take32(limit int) []byte {
	return r.take(r.bounded(int(binary.BigEndian.Uint32(r.take(4))), limit))
}

func (r *reader) end() error {
	if r.err == nil && len(r.b) != 0 {
		r.err = formatError("%d trailing bytes", len(r.b))
	}
	return r.err
}
