package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/reason"
)

// MetricsConfig says where metrics are served. They hold no secrets, and whoever reaches the address reads them.
type MetricsConfig struct {
	Listen string `toml:"listen"` // "ip:port"; "" = nowhere
}

// CodeMetrics marks an address for metrics that cannot be opened.
const CodeMetrics reason.Code = "metrics-listen"

// Limits of the metrics server.
const (
	metricsTimeout = 10 * time.Second // for a request to arrive, and for its answer to be taken
	metricsHeader  = 8 << 10          // bytes of a request
)

// listenMetrics opens the address; nil means that metrics are off.
func (d *Daemon) listenMetrics() (serve func(context.Context) error, err error) {
	if d.cfg.Metrics.Listen == "" {
		return nil, nil
	}
	ln, err := net.Listen("tcp", d.cfg.Metrics.Listen)
	if err != nil {
		return nil, reason.Wrap(err, CodeMetrics, "check [metrics] listen in the configuration", "vault: listen for metrics")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write([]byte(d.metrics(r.Context())))
	})
	srv := &http.Server{
		Handler: mux, ReadTimeout: metricsTimeout, WriteTimeout: metricsTimeout, MaxHeaderBytes: metricsHeader,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	srv.SetKeepAlivesEnabled(false)
	return func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
		defer stop()
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("vault: serve metrics: %w", err)
		}
		return nil
	}, nil
}

// metrics is the status in Prometheus' text format.
func (d *Daemon) metrics(ctx context.Context) string {
	s := d.Status(ctx)
	var m metricText
	m.family("sledvault_info", "gauge", "The version that runs.")
	m.sample("sledvault_info", 1, "version", s.Version)
	m.family("sledvault_state", "gauge", "What the sled is to its rack: 1 for the state it is in.")
	for _, st := range []api.State{api.StateStarting, api.StateUnclaimed, api.StateClaimed, api.StateMember, api.StateExpunged, api.StateLostSeal} {
		m.sample("sledvault_state", truth(s.State == st), "state", string(st))
	}
	m.family("sledvault_boot_step", "gauge", "The boot step under way: always 1.")
	m.sample("sledvault_boot_step", 1, "step", s.Boot.Step)
	m.one("sledvault_boot_step_ms", "How long the boot step has been under way, in milliseconds.", s.Boot.SinceMS)
	m.one("sledvault_unlocked_ms", "From the start of the process until every formatted disk was open, in milliseconds; 0 before.", s.Boot.MSToUnlocked)
	m.reasons(s.Reasons)
	m.family("sledvault_alarms", "gauge", "Alarms, by kind: things that cannot happen in a healthy rack.")
	m.counts("sledvault_alarms", "kind", tally(s.Alarms, func(a api.Alarm) string { return a.Kind }))
	m.family("sledvault_disks", "gauge", "Configured disks, by state.")
	m.counts("sledvault_disks", "state", tally(s.Disks, func(k api.Disk) string { return k.State }))
	if q := s.Quorum; q != nil {
		m.one("sledvault_peers_connected", "Peers that are connected and have proved themselves.", float64(len(q.ConnectedPeers)))
		m.one("sledvault_members", "Members of the newest committed configuration.", float64(len(q.Members)))
		m.one("sledvault_threshold", "Shares that are needed.", float64(q.Threshold))
		m.one("sledvault_proxied_requests", "Requests that this sled has passed on to peers and waits for.", float64(q.ProxiedRequests))
		if n := len(q.Commits); n > 0 {
			m.one("sledvault_epoch", "The newest committed epoch.", float64(q.Commits[n-1]))
		}
	}
	if s.Network != nil {
		m.one("sledvault_network_config_generation", "Generation of the rack's network configuration.", float64(s.Network.Generation))
	}
	if st := d.getStore(); st != nil {
		l := st.ledger.Status()
		m.one("sledvault_ledger_sequence", "Sequence of the sealed ledger: the TPM's counter.", float64(l.Sequence))
		m.one("sledvault_ledger_degraded", "1 if a copy of the ledger is missing, damaged or could not be written.", truth(l.Degraded))
	}
	m.family("sledvault_relaxation", "gauge", "1 for each relaxation in force.")
	for _, name := range s.Relaxed {
		m.sample("sledvault_relaxation", 1, "name", name)
	}
	m.family("sledvault_hardening", "gauge", "Measures that protect the process: 1 in force, 0 not.")
	for _, h := range s.Hardening {
		m.sample("sledvault_hardening", truth(h.OK), "name", h.Name)
	}
	mem := d.alloc.Stats()
	m.one("sledvault_secret_pages_bytes", "Memory mapped for secrets.", float64(mem.Pages*mem.PageSize))
	m.one("sledvault_secret_bytes", "Memory for secrets in use.", float64(mem.InUse))
	return m.String()
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func tally[T any](in []T, key func(T) string) map[string]float64 {
	out := map[string]float64{}
	for _, v := range in {
		out[key(v)]++
	}
	return out
}

// metricText writes families one after another.
type metricText struct{ strings.Builder }

func (m *metricText) family(name, kind, help string) {
	_, _ = fmt.Fprintf(m, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one value, with one label.
func (m *metricText) sample(name string, v float64, label, value string) {
	_, _ = fmt.Fprintf(m, "%s{%s=\"%s\"} %v\n", name, label, strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value), v)
}

// one is a family of one value without labels.
func (m *metricText) one(name, help string, v float64) {
	m.family(name, "gauge", help)
	_, _ = fmt.Fprintf(m, "%s %v\n", name, v)
}

func (m *metricText) counts(name, label string, of map[string]float64) {
	for _, k := range slices.Sorted(maps.Keys(of)) {
		m.sample(name, of[k], label, k)
	}
}

// reasons are added up over peers: strangers must not be able to make series.
func (m *metricText) reasons(in []reason.Entry) {
	sum, routine := map[string]float64{}, map[string]float64{}
	for _, e := range in {
		to := sum
		if e.Routine {
			to = routine
		}
		to[string(cmp.Or(e.Code, api.CodeInternal))] += float64(e.Count)
	}
	m.family("sledvault_routine_total", "counter", "Messages that were late or not needed, as between honest peers, by reason code.")
	m.counts("sledvault_routine_total", "code", routine)
	m.family("sledvault_reasons_total", "counter", "Refusals, drops and failures, by reason code (operations.md).")
	m.counts("sledvault_reasons_total", "code", sum)
}
