package quorum_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/quorum/reference"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// TestTranscripts plays the stories in testdata. A story names its sleds first; then each command does one thing and
// shows what happened: messages as "from -> to kind epoch", below them what the receiver made of it. Rewrite with
// "go test -run Transcripts -rewrite".
func TestTranscripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	ok(t, err)
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
	*quorumtest.Cluster
	out     strings.Builder
	secrets []secret.RackSecret
	last    map[ident.Epoch]*quorum.Configuration // forged ones
	shares  map[ident.Epoch][]gfss.Share
	failing string // sled whose next save fails
}

func (s *story) say(format string, args ...any) { fmt.Fprintf(&s.out, format+"\n", args...) }

// names gives a secret a letter, so that equal ones are seen to be equal.
func (s *story) name(sec secret.RackSecret) string {
	for i, have := range s.secrets {
		if have.Equal(sec) {
			return string(rune('A' + i))
		}
	}
	s.secrets = append(s.secrets, sec)
	return string(rune('A' + len(s.secrets) - 1))
}

func short(c reason.Code) string { return strings.TrimPrefix(string(c), "quorum-") }

func (s *story) effects(at *quorumtest.Sled, fx *quorum.Effects) {
	who := at.ID.Serial
	for _, n := range fx.Notes {
		line := fmt.Sprintf("    %s: %s", who, short(n.Code))
		if n.Epoch != 0 {
			line += fmt.Sprintf(" %d", n.Epoch)
		}
		if !n.Peer.IsZero() {
			line += " (" + n.Peer.Serial + ")"
		}
		if n.Text != "" {
			line += ": " + n.Text
		}
		s.say("%s", line)
	}
	for _, a := range fx.Alarms {
		s.say("    %s: ALARM %s %d (%s)", who, a.Kind, a.Epoch, a.From.Serial)
	}
	for _, r := range fx.Replies {
		switch {
		case r.Err != nil:
			s.say("    %s: reply %d: refused: %s", who, r.ID, short(reason.CodeOf(r.Err)))
		case !r.Secret.IsEmpty():
			s.say("    %s: reply %d: secret %s of epoch %d", who, r.ID, s.name(r.Secret), r.Epoch)
		case r.Status != "":
			s.say("    %s: reply: %s", who, r.Status)
		default:
			s.say("    %s: reply: accepted", who)
		}
	}
}

func ofConfig(c *quorum.Configuration) string {
	if c == nil {
		return ", empty"
	}
	return fmt.Sprintf(" %d", c.Epoch)
}

func describe(from, to *quorumtest.Sled, k quorum.MessageKind) string {
	line := fmt.Sprintf("%s -> %s  %s", from.ID.Serial, to.ID.Serial, quorum.KindOf(k))
	switch k := k.(type) {
	case quorum.Prepare:
		line += ofConfig(k.Config)
	case quorum.PrepareAck:
		line += fmt.Sprintf(" %d", k.Epoch)
	case quorum.GetShare:
		line += fmt.Sprintf(" %d", k.Epoch)
	case quorum.ShareReply:
		line += fmt.Sprintf(" %d", k.Epoch)
	case quorum.ExpungedNotice:
		line += fmt.Sprintf(" %d", k.Epoch)
	case quorum.CommitAdvance:
		line += ofConfig(k.Config)
	case quorum.GrantNotice:
		if k.Grant != nil {
			line += fmt.Sprintf(" %d", k.Grant.Epoch)
		}
	case quorum.CommitProof:
		if k.Certificate != nil {
			line += fmt.Sprintf(" %d", k.Certificate.Epoch)
		}
	case quorum.NoSuchShare:
		line += fmt.Sprintf(" %d", k.Epoch)
	}
	return line
}

func (s *story) arg(d *datadriven.TestData, key, or string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key {
			return strings.Join(a.Vals, ",")
		}
	}
	return or
}

func (s *story) epoch(d *datadriven.TestData, key string) (e ident.Epoch) {
	_, _ = fmt.Sscan(s.arg(d, key, "0"), &e)
	return e
}

func (s *story) at(t *testing.T, d *datadriven.TestData, key string) *quorumtest.Sled {
	t.Helper()
	sled := s.Sled(s.arg(d, key, ""))
	if sled == nil {
		d.Fatalf(t, "no sled %q", s.arg(d, key, ""))
	}
	return sled
}

func (s *story) several(t *testing.T, d *datadriven.TestData, key string) (out []*quorumtest.Sled) {
	t.Helper()
	for n := range strings.SplitSeq(s.arg(d, key, ""), ",") {
		if s.Sled(n) == nil {
			d.Fatalf(t, "no sled %q", n)
		}
		out = append(out, s.Sled(n))
	}
	return out
}

func (s *story) do(sled *quorumtest.Sled, in quorum.Input) {
	switch err := s.Step(sled, in); {
	case errors.Is(err, quorumtest.ErrDown):
		s.say("    %s: stopped: %v", sled.ID.Serial, err)
	case err != nil:
		s.say("    %s: refused: %s: %v", sled.ID.Serial, short(reason.CodeOf(err)), err)
	}
}

func (s *story) play(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	switch d.Cmd {
	case "sleds":
		s.begin(t, d)
	case "connect":
		if p := s.several(t, d, "pair"); len(p) == 2 {
			s.Connect(p[0], p[1])
		}
	case "disconnect":
		if p := s.several(t, d, "pair"); len(p) == 2 {
			s.say("%d messages lost", s.Pending(p[0], p[1])+s.Pending(p[1], p[0]))
			s.Disconnect(p[0], p[1])
		}
	case "deliver":
		s.deliver(t, d)
	case "reconfigure":
		s.reconfigure(t, d)
	case "lrtq":
		sec, err := s.BornLRTQ(int(s.epoch(d, "threshold")), s.several(t, d, "members")...)
		ok(t, err)
		s.ConnectAll()
		s.say("the older scheme's secret is %s", s.name(sec))
	case "upgrade":
		s.upgrade(t, d)
	case "commit":
		s.commit(t, d)
	case "prepare-and-commit":
		c := s.last[s.epoch(d, "epoch")]
		if s.arg(d, "from", "") != "" {
			c = s.at(t, d, "from").Disk.Configs[s.epoch(d, "epoch")]
		}
		s.prepareAndCommit(t, d, c)
	case "load":
		s.load(t, d)
	case "agree":
		for i := range max(1, s.epoch(d, "count")) {
			s.do(s.at(t, d, "at"), quorum.CheckAgreement{ID: quorum.RequestID(s.epoch(d, "id") + i), Epoch: s.epoch(d, "epoch")})
		}
	case "clear":
		s.do(s.at(t, d, "at"), quorum.ClearSecrets{})
	case "cancel":
		for i := range max(1, s.epoch(d, "count")) {
			s.do(s.at(t, d, "at"), quorum.CancelLoad{ID: quorum.RequestID(s.epoch(d, "id") + i)})
		}
	case "crash":
		s.Crash(s.at(t, d, "at"))
	case "fail-save":
		s.failing = s.arg(d, "at", "")
	case "restart":
		s.restart(t, d)
	case "forge":
		s.forge(t, d)
	case "send":
		s.send(t, d)
	case "state":
		s.state(t, d)
	default:
		s.stage(t, d)
	}
}

func (s *story) begin(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	var names []string
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 {
			names = append(names, a.Key)
		}
	}
	s.Cluster = quorumtest.NewCluster(7, names...)
	s.last, s.shares = map[ident.Epoch]*quorum.Configuration{}, map[ident.Epoch][]gfss.Share{}
	if plain := s.Sled(s.arg(d, "reference", "")); plain != nil {
		plain.Capabilities, plain.Authority = nil, reference.Authority{}
		ok(t, s.Start(plain))
	}
	s.Seen = s.effects
	s.Save = func(sled *quorumtest.Sled, st quorum.State) error {
		if sled.ID.Serial == s.failing {
			s.failing = ""
			return fmt.Errorf("disk full")
		}
		sled.Disk = st
		return nil
	}
	s.ConnectAll()
}

func (s *story) deliver(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	if s.arg(d, "to", "") == "" {
		_, err := s.DeliverAll(func(from, to *quorumtest.Sled, m quorum.Message) { s.say("%s", describe(from, to, m.Kind)) })
		if err != nil {
			s.say("error: %v", err)
		}
		return
	}
	from, to := s.at(t, d, "from"), s.at(t, d, "to")
	left := s.epoch(d, "count") // none means all
	for n := ident.Epoch(0); s.Pending(from, to) > 0 && (left == 0 || n < left); n++ {
		before := s.out.String()
		s.out.Reset()
		m, _, err := s.Deliver(from, to)
		after := s.out.String()
		s.out.Reset()
		s.out.WriteString(before + describe(from, to, m.Kind) + "\n" + after)
		if err != nil {
			s.say("    error: %v", err)
		}
	}
}

func (s *story) reconfigure(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	at := s.at(t, d, "at")
	r := s.Request(at, s.epoch(d, "epoch"), s.epoch(d, "last"), ident.Threshold(s.epoch(d, "threshold")), s.several(t, d, "members")...)
	if s.arg(d, "last", "") == "0" { // given as 0, which is not the same as left out
		r.LastCommitted = new(ident.Epoch)
	}
	for n := s.epoch(d, "nameless"); n > 0; n-- {
		r.Members = append(r.Members, ident.Baseboard{})
	}
	if r.RackID = s.rackID(d); r.RackID != quorumtest.RackID() {
		r.Grant = s.Grant(at, r)
	}
	if r.Grant.KeepFrom = s.epoch(d, "keep"); r.Grant.KeepFrom != 0 {
		s.Auth.SignGrant(r.Grant)
	}
	switch s.arg(d, "grant", "") {
	case "none":
		r.Grant = nil
	case "other":
		other := s.Request(at, r.Epoch+1, s.epoch(d, "last"), r.Threshold, s.several(t, d, "members")...)
		r.Grant = other.Grant
	case "forged":
		r.Grant.Signature[0] ^= 1
	case "":
	default:
		spoil(t, r.Grant, s.arg(d, "grant", ""))
		s.Auth.SignGrant(r.Grant)
	}
	s.do(at, r)
}

// spoil changes the field of a grant that a command names.
func spoil(t *testing.T, g *quorum.Grant, field string) {
	t.Helper()
	switch field {
	case "of-rack":
		g.RackID[0] ^= 1
	case "of-epoch":
		g.Epoch++
	case "of-coordinator":
		g.Coordinator = g.Members[len(g.Members)-1]
	case "of-members":
		g.Members = g.Members[1:]
	case "of-threshold":
		g.Threshold++
	case "of-last":
		g.LastCommitted = 0
	case "upgrade":
		g.LRTQUpgrade = true
	default:
		t.Fatalf("unknown grant %q", field)
	}
}

func (s *story) upgrade(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	at := s.at(t, d, "at")
	r := s.Upgrade(at, s.epoch(d, "epoch"), ident.Threshold(s.epoch(d, "threshold")), s.several(t, d, "members")...)
	if r.RackID = s.rackID(d); r.RackID != quorumtest.RackID() {
		r.Grant.RackID = r.RackID
		s.Auth.SignGrant(r.Grant)
	}
	switch s.arg(d, "grant", "") {
	case "none":
		r.Grant = nil
	case "plain":
		r.Grant.LRTQUpgrade = false
		s.Auth.SignGrant(r.Grant)
	case "forged":
		r.Grant.Signature[0] ^= 1
	}
	s.do(at, r)
}

func (s *story) certificate(d *datadriven.TestData, c *quorum.Configuration) *quorum.Certificate {
	if c == nil || s.arg(d, "certificate", "") == "none" {
		return nil
	}
	cert := s.Auth.CertifyFrom(c, s.epoch(d, "keep"))
	if s.arg(d, "certificate", "") == "forged" {
		cert.Signature[0] ^= 1
	}
	return cert
}

func (s *story) commit(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	e := s.epoch(d, "epoch")
	for _, at := range s.several(t, d, "at") {
		c := at.Disk.Configs[e]
		if other := s.epoch(d, "of"); other != 0 {
			c = at.Disk.Configs[other]
		}
		s.do(at, quorum.Commit{RackID: s.rackID(d), Epoch: e, Certificate: s.certificate(d, c)})
	}
}

func (s *story) prepareAndCommit(t *testing.T, d *datadriven.TestData, c *quorum.Configuration) {
	t.Helper()
	cert := s.certificate(d, c)
	if other := s.epoch(d, "of"); other != 0 {
		cert = s.certificate(d, s.at(t, d, "at").Disk.Configs[other])
	}
	s.do(s.at(t, d, "at"), quorum.PrepareAndCommit{Config: c, Certificate: cert})
}

func (s *story) load(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	in := quorum.LoadSecret{ID: quorum.RequestID(s.epoch(d, "id"))}
	if e := s.epoch(d, "epoch"); e != 0 {
		in.Epoch = &e
	}
	for range max(1, s.epoch(d, "count")) {
		s.do(s.at(t, d, "at"), in)
		in.ID++
	}
}

func (s *story) restart(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	at := s.at(t, d, "at")
	if at.Up() {
		s.Crash(at)
	}
	if err := s.Start(at); err != nil {
		s.say("    %s: refused: %v", at.ID.Serial, err)
		return
	}
	if s.arg(d, "alone", "") == "" {
		s.ConnectAll()
	}
}

func serials(ids []ident.Baseboard) string {
	var out []string
	for _, id := range ids {
		out = append(out, id.Serial)
	}
	return strings.Join(out, ",")
}

func (s *story) state(t *testing.T, d *datadriven.TestData) {
	t.Helper()
	for _, at := range s.several(t, d, "at") {
		if !at.Up() {
			s.say("%s: down", at.ID.Serial)
			continue
		}
		st := at.Node.Status()
		s.say("%s: configs %v shares %v commits %v certificates %v", at.ID.Serial, st.Configs, st.Shares, st.Commits, st.Certificates)
		if st.Expunged != nil {
			s.say("   expunged at %d, told by %s", st.Expunged.Epoch, st.Expunged.From.Serial)
		}
		if c := st.Coordinator; c != nil {
			s.say("   coordinating %d, acked by [%s]", c.Config.Epoch, serials(c.Acked))
			s.collection("from the last epoch", c.Collecting)
		}
		s.collection("for its share", st.KeyShare)
		s.collection("for the secret", st.Loader.Collecting)
		s.collection("to compare", st.Agreement)
		if len(st.Loader.Loaded) > 0 || st.Loader.Waiting > 0 {
			s.say("   secrets of %v in memory, %d waiting", st.Loader.Loaded, st.Loader.Waiting)
		}
		if st.LRTQ {
			s.say("   has a package of the older scheme")
		}
		for _, a := range st.Alarms {
			s.say("   ALARM %s %d (%s)", a.Kind, a.Epoch, a.From.Serial)
		}
	}
}

func (s *story) collection(what string, c *quorum.CollectionStatus) {
	if c != nil {
		s.say("   collecting %s: epoch %d, %d of %d, missing [%s], not connected [%s]", what, c.Epoch, c.Have, c.Want,
			serials(c.MissingConnected), serials(c.MissingDisconnected))
	}
}
