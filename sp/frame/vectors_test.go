package frame

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"testing"
)

// vectors is the part of testdata/host-sp.json that these tests drive.
type vectors struct {
	Constants  map[string]any `json:"constants"`
	Fletcher16 []struct{ Name, Data, Value, Wire string }
	Cobs       []struct {
		Name, Raw, Encoded string
		Alt                string `json:"encoded_alt"`
	}
	CobsInvalid []struct{ Name, Frame string } `json:"cobs_invalid"`
	Messages    []struct {
		Name, Direction      string
		Message, Frame, Wire string
		CodecOnly            bool   `json:"codec_only"`
		Alt                  string `json:"frame_alt"`
		Fields               struct {
			Version  any
			Sequence string
			Command  uint8
			Variant  string
		}
	}
	MalformedHost []struct {
		Name, Input string
		State       string  `json:"sp_state"`
		Reason      *Reason `json:"reason"`
		Repeat      struct {
			Byte  string
			Count int
		} `json:"input_repeat"`
	} `json:"malformed_host_to_sp"`
	MalformedSP []struct{ Name, Wire, Action string } `json:"malformed_sp_to_host"`
	HostStreams []struct {
		Name   string
		Chunks []string
		Frames []struct{ Message, Error string }
		Left   int `json:"left_over"`
	} `json:"host_receive_streams"`
	Baud struct {
		Cases []struct {
			TxBaud   int `json:"tx_baud"`
			RxBaud   int `json:"rx_baud"`
			Received string
			Drop     stream `json:"errors_dropped"`
			Pass     stream `json:"errors_passed"`
		}
	} `json:"baud_mismatch"`
	Identity []struct {
		Name, Payload, Display, Error string
		Board                         struct {
			Part   string `json:"part_number"`
			Serial string `json:"serial_number"`
		} `json:"baseboard_id"`
	}
}

type stream struct {
	Bytes  string
	Frames []struct{ Message, Error string }
	Left   int `json:"left_over"`
}

func load(t *testing.T) vectors {
	t.Helper()
	raw, err := os.ReadFile("testdata/host-sp.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func number(t *testing.T, v any) uint64 {
	t.Helper()
	switch v := v.(type) {
	case float64:
		return uint64(v)
	case string:
		n, err := strconv.ParseUint(v, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatalf("not a number: %v", v)
	return 0
}

func TestConstants(t *testing.T) {
	v := load(t)
	for name, have := range map[string]uint64{
		"magic": uint64(Magic), "version": uint64(Version), "reply_bit": ReplyBit, "decode_failure_sequence": FailureSeq,
		"header_len": HeaderLen, "checksum_len": ChecksumLen, "min_message_len": MinMessage, "max_message_len": MaxMessage,
		"sp_max_frame_len_with_terminator": MaxFrame + 1, "max_data_len_no_fixed_fields": MaxBody,
		"sp_to_host_max_fixed_len": IdentityLen + 1,
	} {
		if want := number(t, v.Constants[name]); have != want {
			t.Errorf("%s: have %d, want %d", name, have, want)
		}
	}
}

func TestChecksumVectors(t *testing.T) {
	for _, c := range load(t).Fletcher16 {
		if have, want := Checksum(unhex(t, c.Data)), number(t, c.Value); uint64(have) != want {
			t.Errorf("%s: have %04x, want %04x", c.Name, have, want)
		}
	}
}

func TestCOBSVectors(t *testing.T) {
	v := load(t)
	for _, c := range v.Cobs {
		raw := unhex(t, c.Raw)
		if have := append(AppendCOBS(nil, raw), 0); hex.EncodeToString(have) != c.Encoded {
			t.Errorf("%s: have %x, want %s", c.Name, have, c.Encoded)
		}
		for _, form := range []string{c.Encoded, c.Alt} {
			if form == "" {
				continue
			}
			f := unhex(t, form)
			have, err := DecodeCOBS(nil, f[:len(f)-1])
			if err != nil || !bytes.Equal(have, raw) {
				t.Errorf("%s: decoded %x, %v", c.Name, have, err)
			}
		}
	}
	for _, c := range v.CobsInvalid {
		f := unhex(t, c.Frame)
		if _, err := DecodeCOBS(nil, f[:len(f)-1]); !errors.Is(err, ErrCOBS) {
			t.Errorf("%s: have %v, want %v", c.Name, err, ErrCOBS)
		}
	}
}

func TestMessageVectors(t *testing.T) {
	for _, c := range load(t).Messages {
		t.Run(c.Name, func(t *testing.T) {
			msg, f := unhex(t, c.Message), unhex(t, c.Frame)
			seq, version := number(t, c.Fields.Sequence), uint32(number(t, c.Fields.Version))
			body := msg[bodyAt : len(msg)-ChecksumLen]
			var have []byte
			var err error
			var name string
			if c.Direction == "host_to_sp" {
				have, err = AppendRequest(nil, Request{version, seq, Command(c.Fields.Command), body})
				name = Command(c.Fields.Command).String()
			} else {
				have, err = AppendReply(nil, Reply{version, seq, ReplyKind(c.Fields.Command), body})
				name = ReplyKind(c.Fields.Command).String()
			}
			if err != nil || !bytes.Equal(have, f) {
				t.Fatalf("encoded %x, %v; want %x", have, err, f)
			}
			if name != c.Fields.Variant {
				t.Errorf("name: have %s, want %s", name, c.Fields.Variant)
			}
			if c.CodecOnly {
				return
			}
			forms := [][]byte{f}
			if c.Alt != "" {
				forms = append(forms, unhex(t, c.Alt))
			}
			for _, f := range forms {
				checkDecode(t, c.Direction, f[:len(f)-1], seq, c.Fields.Command, body)
			}
		})
	}
}

func checkDecode(t *testing.T, direction string, f []byte, seq uint64, number uint8, body []byte) {
	t.Helper()
	if direction == "host_to_sp" {
		r, why := JudgeRequest(f)
		if why != Accepted || r.Seq != seq || uint8(r.Command) != number || !bytes.Equal(r.Body, body) {
			t.Errorf("judged %+v, %v", r, why)
		}
		return
	}
	r, err := DecodeReply(f)
	if err != nil || r.Seq != seq || uint8(r.Kind) != number || !bytes.Equal(r.Body, body) {
		t.Errorf("decoded %+v, %v", r, err)
	}
}

// outcome names what became of a frame, in the words of the vectors.
func outcome(f Frame) (message, problem string) {
	if f.Dropped > 0 {
		return "", "overlong"
	}
	r, err := DecodeReply(f.Bytes)
	switch {
	case errors.Is(err, ErrCOBS):
		return "", "cobs"
	case errors.Is(err, ErrLong):
		return "", "overlong"
	case errors.Is(err, ErrShort):
		return "", "short"
	case errors.Is(err, ErrChecksum):
		return "", "checksum"
	case err != nil:
		return "", "message"
	}
	m, err := r.Message()
	if err != nil {
		return "", "encode"
	}
	return hex.EncodeToString(m), ""
}

func TestHostStreams(t *testing.T) {
	for _, c := range load(t).HostStreams {
		d := NewDeframer(MaxFrame)
		var have []Frame
		for _, chunk := range c.Chunks {
			have = append(have, frames(d, unhex(t, chunk))...)
		}
		if len(have) != len(c.Frames) || d.Pending() != c.Left {
			t.Errorf("%s: have %d frames and %d left, want %d and %d", c.Name, len(have), d.Pending(), len(c.Frames), c.Left)
			continue
		}
		for i, f := range have {
			m, e := outcome(f)
			if m != c.Frames[i].Message || e != c.Frames[i].Error {
				t.Errorf("%s: frame %d: have %s %s, want %+v", c.Name, i, m, e, c.Frames[i])
			}
		}
	}
}

// frames feeds p whole and copies what comes out.
func frames(d *Deframer, p []byte) (out []Frame) {
	for {
		rest, f, ok := d.Next(p)
		if !ok {
			return out
		}
		out = append(out, Frame{bytes.Clone(f.Bytes), f.Dropped})
		p = rest
	}
}

// TestWrongRate shows that no frame is ever accepted at a rate that differs by more than the line tolerates, whether
// or not the receiver drops bytes with framing errors.
func TestWrongRate(t *testing.T) {
	for _, c := range load(t).Baud.Cases {
		c.Pass.Bytes = c.Received
		for _, s := range []stream{c.Drop, c.Pass} {
			d := NewDeframer(MaxFrame)
			have := frames(d, unhex(t, s.Bytes))
			if len(have) != len(s.Frames) || d.Pending() != s.Left {
				t.Errorf("%d/%d: have %d frames, %d left, want %d, %d", c.TxBaud, c.RxBaud, len(have), d.Pending(), len(s.Frames), s.Left)
				continue
			}
			for i, f := range have {
				if m, e := outcome(f); m != s.Frames[i].Message || (e == "") != (s.Frames[i].Error == "") {
					t.Errorf("%d/%d: frame %d: have %s %s, want %+v", c.TxBaud, c.RxBaud, i, m, e, s.Frames[i])
				}
			}
		}
	}
}

func TestIdentityVectors(t *testing.T) {
	for _, c := range load(t).Identity {
		id, err := ParseIdentity(unhex(t, c.Payload))
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if have := hex.EncodeToString(id.Append(nil)); have != c.Payload {
			t.Errorf("%s: appended %s", c.Name, have)
		}
		if c.Error != "" {
			continue
		}
		model, _ := Text(id.Model)
		serial, _ := Text(id.Serial)
		if model != c.Board.Part || serial != c.Board.Serial {
			t.Errorf("%s: have %q %q, want %q %q", c.Name, model, serial, c.Board.Part, c.Board.Serial)
		}
	}
}

func TestMalformedToSP(t *testing.T) {
	for _, c := range load(t).MalformedHost {
		if c.State != "idle" {
			continue // what a busy one does is the simulator's affair
		}
		in := append(bytes.Repeat(unhex(t, c.Repeat.Byte), c.Repeat.Count), unhex(t, c.Input)...)
		if c.Repeat.Count > 0 {
			in = append(in, Terminator)
		}
		want := Accepted
		if c.Reason != nil {
			want = *c.Reason
		}
		for _, f := range frames(NewDeframer(SPBuffer), in) {
			r, have := JudgeRequest(f.Bytes)
			if have == Accepted && r.Command == Unused {
				have = BadDeserialize // accepted so that the answer can echo its sequence
			}
			if have != want {
				t.Errorf("%s: have %v, want %v", c.Name, have, want)
			}
		}
	}
}

func TestMalformedToHost(t *testing.T) {
	const outstanding = 1 | ReplyBit
	for _, c := range load(t).MalformedSP {
		action := "none"
		for _, f := range frames(NewDeframer(MaxFrame), unhex(t, c.Wire)) {
			step := "resend"
			r, err := DecodeReply(f.Bytes)
			switch {
			case f.Dropped > 0 || err != nil || r.Kind == DecodeFailure:
			case r.Seq != outstanding:
				step = "discard_and_keep_listening"
			case r.Kind != IdentityReply:
			case CheckLength(r.Kind, r.Body, IdentityLen) != nil:
				step = "fail"
			default:
				step = "accept"
			}
			if action == "none" {
				action = step
			} else {
				action += ", then " + step
			}
		}
		if action != c.Action {
			t.Errorf("%s: have %s, want %s", c.Name, action, c.Action)
		}
	}
}
