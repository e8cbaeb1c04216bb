package lrtq

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// TestTranscripts plays the stories in testdata. A story names its sleds first; then each command does one thing and
// shows what happened: messages as "from -> to kind", below them what the receiver made of it. Rewrite with
// "go test -run Transcripts -rewrite".
func TestTranscripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			t.Parallel()
			s := &story{}
			datadriven.RunTest(t, f, func(t *testing.T, d *datadriven.TestData) string {
				s.out.Reset()
				s.play(t, d)
				return s.out.String()
			})
		})
	}
}

type story struct {
	*cluster
	out     strings.Builder
	secrets []secret.RackSecret
}

func (s *story) say(format string, args ...any) { fmt.Fprintf(&s.out, format+"\n", args...) }

// name gives a secret a letter, so that equal ones are seen to be equal.
func (s *story) name(sec secret.RackSecret) string {
	for i, have := range s.secrets {
		if have.Equal(sec) {
			return string(rune('A' + i))
		}
	}
	s.secrets = append(s.secrets, sec)
	return string(rune('A' + len(s.secrets) - 1))
}

func short(c reason.Code) string { return strings.TrimPrefix(string(c), "lrtq-") }

func (s *story) effects(at *sled, fx Effects) {
	for _, n := range fx.Notes {
		l := fmt.Sprintf("    %s: %s", at.id.Identifier, short(n.Code))
		if n.Kind != "" {
			l += " " + string(n.Kind)
		}
		if n.Peer != (Board{}) {
			l += " (" + n.Peer.Identifier + ")"
		}
		if n.Text != "" {
			l += ": " + n.Text
		}
		s.say("%s", l)
	}
	for _, r := range fx.Replies {
		switch {
		case r.Err != nil:
			s.say("    %s: reply %d: refused: %v", at.id.Identifier, r.Call, r.Err)
		case !r.Secret.IsEmpty():
			s.say("    %s: reply %d: secret %s", at.id.Identifier, r.Call, s.name(r.Secret))
		default:
			s.say("    %s: reply %d: done", at.id.Identifier, r.Call)
		}
	}
}

func arg(d *datadriven.TestData, key string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key {
			return strings.Join(a.Vals, ",")
		}
	}
	return ""
}

func number32(d *datadriven.TestData, key string) (n int) {
	_, _ = fmt.Sscan(arg(d, key), &n)
	return n
}

func (s *story) several(t *testing.T, d *datadriven.TestData, key string) (out []*sled) {
	t.Helper()
	for n := range strings.SplitSeq(arg(d, key), ",") {
		if s.sled(n) == nil {
			d.Fatalf(t, "no sled %q", n)
		}
		out = append(out, s.sled(n))
	}
	return out
}

func (s *story) try(at *sled, in Input) {
	if _, err := s.step(at, in); err != nil {
		s.say("    %s: refused: %s: %v", at.id.Identifier, short(reason.CodeOf(err)), err)
	}
}

func (s *story) play(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	if d.Cmd == "sleds" {
		var names []string
		for _, a := range d.CmdArgs {
			names = append(names, a.Key)
		}
		s.cluster = newCluster(t, 7, names...)
		s.seen = s.effects
		s.connectAll()
		return
	}
	s.t = t
	switch d.Cmd {
	case "connect":
		p := s.several(t, d, "pair")
		s.connect(p[0], p[1])
	case "disconnect":
		p := s.several(t, d, "pair")
		s.say("%d messages lost", s.disconnect(p[0], p[1]))
	case "crash":
		s.crash(s.several(t, d, "at")[0])
	case "start":
		s.start(s.several(t, d, "at")[0])
		if arg(d, "alone") == "" {
			s.connectAll()
		}
	case "fail-save":
		s.fail = s.several(t, d, "at")[0]
	case "found":
		var members []Board
		for _, m := range s.several(t, d, "members") {
			members = append(members, m.id)
		}
		s.try(s.several(t, d, "at")[0], InitRack{Call: Call(number32(d, "call")), RackID: rackID(), Members: members})
	case "learn":
		s.try(s.several(t, d, "at")[0], StartLearning{})
	case "load":
		s.try(s.several(t, d, "at")[0], LoadSecret{Call(number32(d, "call"))})
	case "tick":
		s.tick(number32(d, "times"))
	case "deliver":
		s.deliverStory(d)
	case "send":
		s.send(t, d)
	case "state":
		for _, at := range s.several(t, d, "at") {
			s.state(at)
		}
	default:
		d.Fatalf(t, "unknown command %q", d.Cmd)
	}
}

func (s *story) deliverStory(d *datadriven.TestData) {
	most := number32(d, "most")
	for i := 0; len(s.queue) > 0 && (most == 0 || i < most); i++ {
		f := s.queue[0]
		s.queue = s.queue[1:]
		s.say("%s -> %s  %s", f.from.id.Identifier, f.to.id.Identifier, KindOf(f.m))
		s.try(f.to, PeerMessage{f.from.id, f.m})
	}
}

// send lets a sled say something that its node would not. The id is that of the receiver's first running request, or,
// with id=N, one made of that byte.
func (s *story) send(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	from, to := s.several(t, d, "from")[0], s.several(t, d, "to")[0]
	id := RequestID{byte(number32(d, "id"))}
	if tr := to.node.tracked; len(tr) > 0 && arg(d, "id") == "" {
		id = tr[0].id
	}
	var own Share
	if p, ok := from.disk.Common(); ok {
		own, _ = p.Share.Clone(secret.Heap{})
	}
	var m Message
	switch kind := arg(d, "kind"); kind {
	case "get-share":
		m = Request{id, GetShare{rackID()}}
	case "get-share-of-other-rack":
		m = Request{id, GetShare{ident.RackID{1}}}
	case "learn":
		m = Request{id, Learn{}}
	case "init":
		p, err := from.disk.Package.Clone(secret.Heap{})
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		m = Request{id, Init{p}}
	case "init-ack":
		m = Response{id, InitAck{}}
	case "share":
		m = Response{id, ShareReply{own}}
	case "forged-share":
		own.X++
		m = Response{id, ShareReply{own}}
	case "learn-pkg", "forged-learn-pkg":
		p, err := from.disk.Package.Common.Clone(secret.Heap{})
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		if kind != "learn-pkg" {
			p.Share.X++
		}
		m = Response{id, LearnReply{p}}
	case "nothing":
		m = Request{ID: id}
	default:
		d.Fatalf(t, "unknown kind")
	}
	s.try(to, PeerMessage{from.id, m})
}

func (s *story) state(at *sled) {
	if at.node == nil {
		s.say("%s: down", at.id.Identifier)
		return
	}
	st := at.node.Status()
	s.say("%s: %s", at.id.Identifier, st.Phase)
	if st.Share != 0 {
		s.say("   share %d, threshold %d, %d to spare", st.Share, st.Threshold, st.Spare)
	}
	for _, r := range st.Running {
		s.say("   %s", r)
	}
	if st.Failed != "" {
		s.say("   failed: %s", st.Failed)
	}
	if fmt.Sprint(at.disk.Phase) != st.Phase {
		s.say("   on disk: %s", at.disk.Phase)
	}
}
