package replay_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/sledvault/sledvault/vault/quorum/replay"
	"github.com/sledvault/sledvault/vault/reason"
)

// id and the pieces below make small logs; N stands for a new line, so that lines can be counted.
const (
	sled0  = `{"part_number":"test","serial_number":"0"}`
	sled1  = `{"part_number":"test","serial_number":"1"}`
	sled2  = `{"part_number":"test","serial_number":"2"}`
	change = `{"op":"Preparing","epoch":1,"last_committed_epoch":null,"coordinator":` + sled0 + `,"members":[` + sled0 + `,` + sled1 + `,` + sled2 +
		`],"threshold":2,"commit_crash_tolerance":0,"prepared_members":[],"committed_members":[]}`
	setup = `{"InitialSetup":{"member_universe_size":3,"config":` + change + `,"crashed_nodes":[]}}`
	nil1  = `00000000-0000-0000-0000-000000000000`
)

func lines(events ...string) string { return "[\n" + strings.Join(events, ",\n") + "\n]\n" }

func envelope(kind string) string {
	return `{"DeliverEnvelope":{"to":` + sled0 + `,"from":` + sled1 + `,"msg":{"rack_id":"` + nil1 + `","kind":` + kind + `}}}`
}

// TestBadLogs: what is wrong with a log is said with its place and a code, and nothing panics.
func TestBadLogs(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("1,", 5000) + "1"
	for name, c := range map[string]struct {
		log  string
		code reason.Code
		line int
		text string
	}{
		"empty file":               {"", replay.CodeTruncated, 1, "the log ends where the array of events should be"},
		"no events":                {"[]", replay.CodeImpossible, 1, "no events"},
		"not JSON":                 {"events", replay.CodeSyntax, 1, `have 'e', want the array of events`},
		"cut off between events":   {"[\n" + setup + ",\n", replay.CodeTruncated, 3, "where event should be"},
		"cut off in an event":      {lines(setup)[:200], replay.CodeTruncated, 2, "the log ends"},
		"cut off in a string":      {"[\n{\"Cra", replay.CodeTruncated, 2, "the end of a string"},
		"no end":                   {"[\n" + setup, replay.CodeTruncated, 2, "a comma or the end of the array"},
		"something after the end":  {lines(setup) + "x", replay.CodeSyntax, 4, "something follows"},
		"unknown event":            {lines(setup, `{"Reboot":1}`), replay.CodeUnknown, 3, `unknown event "Reboot"`},
		"unknown message":          {lines(setup, envelope(`{"Hello":1}`)), replay.CodeUnknown, 3, `unknown message "Hello"`},
		"unknown message word":     {lines(setup, envelope(`"Hello"`)), replay.CodeUnknown, 3, `unknown message "Hello"`},
		"unknown reply":            {lines(setup, `{"DeliverNexusReply":{"Hello":1}}`), replay.CodeUnknown, 3, `unknown reply "Hello"`},
		"unknown stage":            {lines(strings.Replace(setup, "Preparing", "Dreaming", 1)), replay.CodeUnknown, 2, `stage "Dreaming"`},
		"unknown field":            {lines(strings.Replace(setup, "crashed_nodes", "crushed", 1)), replay.CodeSyntax, 2, `unknown field "crushed"`},
		"field missing":            {lines(setup, `{"CrashNode":{"part_number":"test"}}`), replay.CodeSyntax, 3, `"serial_number" is missing`},
		"field twice":              {lines(setup, `{"CrashNode":{"part_number":"a","part_number":"a"}}`), replay.CodeSyntax, 3, `"part_number" twice`},
		"text for a number":        {lines(setup, `{"AbortConfiguration":"1"}`), replay.CodeSyntax, 3, `have '"', want a number`},
		"number for a text":        {lines(setup, `{"CrashNode":{"part_number":1}}`), replay.CodeSyntax, 3, `have '1', want a string`},
		"number for an object":     {lines(setup, `{"CrashNode":1}`), replay.CodeSyntax, 3, `have '1', want an object`},
		"negative":                 {lines(setup, `{"AbortConfiguration":-1}`), replay.CodeSyntax, 3, `have '-'`},
		"fraction":                 {lines(setup, `{"AbortConfiguration":1.5}`), replay.CodeSyntax, 3, "whole number"},
		"leading zero":             {lines(setup, `{"AbortConfiguration":01}`), replay.CodeSyntax, 3, "begins with zero"},
		"too large":                {lines(setup, `{"AbortConfiguration":18446744073709551616}`), replay.CodeSyntax, 3, "too large"},
		"large universe":           {lines(strings.Replace(setup, `size":3`, `size":65`, 1)), replay.CodeSyntax, 2, "at most 64"},
		"unusable name":            {lines(setup, `{"CrashNode":{"part_number":"a:b","serial_number":"0"}}`), replay.CodeSyntax, 3, "baseboard must be"},
		"not UTF-8":                {lines(setup, "{\"CrashNode\":{\"part_number\":\"\xff\"}}"), replay.CodeSyntax, 3, "not UTF-8"},
		"control character":        {lines(setup, "{\"CrashNode\":{\"part_number\":\"\x01\"}}"), replay.CodeSyntax, 3, "control character"},
		"bad escape":               {lines(setup, `{"CrashNode":{"part_number":"\q"}}`), replay.CodeSyntax, 3, "unknown escape"},
		"damaged escape":           {lines(setup, `{"CrashNode":{"part_number":"\u00g0"}}`), replay.CodeSyntax, 3, "damaged escape"},
		"set out of order":         {lines(strings.Replace(setup, `"members":[`+sled0, `"members":[`+sled2, 1)), replay.CodeSyntax, 2, "out of order"},
		"short share":              {lines(setup, envelope(`{"LrtqShare":[1,2,3]}`)), replay.CodeSyntax, 3, "have 3 bytes, want 33"},
		"long share":               {lines(setup, envelope(`{"LrtqShare":[`+long+`]}`)), replay.CodeSyntax, 3, "more than 4096 elements"},
		"load of three":            {lines(setup, `{"LoadRackSecret":[`+sled0+`,1,1]}`), replay.CodeSyntax, 3, "more than two"},
		"load of one":              {lines(setup, `{"LoadRackSecret":[`+sled0+`]}`), replay.CodeSyntax, 3, "have 1 elements"},
		"bad rack id":              {lines(setup, strings.Replace(envelope(`{"GetShare":1}`), nil1, "7", 1)), replay.CodeSyntax, 3, "rack id"},
		"not null":                 {lines(strings.Replace(setup, `epoch":null`, `epoch":nothing`, 1)), replay.CodeSyntax, 2, "want null"},
		"two variants":             {lines(setup, `{"AbortConfiguration":1,"CrashNode":1}`), replay.CodeSyntax, 3, "the end of the event"},
		"old form: word":           {lines(setup, `"DeliverNexusReply"`), replay.CodeOldFormat, 3, "older form"},
		"old form: destination":    {lines(setup, `{"DeliverEnvelope":{"destination":`+sled0+`}}`), replay.CodeOldFormat, 3, `"destination"`},
		"no setup":                 {lines(`{"AbortConfiguration":1}`), replay.CodeImpossible, 2, "begins with a setup"},
		"second setup":             {lines(setup, setup), replay.CodeImpossible, 3, "begins with a setup"},
		"no such sled":             {lines(setup, `{"CrashNode":{"part_number":"test","serial_number":"3"}}`), replay.CodeImpossible, 3, "no sled test:3"},
		"no such sled to restart":  {lines(setup, `{"RestartNode":{"id":`+sled0+`,"connection_order":[{"part_number":"test","serial_number":"3"}]}}`), replay.CodeImpossible, 3, "no sled test:3"},
		"no such member prepared":  {lines(strings.Replace(setup, `"prepared_members":[`, `"prepared_members":[{"part_number":"x","serial_number":"3"}`, 1)), replay.CodeImpossible, 2, "no sled x:3"},
		"older scheme, no members": {lines(`{"InitialSetupLrtq":{"member_universe_size":3,"config":` + strings.Replace(change, sled0+`,`+sled1+`,`+sled2, ``, 1) + `}}`), replay.CodeImpossible, 2, "older scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res, err := replay.Run("a.json", strings.NewReader(c.log))
			at, typed := errors.AsType[*replay.LogError](err)
			if !typed {
				t.Fatalf("have %v, want a LogError", err)
			}
			if reason.CodeOf(err) != c.code || at.Line != c.line || !strings.Contains(err.Error(), c.text) {
				t.Errorf("have %s at line %d: %v", reason.CodeOf(err), at.Line, err)
			}
			if reason.HintOf(err) == "" {
				t.Error("no hint")
			}
			if res.Good() || res.Final != nil || res.Error != at {
				t.Error("the result does not say so")
			}
		})
	}
}

// TestPlace: offset and event are those of the mistake, also far into a log.
func TestPlace(t *testing.T) {
	t.Parallel()
	log := unzip(t, logs(t)[0]+".events.json")
	at := bytes.LastIndex(log, []byte(`"LoadRackSecret"`))
	events := bytes.Count(log[:at], []byte("\n{")) - 1
	bad := bytes.Replace(log, log[at:at+16], []byte(`"LordRackSecret"`), 1)
	bad = append(append([]byte{}, log[:at]...), append([]byte(`"LordRackSecret"`), bad[at+16:]...)...)
	_, err := replay.Run("", bytes.NewReader(bad))
	e, _ := errors.AsType[*replay.LogError](err)
	if e == nil || e.Offset != int64(at+16) || e.Event != events || e.Line != 1+bytes.Count(log[:at], []byte("\n")) {
		t.Errorf("have %+v, want byte %d of event %d", e, at+16, events)
	}
}

// TestPieces: a log that arrives byte by byte is the same log, and a reader's error is passed on.
func TestPieces(t *testing.T) {
	t.Parallel()
	name := logs(t)[0]
	log := unzip(t, name+".events.json")
	want, err := replay.Run("", bytes.NewReader(log))
	ok(t, err)
	have, err := replay.Run("", iotest.OneByteReader(bytes.NewReader(log)))
	ok(t, err)
	if d := cmp.Diff(plain(t, want), plain(t, have)); d != "" {
		t.Errorf("(-want +have)\n%s", d)
	}
	broken := errors.New("broken disk")
	if _, err := replay.Run("", iotest.ErrReader(broken)); !errors.Is(err, broken) || reason.CodeOf(err) != replay.CodeUnreadable {
		t.Errorf("have %v, want %v", err, broken)
	}
}

// TestEscapes: names may be written with escapes.
func TestEscapes(t *testing.T) {
	t.Parallel()
	res, err := replay.Run("", strings.NewReader(lines(setup, `{"CrashNode":{"part_number":"t\u0065st","serial_number":"\u0030"}}`)))
	ok(t, err)
	if len(res.Final.Crashed) != 1 || res.Final.Crashed[0].String() != "test:0" {
		t.Errorf("have %v", res.Final.Crashed)
	}
}

// TestDifferences: a log in which something else happened than our nodes do is replayed to its end, and every difference
// is named.
func TestDifferences(t *testing.T) {
	t.Parallel()
	acks := func(name string) string {
		return `{"` + name + `":{"AckedPreparesFromCoordinator":{"epoch":1,"acks":[` + sled0 + `,` + sled1 + `]}}}`
	}
	for what, event := range map[string]string{
		"envelope":           envelope(`{"GetShare":1}`),
		"acks":               acks("SendNexusReplyOnUnderlay"),
		"reply":              acks("DeliverNexusReply"),
		"abort":              `{"AbortConfiguration":7}`,
		"commit":             `{"CommitConfiguration":` + sled1 + `}`,
		"prepare-and-commit": `{"PrepareAndCommit":` + sled1 + `}`,
		"reconfigure":        `{"Reconfigure":` + strings.Replace(change, `"threshold":2`, `"threshold":3`, 1) + `}`,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			res, err := replay.Run("", strings.NewReader(lines(setup, event, `{"ClearSecrets":`+sled0+`}`)))
			ok(t, err)
			if len(res.Differences) != 1 || res.Differences[0].What != what || res.Differences[0].Event != 1 || res.Good() || res.Events != 3 {
				t.Errorf("have %d events, %+v", res.Events, res.Differences)
			}
		})
	}
}

// TestOneDifference: a message that arrives out of turn is one difference, not the end of the comparison.
func TestOneDifference(t *testing.T) {
	t.Parallel()
	name := "log-22"
	log := strings.Split(string(unzip(t, name+".events.json")), ",\n{")
	for i := range log[:len(log)-1] { // the first two deliveries in a row to one sled, from different sleds
		if to := destination(log[i]); to != "" && to == destination(log[i+1]) && log[i] != log[i+1] && i > 50 {
			log[i], log[i+1] = log[i+1], log[i]
			break
		}
	}
	res, err := replay.Run("", strings.NewReader(strings.Join(log, ",\n{")))
	ok(t, err)
	if n := len(res.Differences); n == 0 || n > 2 {
		t.Errorf("have %d differences, want 1: %+v", n, res.Differences)
	}
}

func destination(event string) string {
	_, to, is := strings.Cut(event, `"DeliverEnvelope"`)
	if !is {
		return ""
	}
	_, to, _ = strings.Cut(to, `"serial_number": `)
	to, _, _ = strings.Cut(to, "\n")
	return to
}

// FuzzRun: whatever the log says, a replay ends with a result or a typed error.
func FuzzRun(f *testing.F) {
	for _, seed := range []string{
		lines(setup), lines(setup, envelope(`{"GetShare":1}`), envelope(`"GetLrtqShare"`), `{"CrashNode":`+sled1+`}`),
		lines(setup, `{"RestartNode":{"id":`+sled0+`,"connection_order":[`+sled1+`]}}`, `{"LoadRackSecret":[`+sled0+`,1]}`),
		lines(`{"InitialSetupLrtq":{"member_universe_size":3,"config":`+change+`}}`, `{"LrtqUpgrade":`+strings.Replace(change, `"epoch":1`, `"epoch":2`, 1)+`}`),
		lines(setup, `{"PrepareAndCommit":`+sled1+`}`, `{"CommitConfiguration":`+sled1+`}`, `{"DeliverNexusReply":{"CommitAck":{"from":`+sled1+`,"epoch":1}}}`),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		res, err := replay.Run("fuzz", bytes.NewReader(log))
		at, typed := errors.AsType[*replay.LogError](err)
		switch {
		case err != nil && (!typed || reason.CodeOf(err) == ""):
			t.Fatalf("untyped error %v", err)
		case err != nil && (at.Offset > int64(len(log)) || at.Line > 1+bytes.Count(log, []byte("\n"))):
			t.Fatalf("place %+v outside of the log", at)
		case err == nil && res.Final == nil:
			t.Fatal("no final state")
		}
		plain(t, res) // whatever it says, it can be written
	})
}
