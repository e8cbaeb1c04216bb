package vault_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// TestMetrics: every line is of Prometheus' text format, and the figures are the status's.
func TestMetrics(t *testing.T) {
	t.Parallel()
	r := newRack(t, 3)
	s := r.sleds[0]
	s.cfg.Metrics.Listen = fmt.Sprintf("%s%d:12351", r.net, 1)
	must(t, s.cfg.Validate())
	for _, s := range r.sleds {
		s.start()
	}
	r.enroll()
	r.init()
	s.await("two peers", func(s *testSled) bool { q := s.status().Quorum; return q != nil && len(q.ConnectedPeers) == 2 })
	text := scrape(t, s.cfg.Metrics.Listen)
	for _, want := range []string{
		`sledvault_state{state="member"} 1`, `sledvault_state{state="lost-seal"} 0`, `sledvault_peers_connected 2`, `sledvault_members 3`,
		`sledvault_threshold 2`, `sledvault_epoch 1`, `sledvault_disks{state="unformatted"} 1`, `sledvault_relaxation{name="software-tpm"} 1`,
		`sledvault_ledger_degraded 0`, `sledvault_info{version="test"} 1`, `sledvault_hardening{name="no-core-files"} 1`,
	} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	seq := regexp.MustCompile(`(?m)^sledvault_ledger_sequence ([1-9][0-9]*)$`)
	if !seq.MatchString(text) {
		t.Error("no ledger sequence")
	}
	family := ""
	line := regexp.MustCompile(`^([a-z_]+)(\{[a-z]+="([^"\\]|\\.)*"\})? [0-9.e+]+$`)
	for l := range strings.Lines(text[1:]) {
		l = strings.TrimSuffix(l, "\n")
		if rest, ok := strings.CutPrefix(l, "# TYPE "); ok {
			family, _, _ = strings.Cut(rest, " ")
			continue
		}
		if m := line.FindStringSubmatch(l); !strings.HasPrefix(l, "# HELP ") && (m == nil || m[1] != family) {
			t.Errorf("in family %s: %q", family, l)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	if code, _, _ := get(t, s.cfg.Metrics.Listen, "/v1/status"); code != http.StatusNotFound {
		t.Errorf("another path: have HTTP status %d, want %d", code, http.StatusNotFound)
	}
	s.stop()
	if c, err := net.Dial("tcp", s.cfg.Metrics.Listen); err == nil {
		_ = c.Close()
		t.Error("something still listens after the end")
	}
}

func scrape(t *testing.T, addr string) string {
	t.Helper()
	code, kind, text := get(t, addr, "/metrics")
	if code != http.StatusOK || !strings.HasPrefix(kind, "text/plain; version=0.0.4") {
		t.Fatalf("have HTTP status %d, %s", code, kind)
	}
	return "\n" + text
}

func get(t *testing.T, addr, path string) (code int, kind, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, http.NoBody)
	must(t, err)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	must(t, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(b)
}
