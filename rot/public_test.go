package rot_test

import (
	"os"
	"testing"

	"github.com/sledvault/sledvault/rot"
)

// TestPublicLogs: logs of real firmware parse, and explain the registers that they give. Every byte that is cut off or
// every event that is dropped is noticed.
func TestPublicLogs(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		events, authorities int
		secureBoot          bool
	}{
		"rhel8-uefi":             {82, 2, true},
		"arch-linux-workstation": {24, 0, false},
		"eventlogwithsp800155":   {51, 4, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile("testdata/public/" + name + ".bin")
			if err != nil {
				t.Fatal(err)
			}
			l := parse(t, b)
			quoted := l.Replay()
			if err := l.Explains(quoted, nil); err != nil {
				t.Fatal(err)
			}
			s, err := l.SecureBoot()
			if err != nil || len(l.Events) != want.events || s.Enabled != want.secureBoot || s.Authorities != want.authorities {
				t.Errorf("have %d events, %+v, %v", len(l.Events), s, err)
			}
			for i := range l.Events {
				less := &rot.EventLog{Events: append(append([]rot.Event{}, l.Events[:i]...), l.Events[i+1:]...), Locality: l.Locality}
				if err := less.Explains(quoted, nil); err == nil {
					t.Errorf("event %d is missing unnoticed", i)
				}
			}
			for cut := 1; cut < 200; cut++ {
				if short, err := rot.ParseEventLog(b[:len(b)-cut]); err == nil && short.Explains(quoted, nil) == nil {
					t.Errorf("%d bytes are missing unnoticed", cut)
				}
			}
		})
	}
	b, err := os.ReadFile("testdata/public/debian-10.bin")
	if err != nil {
		t.Fatal(err)
	}
	_, err = rot.ParseEventLog(b)
	wantCode(t, err, rot.CodeEventLog)
}
