package channel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/reason"
)

// The limits of the frames' bodies in bytes (evidence.md §9).
const (
	maxHello   = 512
	maxVerdict = 256
	maxSet     = enroll.MaxSet
)

const (
	version         = 1
	maxCapabilities = 16
	maxText         = 64
)

// hello opens the exchange, in both directions: frames 1 and 2.
type hello struct {
	Version       uint64   `cbor:"1,keyasint"`
	Nonce         [32]byte `cbor:"2,keyasint"`
	Capabilities  []string `cbor:"3,keyasint"`
	SetGeneration uint64   `cbor:"4,keyasint"`
	SetDigest     [32]byte `cbor:"5,keyasint"`
}

// verdict ends it: frames 5 and 6.
type verdict struct {
	Accepted bool   `cbor:"1,keyasint"`
	Code     string `cbor:"2,keyasint"`
}

func encMode() cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	m, err := o.EncMode()
	if err != nil {
		panic("channel: encoding options: " + err.Error())
	}
	return m
}

func decMode() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, UTF8: cbor.UTF8RejectInvalid,
		MaxNestedLevels: 4, MaxArrayElements: maxCapabilities, MaxMapPairs: 16,
	}.DecMode()
	if err != nil {
		panic("channel: decoding options: " + err.Error())
	}
	return m
}

// decode reads one value in its deterministic encoding and nothing else.
func decode(b []byte, into any) error {
	if err := decMode().Unmarshal(b, into); err != nil {
		return err
	}
	again, err := encMode().Marshal(into)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, again) {
		return errors.New("not the deterministic encoding")
	}
	return nil
}

func decodeHello(b []byte) (hello, error) {
	var h hello
	if err := decode(b, &h); err != nil {
		// A newer version may carry more keys: say so rather than "malformed".
		var v struct {
			Version uint64 `cbor:"1,keyasint"`
		}
		if cbor.Unmarshal(b, &v) == nil && v.Version > version {
			return h, refuse(CodeVersion, "hello: have version %d, want %d", v.Version, version)
		}
		return h, refuse(CodeFrame, "hello: %.120s", err)
	}
	if h.Version != version {
		return h, refuse(CodeVersion, "hello: have version %d, want %d", h.Version, version)
	}
	for _, c := range h.Capabilities {
		if !plain(c) {
			return h, refuse(CodeFrame, "hello: capability is not 1 to %d plain characters", maxText)
		}
	}
	return h, nil
}

func decodeVerdict(b []byte) (verdict, error) {
	var v verdict
	if err := decode(b, &v); err != nil {
		return v, refuse(CodeFrame, "verdict: %.120s", err)
	}
	if !plain(v.Code) && v.Code != "" || v.Accepted && v.Code != "" {
		return v, refuse(CodeFrame, "verdict: malformed reason code")
	}
	return v, nil
}

// plain says that a text of a stranger may stand in logs and status.
func plain(s string) bool {
	return len(s) > 0 && len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("-/._", r)
	})
}

// verdictOf is what the other side may learn about a refusal: its code, nothing else.
func verdictOf(err error) verdict {
	code := string(reason.CodeOf(err))
	if !plain(code) {
		code = string(CodeConfig)
	}
	return verdict{Code: code}
}

// writeFrame sends a length and a body in one write.
func writeFrame(w io.Writer, body []byte) error {
	b := make([]byte, 0, 4+len(body))
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	_, err := w.Write(append(b, body...))
	return err
}

func writeValue(w io.Writer, limit int, v any) error {
	b, err := encMode().Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > limit {
		return fmt.Errorf("frame: have %d bytes, want at most %d", len(b), limit)
	}
	return writeFrame(w, b)
}

// readFrame reads one body of 1 to limit bytes. Memory grows with what has arrived, not with what was announced.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || int64(n) > int64(limit) {
		return nil, refuse(CodeFrame, "frame: have %d bytes, want 1 to %d", n, limit)
	}
	var body bytes.Buffer
	body.Grow(int(min(n, 32<<10)))
	if _, err := io.CopyN(&body, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return body.Bytes(), nil
}

// maxEvidenceFrame bounds frames 3 and 4.
const maxEvidenceFrame = rot.MaxEvidence
