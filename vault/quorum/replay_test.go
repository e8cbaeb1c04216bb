package quorum_test

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/reference"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// TestReferenceLogs replays logs that the reference's property test has written: every message that it delivered must be
// the newest one on our wire too, every answer the same, and at the end every node must be in the same state. Shares and
// secrets are random in both, so only their numbers are compared. testdata/reference holds events and final states.
func TestReferenceLogs(t *testing.T) {
	t.Parallel()
	logs, err := filepath.Glob("testdata/reference/*.events.json.gz")
	ok(t, err)
	if len(logs) == 0 {
		t.Fatal("no logs")
	}
	for _, f := range logs {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".events.json.gz"), func(t *testing.T) {
			t.Parallel()
			var events []map[string]json.RawMessage
			unzip(t, f, &events)
			r := &replay{t: t, wire: map[ident.Baseboard][]letter{}, down: map[ident.Baseboard]bool{}, nodes: map[ident.Baseboard]*quorum.Node{}}
			for i, e := range events {
				for name, payload := range e {
					r.event = fmt.Sprintf("event %d %s", i, name)
					r.play(name, payload)
				}
			}
			var final struct{ Nodes map[string]finalNode }
			unzip(t, strings.Replace(f, ".events.", ".final.", 1), &final)
			for id, want := range final.Nodes {
				if have := r.final(id); !reflect.DeepEqual(have, want) {
					t.Errorf("%s: have %+v, want %+v", id, have, want)
				}
			}
		})
	}
}

func unzip(t *testing.T, file string, into any) {
	t.Helper()
	f, err := os.Open(file)
	ok(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	ok(t, err)
	ok(t, json.NewDecoder(z).Decode(into))
}

type replay struct {
	t      *testing.T
	event  string
	ids    []ident.Baseboard // in the order of the log's universe
	nodes  map[ident.Baseboard]*quorum.Node
	down   map[ident.Baseboard]bool
	wire   map[ident.Baseboard][]letter // newest last
	latest refConfig
	acked  []ident.Baseboard
	boots  byte
}

type letter struct {
	from ident.Baseboard
	m    quorum.Message
}

type refID struct {
	Part   string `json:"part_number"`
	Serial string `json:"serial_number"`
}

func (r refID) id() ident.Baseboard { return ident.Baseboard(r) }

type refConfig struct {
	Epoch         ident.Epoch
	LastCommitted *ident.Epoch `json:"last_committed_epoch"`
	Coordinator   refID
	Members       []refID
	Threshold     ident.Threshold
}

func (r *replay) fatalf(format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf("%s: %s", r.event, fmt.Sprintf(format, args...))
}

func (r *replay) decode(b json.RawMessage, into any) {
	r.t.Helper()
	if err := json.Unmarshal(b, into); err != nil {
		r.fatalf("%v", err)
	}
}

func (r *replay) id(b json.RawMessage) ident.Baseboard {
	var id refID
	r.decode(b, &id)
	return id.id()
}

func (r *replay) boot(id ident.Baseboard, st quorum.State) {
	r.boots++
	n, err := quorum.New(quorum.Config{Authority: reference.Authority{}, ID: id, Rand: rand.NewChaCha8([32]byte{r.boots}), Alloc: secret.Heap{}}, st)
	ok(r.t, err)
	r.nodes[id] = n
}

// do gives a node an input and puts what it sends on the wire. A sled that is down gets no mail.
func (r *replay) do(id ident.Baseboard, in quorum.Input) (quorum.Effects, error) {
	r.t.Helper()
	out, err := r.nodes[id].Step(in)
	if err != nil {
		return quorum.Effects{}, err
	}
	fx, err := out.Durable(func(quorum.State) error { return nil })
	ok(r.t, err)
	for _, e := range fx.Send {
		if !r.down[e.To] {
			r.wire[e.To] = append(r.wire[e.To], letter{id, e.Message})
		}
	}
	if len(fx.Alarms) > 0 {
		r.fatalf("%s is alarmed: %+v", id, fx.Alarms)
	}
	return fx, nil
}

func (r *replay) must(id ident.Baseboard, in quorum.Input) {
	r.t.Helper()
	if _, err := r.do(id, in); err != nil {
		r.fatalf("%s: %v", id, err)
	}
}

func (r *replay) play(name string, payload json.RawMessage) {
	switch name {
	case "InitialSetup":
		r.setup(payload)
	case "DeliverEnvelope":
		r.deliver(payload)
	case "LoadRackSecret":
		r.load(payload)
	case "ClearSecrets":
		r.must(r.id(payload), quorum.ClearSecrets{})
	case "CommitConfiguration":
		r.must(r.id(payload), quorum.Commit{Epoch: r.latest.Epoch})
	case "Reconfigure":
		r.latest, r.acked = refConfig{}, nil
		r.decode(payload, &r.latest)
		r.reconfigure()
	case "CrashNode":
		id := r.id(payload)
		delete(r.wire, id)
		r.down[id] = true
		for _, o := range r.ids {
			if !r.down[o] {
				r.must(o, quorum.PeerDown{Peer: id})
			}
		}
	case "RestartNode":
		r.restart(payload)
	case "PrepareAndCommit":
		slices.SortFunc(r.acked, ident.Baseboard.Compare)
		r.must(r.id(payload), quorum.PrepareAndCommit{Config: r.nodes[r.acked[0]].State().LatestConfig()})
	case "SendNexusReplyOnUnderlay", "DeliverNexusReply":
		r.controllerReply(name, payload)
	case "AbortConfiguration":
	default:
		r.fatalf("unknown event")
	}
}

func (r *replay) setup(payload json.RawMessage) {
	var in struct {
		Size    int `json:"member_universe_size"`
		Config  refConfig
		Crashed []refID `json:"crashed_nodes"`
	}
	r.decode(payload, &in)
	for i := range in.Size {
		id := ident.Baseboard{Part: "test", Serial: fmt.Sprint(i)}
		r.ids = append(r.ids, id)
		r.boot(id, quorum.State{})
	}
	for _, c := range in.Crashed {
		r.down[c.id()] = true
	}
	for _, a := range r.ids {
		for _, b := range r.ids {
			if a != b && !r.down[a] && !r.down[b] {
				r.must(a, quorum.PeerUp{Peer: b})
			}
		}
	}
	r.latest = in.Config
	r.reconfigure()
}

func (r *replay) reconfigure() {
	at := r.latest.Coordinator.id()
	if r.down[at] {
		return
	}
	in := quorum.Reconfigure{Epoch: r.latest.Epoch, LastCommitted: r.latest.LastCommitted, Threshold: r.latest.Threshold}
	for _, m := range r.latest.Members {
		in.Members = append(in.Members, m.id())
	}
	r.must(at, in)
}

func (r *replay) deliver(payload json.RawMessage) {
	var in struct {
		To, From refID
		Msg      struct{ Kind json.RawMessage }
	}
	r.decode(payload, &in)
	to := in.To.id()
	stack := r.wire[to]
	if len(stack) == 0 {
		r.fatalf("nothing for %s, want %s", to, in.Msg.Kind)
	}
	have := stack[len(stack)-1]
	r.wire[to] = stack[:len(stack)-1]
	if want := refKind(r, in.Msg.Kind); have.from != in.From.id() || want != text(have.m.Kind) {
		r.fatalf("for %s: have %q from %s, want %q from %s", to, text(have.m.Kind), have.from, want, in.From.id())
	}
	r.must(to, quorum.PeerMessage{From: have.from, Message: have.m})
}

// refKind gives kind and epoch of a recorded message, and for a configuration whether it has older secrets.
func refKind(r *replay, b json.RawMessage) string {
	var kind map[string]json.RawMessage
	r.decode(b, &kind)
	for name, body := range kind {
		type config struct {
			Epoch ident.Epoch
			Old   *struct{ Data string } `json:"encrypted_rack_secrets"`
		}
		show := func(c config) string {
			if c.Old == nil {
				return fmt.Sprintf("%s %d 0", name, c.Epoch)
			}
			return fmt.Sprintf("%s %d %d", name, c.Epoch, len(c.Old.Data)/2)
		}
		switch name {
		case "Prepare":
			var p struct{ Config config }
			r.decode(body, &p)
			return show(p.Config)
		case "CommitAdvance":
			var c config
			r.decode(body, &c)
			return show(c)
		case "Share":
			var s struct {
				Epoch ident.Epoch
				Share struct {
					X int `json:"x_coordinate"`
				}
			}
			r.decode(body, &s)
			return fmt.Sprintf("%s %d x%d", name, s.Epoch, s.Share.X)
		}
		return fmt.Sprintf("%s %s", name, body)
	}
	return ""
}

func text(k quorum.MessageKind) string {
	old := func(c *quorum.Configuration) int {
		if c.EncryptedSecrets == nil {
			return 0
		}
		return len(c.EncryptedSecrets.Data)
	}
	switch k := k.(type) {
	case quorum.Prepare:
		return fmt.Sprintf("Prepare %d %d", k.Config.Epoch, old(k.Config))
	case quorum.CommitAdvance:
		return fmt.Sprintf("CommitAdvance %d %d", k.Config.Epoch, old(k.Config))
	case quorum.ShareReply:
		return fmt.Sprintf("Share %d x%d", k.Epoch, k.Share.X)
	case quorum.PrepareAck:
		return fmt.Sprintf("PrepareAck %d", k.Epoch)
	case quorum.GetShare:
		return fmt.Sprintf("GetShare %d", k.Epoch)
	case quorum.ExpungedNotice:
		return fmt.Sprintf("Expunged %d", k.Epoch)
	}
	return string(quorum.KindOf(k))
}

// load asks and withdraws at once: the reference answers "not yet" and is asked again.
func (r *replay) load(payload json.RawMessage) {
	var in [2]json.RawMessage
	r.decode(payload, &in)
	id := r.id(in[0])
	var e ident.Epoch
	r.decode(in[1], &e)
	_, err := r.do(id, quorum.LoadSecret{ID: 1, Epoch: &e})
	switch reason.CodeOf(err) {
	case "", quorum.CodeNoCommitted, quorum.CodeNotCommitted:
	default:
		r.fatalf("%s: %v", id, err)
	}
	r.must(id, quorum.CancelLoad{ID: 1})
}

func (r *replay) restart(payload json.RawMessage) {
	var in struct {
		ID    refID
		Order []refID `json:"connection_order"`
	}
	r.decode(payload, &in)
	id := in.ID.id()
	delete(r.down, id)
	r.boot(id, r.nodes[id].State())
	for _, p := range in.Order {
		r.must(p.id(), quorum.PeerUp{Peer: id})
		r.must(id, quorum.PeerUp{Peer: p.id()})
	}
}

// controllerReply checks the acknowledgements that the coordinator reports, and keeps those that arrive.
func (r *replay) controllerReply(name string, payload json.RawMessage) {
	var in struct {
		Acked *struct {
			Epoch ident.Epoch
			Acks  []refID
		} `json:"AckedPreparesFromCoordinator"`
	}
	r.decode(payload, &in)
	if in.Acked == nil || in.Acked.Epoch != r.latest.Epoch {
		return
	}
	for _, a := range in.Acked.Acks {
		if name == "DeliverNexusReply" {
			r.acked = append(r.acked, a.id())
		} else if !r.nodes[r.latest.Coordinator.id()].Acked(in.Acked.Epoch, a.id()) {
			r.fatalf("%s has not acknowledged epoch %d", a.id(), in.Acked.Epoch)
		}
	}
}

type finalNode struct {
	Configs, Commits, Loaded []ident.Epoch
	Shares                   [][2]uint64
	Expunged                 *struct {
		Epoch ident.Epoch
		From  string
	}
	Connected    []string
	Coordinating *struct{ Epoch ident.Epoch }
	Computing    *struct{ Epoch ident.Epoch } `json:"computing_key_share"`
	Collecting   *ident.Epoch
	Crashed      bool
}

func (r *replay) final(name string) finalNode {
	id, err := ident.ParseBaseboard(name)
	ok(r.t, err)
	n := r.nodes[id]
	st, s, roles := n.State(), n.Status(), n.Roles()
	list := func(e []ident.Epoch) []ident.Epoch { return append([]ident.Epoch{}, e...) }
	f := finalNode{
		Configs: list(s.Configs), Commits: list(s.Commits), Loaded: list(s.Loader.Loaded), Shares: [][2]uint64{},
		Connected: []string{}, Crashed: r.down[id],
	}
	for _, e := range s.Shares {
		f.Shares = append(f.Shares, [2]uint64{uint64(e), uint64(st.Shares[e].X)})
	}
	if x := s.Expunged; x != nil {
		f.Expunged = &struct {
			Epoch ident.Epoch
			From  string
		}{x.Epoch, x.From.String()}
	}
	for _, p := range s.Peers {
		f.Connected = append(f.Connected, p.ID.String())
	}
	if roles.Coordinating != 0 {
		f.Coordinating = &struct{ Epoch ident.Epoch }{roles.Coordinating}
	}
	if roles.Computing != 0 {
		f.Computing = &struct{ Epoch ident.Epoch }{roles.Computing}
	}
	if roles.Collecting != 0 {
		f.Collecting = &roles.Collecting
	}
	return f
}
