package replay_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sledvault/sledvault/vault/quorum/replay"
)

func ok(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// logs names the recorded logs in testdata/reference: NAME.events.json.gz, with final state and trace beside it.
func logs(tb testing.TB) (out []string) {
	tb.Helper()
	files, err := filepath.Glob("testdata/reference/*.events.json.gz")
	ok(tb, err)
	if len(files) == 0 {
		tb.Fatal("no logs")
	}
	for _, f := range files {
		out = append(out, strings.TrimSuffix(filepath.Base(f), ".events.json.gz"))
	}
	return out
}

func unzip(tb testing.TB, name string) []byte {
	tb.Helper()
	f, err := os.Open(filepath.Join("testdata/reference", name+".gz"))
	ok(tb, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	ok(tb, err)
	b, err := io.ReadAll(z)
	ok(tb, err)
	return b
}

// plain turns a value into what JSON makes of it.
func plain(tb testing.TB, v any) (out any) {
	tb.Helper()
	b, err := json.Marshal(v)
	ok(tb, err)
	ok(tb, json.Unmarshal(b, &out))
	return out
}

// TestReferenceLogs replays logs of the reference: our nodes must send the same messages to the same sleds in the same
// order, answer the same, and end in the same state.
func TestReferenceLogs(t *testing.T) {
	t.Parallel()
	for _, name := range logs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res, err := replay.Run(name, bytes.NewReader(unzip(t, name+".events.json")))
			ok(t, err)
			for i, d := range res.Differences {
				if i < 5 {
					t.Errorf("event %d, %s:\nhave %v\nwant %v", d.Event, d.What, plain(t, d.Have), plain(t, d.Want))
				}
			}
			var want map[string]any
			ok(t, json.Unmarshal(unzip(t, name+".final.json"), &want))
			for key, have := range plain(t, res.Final).(map[string]any) {
				if d := cmp.Diff(want[key], have); d != "" {
					t.Errorf("%s: (-want +have)\n%s", key, d)
				}
			}
		})
	}
}

// traceLine is what the reference has written about one event.
type traceLine struct {
	Event  string
	I      int
	Nodes  map[string]map[string]any
	Result any
	Sent   map[string][]any
}

// TestReferenceTraces compares after every event: what was sent, what a load answered, and which fields of which node have
// changed to what.
func TestReferenceTraces(t *testing.T) {
	t.Parallel()
	for _, name := range logs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rd, rack := replay.NewReader(bytes.NewReader(unzip(t, name+".events.json"))), replay.NewRack()
			lines := bufio.NewScanner(bytes.NewReader(unzip(t, name+".trace.jsonl")))
			lines.Buffer(nil, 1<<20)
			before := map[string]any{}
			for lines.Scan() {
				var want traceLine
				ok(t, json.Unmarshal(lines.Bytes(), &want))
				e, err := rd.Next()
				ok(t, err)
				s, err := rack.Apply(e)
				ok(t, err)
				now := plain(t, rack.Final().Nodes).(map[string]any)
				have := traceLine{s.Name, s.Event, changes(before, now), plain(t, s.Load), sent(t, s)}
				before = now
				if d := cmp.Diff(want, have); d != "" {
					t.Fatalf("event %d: (-want +have)\n%s", want.I, d)
				}
			}
			if _, err := rd.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("the log goes on after the trace: %v", err)
			}
		})
	}
}

// changes lists the fields of nodes that differ.
func changes(before, now map[string]any) map[string]map[string]any {
	out := map[string]map[string]any{}
	for id, n := range now {
		old, _ := before[id].(map[string]any)
		for field, v := range n.(map[string]any) {
			if was, had := old[field]; had && reflect.DeepEqual(was, v) {
				continue
			}
			if out[id] == nil {
				out[id] = map[string]any{}
			}
			out[id][field] = v
		}
	}
	return out
}

// sent lists what an event sent, by destination.
func sent(t *testing.T, s replay.Step) map[string][]any {
	t.Helper()
	out := map[string][]any{}
	for _, m := range s.Sent {
		if m.Lost {
			continue
		}
		msg := plain(t, m.Message()).(map[string]any)
		if c, has := msg["config"].(map[string]any); has {
			delete(c, "rack_id")
		}
		delete(msg, "rack_id")
		out[m.To.String()] = append(out[m.To.String()], map[string]any{"from": m.From.String(), "msg": msg})
	}
	return out
}
