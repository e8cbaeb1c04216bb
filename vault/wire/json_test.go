package wire

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// TestReferenceLedgers reads and writes every configuration of the reference's ledger files.
func TestReferenceLedgers(t *testing.T) {
	t.Parallel()
	var v struct {
		Cases []struct {
			Name   string
			Ledger string `json:"ledger_file"`
		}
	}
	loadJSON(t, "persistent.json", &v)
	n := 0
	for _, c := range v.Cases {
		var l struct {
			State struct{ Configs []json.RawMessage }
		}
		if err := json.Unmarshal([]byte(c.Ledger), &l); err != nil {
			t.Fatal(err)
		}
		for _, raw := range l.State.Configs {
			n++
			cfg, err := DecodeConfigurationJSON(raw)
			if err != nil {
				t.Errorf("%s: %v", c.Name, err)
				continue
			}
			if have, err := EncodeConfigurationJSON(cfg); err != nil || string(have) != string(raw) {
				t.Errorf("%s: %v\nhave %s\nwant %s", c.Name, err, have, raw)
			}
			// The same configuration in CBOR.
			m := mustDecode(t, mustEncode(t, TQ{quorum.Message{RackID: cfg.RackID, Kind: quorum.CommitAdvance{Config: cfg}}}))
			if !m.(TQ).Kind.(quorum.CommitAdvance).Config.Equal(cfg) {
				t.Errorf("%s: CBOR and JSON disagree", c.Name)
			}
		}
	}
	if n < 15 {
		t.Errorf("have %d configurations, want 15 or more", n)
	}
}

func TestConfigurationJSON(t *testing.T) {
	t.Parallel()
	good, err := EncodeConfigurationJSON(config2())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"rack_id":"00112233-4455-4677-8899-aabbccddeeff","epoch":300,"coordinator":{"part_number":"p","serial_number":"1"},"members":[` +
		`[{"part_number":"p","serial_number":"1"},"` + strings.Repeat("a1", 32) + `"],[{"part_number":"p","serial_number":"2"},"` + strings.Repeat("a2", 32) + `"],` +
		`[{"part_number":"p","serial_number":"3"},"` + strings.Repeat("a3", 32) + `"]],"threshold":2,"encrypted_rack_secrets":{"salt":"` + strings.Repeat("5a", 32) + `","data":"0001feff"}}`
	if string(good) != want {
		t.Errorf("have %s\nwant %s", good, want)
	}
	for _, c := range []struct {
		from, to string
		code     reason.Code
	}{
		{`"epoch":300,`, `  "epoch" : 300 , `, ""},
		{`"epoch":300,"coordinator":{"part_number":"p","serial_number":"1"}`, `"coordinator":{"serial_number":"1","part_number":"p"},"epoch":300`, ""},
		{`"epoch":300`, `"Epoch":300`, CodeUnknownKey},
		{`"epoch":300`, `"epoch":300,"epoch":300`, CodeDuplicate},
		{`"epoch":300`, `"epoch":300,"x":1`, CodeUnknownKey},
		{`"epoch":300,`, ``, CodeMissing},
		{`"epoch":300`, `"epoch":"300"`, CodeType},
		{`"epoch":300`, `"epoch":-1`, CodeType},
		{`"epoch":300`, `"epoch":1.5`, CodeType},
		{`"epoch":300`, `"epoch":null`, CodeType},
		{`"epoch":300`, `"epoch":18446744073709551616`, CodeType},
		{`"threshold":2`, `"threshold":256`, CodeType},
		{`,"encrypted_rack_secrets"`, `,"secrets"`, CodeUnknownKey},
		{`aabbccddeeff"`, `AABBCCDDEEFF"`, CodeText},
		{`00112233-4455`, `001122334455`, CodeText},
		{strings.Repeat("a1", 32), strings.Repeat("A1", 32), CodeText},
		{strings.Repeat("a1", 32), strings.Repeat("a1", 31), CodeLength},
		{`"0001feff"`, `"0001fef"`, CodeText},
		{`"0001feff"`, `""`, ""},
		{`"data":"0001feff"`, `"data":"00","data":"01"`, CodeDuplicate},
		{`{"salt":"` + strings.Repeat("5a", 32) + `","data":"0001feff"}`, `null`, ""},
		{`{"salt":"` + strings.Repeat("5a", 32) + `","data":"0001feff"}`, `[]`, CodeType},
		{`[{"part_number":"p","serial_number":"2"}`, `[{"part_number":"p","serial_number":"1"}`, CodeDuplicate},
		{`[{"part_number":"p","serial_number":"2"}`, `[{"part_number":"p","serial_number":"4"}`, CodeOrder},
		{`[{"part_number":"p","serial_number":"2"}`, `[{"part_number":"p","serial_number":""}`, CodeText},
		{`[{"part_number":"p","serial_number":"2"},`, `["p:2",`, CodeType},
		{`[{"part_number":"p","serial_number":"2"},`, `[0,{"part_number":"p","serial_number":"2"},`, CodeLength},
		{`"members":[`, `"members":{`, CodeType},
		{`}}`, `}`, CodeShort},
		{`}}`, `}} x`, CodeTrailing},
		{`{"rack_id"`, `["rack_id"`, CodeType},
	} {
		in := strings.Replace(want, c.from, c.to, 1)
		if in == want {
			t.Fatalf("%s: nothing replaced", c.from)
		}
		_, err := DecodeConfigurationJSON([]byte(in))
		if have := reason.CodeOf(err); have != c.code && !(c.code == CodeShort && err != nil) || (err == nil) != (c.code == "") {
			t.Errorf("%s -> %s: have %q (%v), want %q", c.from, c.to, have, err, c.code)
		}
	}
	// Inside other JSON.
	var outer struct{ A, B ConfigurationJSON }
	if err := json.Unmarshal([]byte(`{"A":`+want+`,"B":null}`), &outer); err != nil || !outer.A.Equal(config2()) || outer.B.Configuration != nil {
		t.Errorf("%v: have %+v", err, outer)
	}
	if b, err := json.Marshal(outer); err != nil || string(b) != `{"A":`+want+`,"B":null}` {
		t.Errorf("%v: have %s", err, b)
	}
	if _, err := DecodeConfigurationJSON(make([]byte, MaxPayload+1)); reason.CodeOf(err) != CodeTooLarge {
		t.Errorf("have %v, want %s", err, CodeTooLarge)
	}
}
