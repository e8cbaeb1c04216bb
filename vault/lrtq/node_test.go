package lrtq

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// fsmVectors is a run of the reference's state machine: four sleds, one queue of messages.
type fsmVectors struct {
	FSM struct {
		Trace []struct {
			From, To, Msg string
			Result        *string
		}
		Ledgers []struct {
			ID   boardVector
			JSON string
		}
	}
}

func loadRun(t testing.TB) (v fsmVectors) {
	t.Helper()
	b, err := os.ReadFile("testdata/lrtq.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// line is a message as the reference's trace writes it.
func line(f flight) string {
	name := func(b Board) string { return "pc-" + b.Identifier + "-" + b.Model }
	way := "req"
	if _, ok := f.m.(Response); ok {
		way = "rsp"
	}
	return fmt.Sprintf("%s -> %s %s %s", name(f.from.id), name(f.to.id), way, KindOf(f.m))
}

// results are the codes that stand for what the reference's receiver returned.
var results = map[string]reason.Code{
	"PeerInitialized": CodeInitialized, "RackInitComplete": CodeInitComplete, "ShareDistributedToLearner": CodeSpareShareGiven,
	"LearningCompleted": CodeLearned, "RackSecret": CodeLoaded, "Err(ErrorResponseReceived": CodeRefusedByPeer,
}

// TestRunOfTheReference plays the recorded run: the same messages in the same order, with the same outcome of each.
func TestRunOfTheReference(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, "0", "1", "2", "3")
	c.connectAll()
	var got []string
	var secrets [][]byte
	run := func() {
		for len(c.queue) > 0 {
			f, fx := c.deliver()
			l := []string{line(f)}
			for _, n := range fx.Notes {
				for text, code := range results {
					if n.Code == code && (code != CodeLoaded || len(fx.Replies) > 0) {
						l = append(l, text)
					}
				}
			}
			for _, r := range fx.Replies {
				if !r.Secret.IsEmpty() {
					secrets = append(secrets, raw(t, r.Secret))
				}
			}
			got = append(got, strings.Join(l, " "))
		}
	}
	c.do(c.sled("1"), InitRack{Call: 1, RackID: rackID(), Members: []Board{pc("0"), pc("1"), pc("2")}})
	run()
	c.do(c.sled("2"), LoadSecret{2})
	run()
	c.do(c.sled("3"), StartLearning{})
	run()
	c.do(c.sled("3"), LoadSecret{3})
	run()
	var want []string
	for _, m := range loadRun(t).FSM.Trace {
		l := fmt.Sprintf("%s -> %s %s", m.From, m.To, m.Msg)
		if m.Result != nil {
			l += " " + strings.Fields(*m.Result)[0]
		}
		want = append(want, l)
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("have\n%s\nwant\n%s", g, w)
	}
	if len(secrets) != 2 || !bytes.Equal(secrets[0], secrets[1]) {
		t.Errorf("secrets: %x", secrets)
	}
	for name, x := range map[string]byte{"0": 86, "1": 1, "2": 171, "3": 87} {
		if p, ok := c.sled(name).disk.Common(); !ok || p.Share.X != x {
			t.Errorf("sled %s: have share %d, want %d", name, p.Share.X, x)
		}
	}
	if given := c.sled("0").disk.Given; len(given) != 1 || given[pc("3")] != 0 {
		t.Errorf("given: %v", given)
	}
}

type ledgerPackage struct {
	Rack      ident.RackID `json:"rack_uuid"`
	Threshold ident.Threshold
	Share     []int
	Digests   [][]int `json:"share_digests"`
}

func toBytes(in []int) (out []byte) {
	for _, v := range in {
		out = append(out, byte(v))
	}
	return out
}

func (p ledgerPackage) common(t testing.TB) Package {
	t.Helper()
	out := Package{RackID: p.Rack, Threshold: p.Threshold, Share: share(t, toBytes(p.Share))}
	for _, d := range p.Digests {
		out.Digests = append(out.Digests, [32]byte(toBytes(d)))
	}
	return out
}

// ledgerState reads one of the reference's ledgers of the run, without vault/wire, which is above this package.
func ledgerState(t testing.TB, text string) State {
	t.Helper()
	var f struct {
		State struct {
			InitialMember *struct {
				Pkg struct {
					Common  ledgerPackage
					Members []boardVector `json:"initial_membership"`
					Salt    []int
					Nonce   []int
					Sealed  []int `json:"encrypted_shares"`
				}
				Given [][]json.RawMessage `json:"distributed_shares"`
			}
			Learned *struct {
				Pkg struct{ Common ledgerPackage }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		t.Fatal(err)
	}
	if l := f.State.Learned; l != nil {
		return State{Phase: Learned, Package: SharePackage{Common: l.Pkg.Common.common(t)}}
	}
	m := f.State.InitialMember
	st := State{Phase: InitialMember, Given: map[Board]int{}, Package: SharePackage{
		Common: m.Pkg.Common.common(t), Salt: [32]byte(toBytes(m.Pkg.Salt)), Nonce: [12]byte(toBytes(m.Pkg.Nonce)), Encrypted: toBytes(m.Pkg.Sealed),
	}}
	for _, v := range m.Pkg.Members {
		st.Package.Members = append(st.Package.Members, v.board())
	}
	for _, pair := range m.Given {
		var b boardVector
		var i int
		if json.Unmarshal(pair[0], &b) != nil || json.Unmarshal(pair[1], &i) != nil {
			t.Fatal("given")
		}
		st.Given[b.board()] = i
	}
	return st
}

// TestLedgersOfTheReference starts sleds from the ledgers that the run left: the same secret, and the learner that comes
// again is given the same share.
func TestLedgersOfTheReference(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, "0", "1", "2", "3")
	run := loadRun(t)
	for _, l := range run.FSM.Ledgers {
		s := c.at(l.ID.board())
		c.crash(s)
		s.disk = ledgerState(t, l.JSON)
		c.start(s)
	}
	want := ""
	for _, m := range run.FSM.Trace {
		if m.Result != nil && strings.HasPrefix(*m.Result, "RackSecret ") {
			want = strings.TrimPrefix(*m.Result, "RackSecret ")
		}
	}
	c.connectAll()
	for i, s := range c.sleds {
		if got := hex.EncodeToString(c.load(s, Call(i))); got != want {
			t.Errorf("sled %s: have %s, want %s", s.id, got, want)
		}
	}
	learner := c.sled("3")
	before := learner.disk
	c.crash(learner)
	learner.disk = State{}
	c.start(learner)
	c.connectAll()
	c.do(learner, StartLearning{})
	c.deliverAll()
	if !learner.disk.Package.Common.Equal(before.Package.Common) {
		t.Errorf("another share: have %d, want %d", learner.disk.Package.Common.Share.X, before.Package.Common.Share.X)
	}
}

func TestCallsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, "a", "b", "c", "d")
	c.connectAll()
	refused := func(name string, in Input, want reason.Code) {
		t.Helper()
		s := c.sled(name)
		before := s.node.Status()
		_, err := c.step(s, in)
		if reason.CodeOf(err) != want {
			t.Errorf("%s: %T: have %v, want %s", name, in, err, want)
		}
		if after := s.node.Status(); fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("%s: %T: a refusal changed %+v to %+v", name, in, before, after)
		}
	}
	refused("a", LoadSecret{1}, CodeNotInitialized)
	refused("a", InitRack{Members: []Board{pc("b"), pc("c")}}, CodeConfig)
	refused("a", InitRack{Members: []Board{pc("a")}}, CodeConfig)
	refused("a", InitRack{Members: []Board{pc("a"), pc("a"), pc("b")}}, CodeConfig)
	refused("a", nil, CodeConfig)
	c.do(c.sled("d"), StartLearning{})
	refused("d", StartLearning{}, CodeAlreadyInitialized)
	refused("d", InitRack{Members: []Board{pc("d"), pc("a")}}, CodeAlreadyInitialized)
	refused("d", LoadSecret{1}, CodeStillLearning)
	c.found("a", "b", "c")
	refused("a", StartLearning{}, CodeAlreadyInitialized)
	refused("b", InitRack{Members: []Board{pc("b"), pc("a")}}, CodeAlreadyInitialized)
	c.do(c.sled("a"), LoadSecret{1})
	refused("a", LoadSecret{2}, CodePending)
	// a sled that is not up twice, and unusable ones
	for _, b := range []Board{pc("a"), {}, {Kind: PC, Model: "p", Identifier: "x", Revision: 1}} {
		fx := c.do(c.sled("a"), PeerUp{b})
		if len(fx.Notes) != 1 || fx.Notes[0].Code != CodePeerRefused {
			t.Errorf("peer %v: notes %v", b, fx.Notes)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	packages, _ := testPackages(t, 4)
	good := Config{ID: pc("a"), Rand: rand.NewChaCha8([32]byte{}), Alloc: secret.Heap{}}
	for name, c := range map[string]struct {
		change func(*Config, *State)
		want   reason.Code
	}{
		"good":             {func(*Config, *State) {}, ""},
		"no randomness":    {func(c *Config, _ *State) { c.Rand = nil }, CodeConfig},
		"no allocator":     {func(c *Config, _ *State) { c.Alloc = nil }, CodeConfig},
		"no identity":      {func(c *Config, _ *State) { c.ID = Board{} }, CodeConfig},
		"unknown phase":    {func(_ *Config, s *State) { s.Phase = 4 }, CodeState},
		"no package":       {func(_ *Config, s *State) { s.Package = SharePackage{} }, CodeState},
		"learned, nothing": {func(_ *Config, s *State) { s.Phase, s.Package = Learned, SharePackage{} }, CodeState},
		"given too high":   {func(_ *Config, s *State) { s.Given = map[Board]int{pc("x"): s.Package.Spare()} }, CodeState},
		"given negative":   {func(_ *Config, s *State) { s.Given = map[Board]int{pc("x"): -1} }, CodeState},
		"given twice":      {func(_ *Config, s *State) { s.Given = map[Board]int{pc("x"): 1, pc("y"): 1} }, CodeState},
		"given to nobody":  {func(_ *Config, s *State) { s.Given = map[Board]int{{}: 1} }, CodeState},
	} {
		config, st := good, State{Phase: InitialMember, Package: packages[0], Given: map[Board]int{pc("x"): 3}}
		c.change(&config, &st)
		if _, err := New(config, st); reason.CodeOf(err) != c.want {
			t.Errorf("%s: have %v, want %q", name, err, c.want)
		}
	}
}

// TestStoredBeforeSent fails one save of a run after the other: what it promised does not leave, and the node is over.
func TestStoredBeforeSent(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		saves int  // before the one that fails
		lost  Kind // what must not have left
	}{
		{"founder", 0, KindInit}, {"member", 0, KindInitAck}, {"giver", 1, KindLearnPkg}, {"learner", 0, KindLearn}, {"learner", 1, ""},
	} {
		t.Run(fmt.Sprint(c.name, c.saves), func(t *testing.T) {
			t.Parallel()
			cl := newCluster(t, 4, "founder", "member", "giver", "learner")
			cl.connectAll()
			s := cl.sled(c.name)
			var failed error
			step := func(at *sled, in Input) {
				if at == s && s.saves == c.saves {
					cl.fail = s
				}
				if _, err := cl.step(at, in); err != nil && failed == nil {
					failed = err
				}
			}
			sent := 0
			run := func() {
				for failed == nil && len(cl.queue) > 0 {
					f := cl.queue[0]
					cl.queue = cl.queue[1:]
					if f.from == s && KindOf(f.m) == c.lost {
						sent++
					}
					step(f.to, PeerMessage{f.from.id, f.m})
				}
			}
			step(cl.sled("founder"), InitRack{Call: 1, RackID: rackID(), Members: []Board{pc("founder"), pc("member"), pc("giver")}})
			run()
			if failed == nil {
				cl.disconnect(cl.sled("learner"), cl.sled("founder")) // so that the giver is asked, the first in order
				step(cl.sled("learner"), StartLearning{})
				run()
			}
			if _, ok := errors.AsType[*StoppedError](failed); !ok || !errors.Is(failed, errDisk) || sent != 0 {
				t.Fatalf("have %v and %d messages %q sent, want %v and none", failed, sent, c.lost, errDisk)
			}
			if s.saves != c.saves {
				t.Errorf("saves: have %d, want %d", s.saves, c.saves)
			}
			if _, err := s.node.Step(Tick{}); !errors.Is(err, errDisk) {
				t.Errorf("a further step: have %v", err)
			}
		})
	}
}

func TestDurableOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 5, "a", "b", "c")
	n := c.sled("a").node
	out, err := n.Step(StartLearning{})
	if err != nil || !out.Changed() {
		t.Fatalf("%v, changed %v", err, out.Changed())
	}
	if _, err := n.Step(Tick{}); !errors.Is(err, ErrNotDurable) {
		t.Errorf("step before durable: have %v", err)
	}
	saves := 0
	save := func(State) error { saves++; return nil }
	if _, err := out.Durable(save); err != nil || saves != 1 {
		t.Fatalf("%v, %d saves", err, saves)
	}
	for name, o := range map[string]Output{"twice": out, "zero": {}} {
		if _, err := o.Durable(save); !errors.Is(err, ErrReleased) || saves != 1 {
			t.Errorf("%s: have %v, %d saves", name, err, saves)
		}
	}
	if out, err = n.Step(Tick{}); err != nil || out.Changed() {
		t.Errorf("a tick: %v, changed %v", err, out.Changed())
	}
}

// TestEveryDeadlineCounts starts requests at different ticks: each ends at its own time, and two of the same tick both end.
// The reference looks at the latest deadline first and stops there, and keeps one request per deadline.
func TestEveryDeadlineCounts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 6, "a", "b", "c", "d", "e")
	c.connectAll()
	c.found("a", "b", "c", "d", "e")
	a := c.sled("a")
	for _, n := range []string{"x", "y"} { // two learners in one tick; nobody answers a
		c.do2(a, PeerUp{pc(n)})
		c.do2(a, PeerMessage{pc(n), Request{RequestID{n[0]}, Learn{}}})
	}
	c.queue = nil
	c.do2(a, Tick{})
	c.do2(a, LoadSecret{7}) // one tick later
	c.queue = nil
	expired := map[int][]string{}
	for i := 2; i <= 30; i++ {
		for _, n := range c.do2(a, Tick{}).Notes {
			expired[i] = append(expired[i], n.Peer.Identifier+string(n.Kind))
		}
	}
	if fmt.Sprint(expired) != "map[20:[xlearn ylearn] 21:[]]" {
		t.Errorf("expired: %v", expired)
	}
	if r := a.calls[7]; reason.CodeOf(r.Err) != CodeLoadTimeout || reason.RemedyOf(r.Err) != reason.Retry || reason.HintOf(r.Err) == "" {
		t.Errorf("load: %v", r.Err)
	}
	if len(a.node.tracked) != 0 {
		t.Errorf("still running: %v", a.node.Status().Running)
	}
}

// do2 is a step whose messages to sleds that do not exist are not wondered about.
func (c *cluster) do2(s *sled, in Input) Effects {
	c.t.Helper()
	out, err := s.node.Step(in)
	if err != nil {
		c.t.Fatal(err)
	}
	fx, err := out.Durable(func(st State) error { s.disk = cloneState(c.t, st); return nil })
	if err != nil {
		c.t.Fatal(err)
	}
	for _, r := range fx.Replies {
		s.calls[r.Call] = r
	}
	return fx
}

// TestFullMemoryEndsNode runs out of memory at every piece of a run in turn: the node ends, and no piece stays behind.
func TestFullMemoryEndsNode(t *testing.T) {
	t.Parallel()
	packages, _ := testPackages(t, 4)
	shareOf := func(i int) Message {
		p, _ := packages[i].Clone(secret.Heap{})
		return Response{Kind: ShareReply{p.Common.Share}}
	}
	for n := 0; ; n++ {
		f := &failing{left: n}
		node, err := New(Config{ID: pc("00"), Rand: rand.NewChaCha8([32]byte{}), Alloc: f}, State{})
		if err != nil {
			t.Fatal(err)
		}
		var last error
		step := func(in Input) {
			if last != nil {
				return
			}
			out, err := node.Step(in)
			if last = err; err != nil {
				return
			}
			fx, err := out.Durable(func(State) error { return nil })
			last = err
			for _, e := range fx.Send {
				Destroy(e.Message)
			}
			for _, r := range fx.Replies {
				r.Secret.Destroy()
			}
		}
		for _, b := range []string{"01", "02", "03", "04"} {
			step(PeerUp{pc(b)})
		}
		own, _ := packages[0].Clone(secret.Heap{})
		step(PeerMessage{pc("01"), Request{RequestID{1}, Init{own}}})
		step(PeerMessage{pc("01"), Request{RequestID{2}, GetShare{rackID()}}})
		step(LoadSecret{1})
		step(PeerMessage{pc("04"), Request{RequestID{3}, Learn{}}})
		for range 2 {
			if last == nil && len(node.tracked) > 0 {
				id := node.tracked[0].id
				for i := 1; i <= 2; i++ {
					m := shareOf(i).(Response)
					m.Request = id
					step(PeerMessage{pc(fmt.Sprintf("%02d", i)), m})
				}
			}
		}
		node.Close()
		if f.live != 0 {
			t.Fatalf("%d pieces: %d remain (%v)", n, f.live, last)
		}
		if last == nil {
			if n < 10 {
				t.Errorf("only %d pieces", n)
			}
			return
		}
		if _, ok := errors.AsType[*StoppedError](last); !ok || !errors.Is(last, errFull) {
			t.Fatalf("%d pieces: %v", n, last)
		}
	}
}

// TestPackagesWrongFromTheStart: digests vouch for shares that give no secret, and spare shares that nothing opens. Who waits
// is told; nothing is given away.
func TestPackagesWrongFromTheStart(t *testing.T) {
	t.Parallel()
	packages, _ := testPackages(t, 3)
	bad := share(t, append([]byte{200}, bytes.Repeat([]byte{0xff}, 32)...)) // not canonical
	digest, err := bad.Digest()
	if err != nil {
		t.Fatal(err)
	}
	p := packages[0]
	at, _ := slices.BinarySearchFunc(p.Common.Digests, digest, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	p.Common.Digests = slices.Insert(slices.Clone(p.Common.Digests), at, digest)
	own, err := p.Common.Share.Digest()
	if err != nil {
		t.Fatal(err)
	}
	other, err := packages[1].Common.Share.Digest()
	if err != nil {
		t.Fatal(err)
	}
	drop := slices.IndexFunc(p.Common.Digests, func(d [32]byte) bool { return d != own && d != digest && d != other }) // 255 are the most
	p.Common.Digests = slices.Delete(p.Common.Digests, drop, drop+1)
	p.Encrypted = slices.Clone(p.Encrypted)
	p.Encrypted[0] ^= 1
	c := newCluster(t, 9, "00", "01", "02")
	s := c.sled("00")
	c.crash(s)
	s.disk = State{Phase: InitialMember, Package: p}
	c.start(s)
	c.do2(s, PeerUp{pc("01")})
	answer := func(sh Share) Effects {
		t.Helper()
		clone, err := sh.Clone(secret.Heap{})
		if err != nil {
			t.Fatal(err)
		}
		return c.do2(s, PeerMessage{pc("01"), Response{s.node.tracked[0].id, ShareReply{clone}}})
	}
	c.do2(s, LoadSecret{1})
	answer(bad)
	if r := s.calls[1]; reason.CodeOf(r.Err) != CodeCombineFailed || !errors.Is(r.Err, ErrNotCanonical) || !r.Secret.IsEmpty() {
		t.Errorf("load: have %+v", r)
	}
	for sh, want := range map[*Share]reason.Code{&bad: CodeCombineFailed, &packages[1].Common.Share: CodePackageDamaged} {
		c.do2(s, PeerMessage{pc("01"), Request{RequestID{5}, Learn{}}})
		fx := answer(*sh)
		if !slices.ContainsFunc(fx.Notes, func(n Note) bool { return n.Code == want && n.Peer == pc("01") }) || len(fx.Send) != 0 || len(s.node.tracked) != 0 {
			t.Errorf("learn: have %+v, want %s and nothing sent", fx.Notes, want)
		}
	}
	if len(s.disk.Given) != 0 {
		t.Errorf("given: %v", s.disk.Given)
	}
}
