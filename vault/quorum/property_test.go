package quorum_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// names are serial numbers whose order by bytes is not the one that people expect.
func names(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

// TestFirstConfigurationProperty: whatever the members and the threshold, an empty sled makes the first configuration in
// one step: one configuration, one share, nothing committed, and to each other member exactly its share, by the order of
// identities. Any threshold of the shares gives one secret.
func TestFirstConfigurationProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(3, 32).Draw(t, "members")
		k := rapid.IntRange(2, n-1).Draw(t, "threshold")
		c := quorumtest.NewCluster(rapid.Uint64().Draw(t, "seed"), names(n)...)
		c.ConnectAll()
		at := c.Sleds[rapid.IntRange(0, n-1).Draw(t, "coordinator")]
		saves := 0
		c.Save = func(s *quorumtest.Sled, st quorum.State) error { saves++; s.Disk = st; return nil }
		fx, err := c.Do(at, c.Request(at, 1, 0, ident.Threshold(k), rapid.Permutation(c.Sleds).Draw(t, "order")...))
		if err != nil {
			t.Fatal(err)
		}
		st := at.Disk
		if saves != 1 || len(st.Configs) != 1 || len(st.Shares) != 1 || len(st.Commits) != 0 || len(st.Certificates) != 0 {
			t.Fatalf("%d saves; have %+v", saves, at.Node.Status())
		}
		config := st.Configs[1]
		var ids []ident.Baseboard
		for _, s := range c.Sleds {
			ids = append(ids, s.ID)
		}
		slices.SortFunc(ids, func(a, b ident.Baseboard) int { return slices.Compare([]byte(a.Serial), []byte(b.Serial)) })
		shares := []gfss.Share{st.Shares[1]}
		to := map[ident.Baseboard]bool{}
		for i, e := range fx.Send {
			if p, prepare := e.Message.Kind.(quorum.Prepare); !prepare {
				if g, grant := e.Message.Kind.(quorum.GrantNotice); !grant || i%2 != 0 || g.Grant.Epoch != 1 {
					t.Fatalf("message %d: %+v", i, e.Message.Kind)
				}
			} else {
				at := slices.Index(ids, e.To)
				digest, err := p.Share.Digest()
				if err != nil || p.Config != config || int(p.Share.X) != at+1 || config.Members[at].ID != e.To || config.Members[at].ShareDigest != digest || to[e.To] {
					t.Fatalf("to %s: share %d, %v", e.To, p.Share.X, err)
				}
				to[e.To] = true
				shares = append(shares, p.Share)
			}
		}
		if len(fx.Send) != 2*(n-1) || to[at.ID] {
			t.Fatalf("%d messages, one to itself: %t", len(fx.Send), to[at.ID])
		}
		all, err := gfss.Combine(secret.Heap{}, shares)
		if err != nil {
			t.Fatal(err)
		}
		some, err := gfss.Combine(secret.Heap{}, rapid.Permutation(shares).Draw(t, "some")[:k])
		if err != nil || !some.Equal(all) {
			t.Fatalf("a threshold of shares gives another secret than all: %v", err)
		}
	})
}

// plainConfig is the twin of the rules of protocol.md §5, each as it stands there.
func plainConfig(c *quorum.Configuration) bool {
	if c.Epoch == 0 || len(c.Members) < 3 || len(c.Members) > 32 || c.Threshold < 2 || c.Threshold > 31 || int(c.Threshold) >= len(c.Members) {
		return false
	}
	member := false
	for i, m := range c.Members {
		if _, err := ident.ParseBaseboard(m.ID.String()); err != nil {
			return false
		}
		for _, o := range c.Members[i+1:] {
			if m.ID.Part > o.ID.Part || m.ID.Part == o.ID.Part && m.ID.Serial >= o.ID.Serial {
				return false
			}
		}
		member = member || m.ID == c.Coordinator
	}
	if s := c.EncryptedSecrets; s != nil {
		fits := false
		for records := 1; records <= keys.MaxOldSecrets; records++ {
			fits = fits || len(s.Data) == 40*records+16
		}
		member = member && fits
	}
	return member
}

// TestConfigurationRules holds the validator against its twin, from both places that it guards.
func TestConfigurationRules(t *testing.T) {
	t.Parallel()
	c := quorumtest.NewCluster(1, "a")
	a := c.Sled("a")
	rapid.Check(t, func(t *rapid.T) {
		config := &quorum.Configuration{RackID: quorumtest.RackID(), Epoch: ident.Epoch(rapid.SampledFrom([]uint64{0, 1, 2, 1 << 63}).Draw(t, "epoch"))}
		n := rapid.OneOf(rapid.IntRange(0, 5), rapid.IntRange(30, 34), rapid.Just(256)).Draw(t, "members")
		for _, name := range names(n) {
			config.Members = append(config.Members, quorum.Member{ID: ident.Baseboard{Part: "p", Serial: name}})
		}
		slices.SortFunc(config.Members, func(x, y quorum.Member) int { return x.ID.Compare(y.ID) })
		config.Threshold = ident.Threshold(rapid.OneOf(rapid.IntRange(0, 4), rapid.IntRange(29, 33), rapid.Just(255)).Draw(t, "threshold"))
		if n > 0 {
			pick := func(name string) int { return rapid.IntRange(0, n-1).Draw(t, name) }
			config.Coordinator = config.Members[pick("coordinator")].ID
			switch rapid.IntRange(0, 9).Draw(t, "harm") {
			case 0:
				i, j := pick("swap"), pick("with")
				config.Members[i], config.Members[j] = config.Members[j], config.Members[i]
			case 1:
				config.Members[pick("double")] = config.Members[pick("of")]
			case 2:
				config.Members[pick("name")].ID.Serial = rapid.SampledFrom([]string{"", "a b", "a:b", "\x7f"}).Draw(t, "serial")
			case 3:
				config.Members[pick("part")].ID.Part = "o"
			case 4:
				config.Coordinator.Serial += "x"
			}
		}
		if rapid.Bool().Draw(t, "older secrets") {
			size := rapid.OneOf(rapid.SampledFrom([]int{0, 15, 16, 55, 56, 57, 96, 40*4096 + 16, 40*4097 + 16}), rapid.IntRange(0, 200)).Draw(t, "size")
			config.EncryptedSecrets = &keys.EncryptedSecrets{Data: make([]byte, size)}
		}
		want := plainConfig(config)
		if err := c.Start(a); err != nil {
			t.Fatal(err)
		}
		_, err := c.Do(a, quorum.PrepareAndCommit{Config: config, Certificate: c.Auth.Certify(config)})
		if (err == nil) != want || err != nil && reason.CodeOf(err) != quorum.CodeInvalidConfiguration {
			t.Fatalf("have %v, want valid %t", err, want)
		}
		a.Disk = quorum.State{}
		st := quorum.State{Configs: map[ident.Epoch]*quorum.Configuration{config.Epoch: config}}
		_, err = quorum.New(quorum.Config{ID: a.ID, Rand: noRand{}, Alloc: secret.Heap{}, Authority: c.Auth}, st)
		if (err == nil) != want {
			t.Fatalf("in a stored state: have %v, want valid %t", err, want)
		}
	})
}

// facts is what decides about a request to reconfigure, and the twin that decides: the table of protocol.md §8.1.
type facts struct {
	members                   []string
	threshold, epoch, last    int
	hasLast                   bool
	grant                     string // "", "none", "other", "forged"
	rack                      bool   // names the sled's own rack
	committed, latest, coords int    // of the sled; 0 = none
	same                      bool   // it repeats the request that is coordinated
}

func (f *facts) want() reason.Code {
	distinct := slices.Clone(f.members)
	slices.Sort(distinct)
	distinct = slices.Compact(distinct)
	n := len(f.members)
	last := 0
	if f.hasLast {
		last = f.last
	}
	table := []struct {
		refused bool
		code    reason.Code
	}{
		{n > 256, quorum.CodeInvalidMembershipSize},
		{len(distinct) != n, quorum.CodeInvalidMembers},
		{f.grant == "none", quorum.CodeGrantMissing},
		{f.grant == "other", quorum.CodeGrantMismatch},
		{f.grant == "forged" || !f.rack, quorum.CodeGrantInvalid},
		{!slices.Contains(f.members, "0"), quorum.CodeCoordinatorNotMember},
		{n <= f.threshold, quorum.CodeThresholdMismatch},
		{n < 3 || n > 32, quorum.CodeInvalidMembershipSize},
		{f.threshold < 2 || f.threshold > 31, quorum.CodeInvalidThreshold},
		{f.epoch == 0 || f.hasLast && f.last == 0, quorum.CodeInvalidEpoch},
		{last != f.committed, quorum.CodeLastCommittedMismatch},
		{f.same, ""},
		{f.latest >= f.epoch, quorum.CodePreparedEpochMismatch},
		{f.coords > f.epoch, quorum.CodeReconfigurationRunning},
		{f.coords == f.epoch, quorum.CodeReconfigurationConflict},
	}
	for _, row := range table {
		if row.refused {
			return row.code
		}
	}
	return ""
}

// TestReconfigureRules gives one sled request after request, and holds every answer against the table.
func TestReconfigureRules(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := quorumtest.NewCluster(3, names(34)...)
		a := c.Sled("0")
		f := facts{}
		var current quorum.Reconfigure
		for range rapid.IntRange(1, 8).Draw(t, "requests") {
			if f.committed == 0 && f.latest != 0 && rapid.Bool().Draw(t, "commit") {
				config := a.Disk.Configs[ident.Epoch(f.latest)]
				if _, err := c.Do(a, quorum.Commit{RackID: config.RackID, Epoch: config.Epoch, Certificate: c.Auth.Certify(config)}); err != nil {
					t.Fatal(err)
				}
				f.committed, f.coords = f.latest, 0
			}
			r := draw(t, c, &f)
			f.same = f.coords != 0 && f.rack && f.coords == f.epoch && r.Threshold == current.Threshold && sameMembers(r, current) && lastOf(r) == lastOf(current)
			_, err := c.Do(a, r)
			if want := f.want(); reason.CodeOf(err) != want {
				t.Fatalf("%+v: have %v, want %q", f, err, want)
			}
			if err != nil || f.same {
				continue
			}
			current, f.coords = r, f.epoch
			if f.committed == 0 {
				f.latest = f.epoch
			}
		}
	})
}

// draw makes a request, more often right than wrong, and notes its facts.
func draw(t *rapid.T, c *quorumtest.Cluster, f *facts) quorum.Reconfigure {
	n := rapid.SampledFrom([]int{3, 4, 3, 5, 2, 32, 33}).Draw(t, "members")
	f.members = names(34)[rapid.SampledFrom([]int{0, 0, 0, 0, 1}).Draw(t, "from"):]
	f.members = f.members[:n]
	f.threshold = rapid.SampledFrom([]int{2, 2, 3, 1, 31, 32}).Draw(t, "threshold")
	f.epoch = rapid.IntRange(0, 5).Draw(t, "epoch")
	f.last, f.hasLast = f.committed, f.committed != 0
	switch rapid.IntRange(0, 9).Draw(t, "last") {
	case 0:
		f.last, f.hasLast = 0, true
	case 1:
		f.last, f.hasLast = f.committed+1, true
	}
	f.grant = rapid.SampledFrom([]string{"", "", "", "", "", "none", "other", "forged"}).Draw(t, "grant")
	f.rack = rapid.IntRange(0, 9).Draw(t, "rack") != 0
	switch rapid.IntRange(0, 19).Draw(t, "form") {
	case 0:
		f.members = append(f.members, f.members[0])
	case 1:
		f.members = slices.Repeat(f.members, 257/n+1)[:257]
	}
	r := quorum.Reconfigure{RackID: quorumtest.RackID(), Epoch: ident.Epoch(f.epoch), Threshold: ident.Threshold(f.threshold)}
	if !f.rack {
		r.RackID[15]++
	}
	if f.hasLast {
		r.LastCommitted = new(ident.Epoch(f.last))
	}
	for _, m := range rapid.Permutation(f.members).Draw(t, "order") {
		r.Members = append(r.Members, c.Sled(m).ID)
	}
	r.Grant = c.Grant(c.Sled("0"), r)
	switch f.grant {
	case "none":
		r.Grant = nil
	case "other":
		r.Grant.Threshold++
		c.Auth.SignGrant(r.Grant)
	case "forged":
		r.Grant.Signature[63] ^= 1
	}
	return r
}

func sameMembers(a, b quorum.Reconfigure) bool {
	return slices.Equal(ident.SortBaseboards(a.Members), ident.SortBaseboards(b.Members))
}

func lastOf(r quorum.Reconfigure) ident.Epoch {
	if r.LastCommitted == nil {
		return 0
	}
	return *r.LastCommitted
}

// TestLoaderScript plays loads, clears, withdrawals, answers and commits in any order, against a twin that keeps only sets
// of epochs.
func TestLoaderScript(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := &loads{t: t, Cluster: quorumtest.NewCluster(9, "a", "b", "c", "d"), waiting: map[quorum.RequestID]ident.Epoch{}, secrets: map[ident.Epoch]secret.RackSecret{}}
		l.ConnectAll()
		l.a = l.Sled("a")
		l.Seen = func(s *quorumtest.Sled, fx *quorum.Effects) {
			if s == l.a {
				l.replies = append(l.replies, fx.Replies...)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"load":   func(t *rapid.T) { l.load(ident.Epoch(rapid.IntRange(0, 5).Draw(t, "epoch"))) },
			"change": func(*rapid.T) { l.change() },
			"share": func(t *rapid.T) {
				from := l.Sleds[rapid.IntRange(1, 3).Draw(t, "from")]
				l.settle(l.a, from)
				l.settle(from, l.a)
			},
			"clear": func(*rapid.T) {
				l.do(quorum.ClearSecrets{})
				for _, r := range l.take(len(l.waiting)) {
					if reason.CodeOf(r.Err) != quorum.CodeCleared {
						l.t.Fatalf("cleared: have %v", r.Err)
					}
				}
				l.loaded = nil
				clear(l.waiting)
			},
			"cancel": func(t *rapid.T) {
				id := quorum.RequestID(rapid.IntRange(1, 40).Draw(t, "id"))
				l.do(quorum.CancelLoad{ID: id})
				delete(l.waiting, id)
			},
			"": func(*rapid.T) { l.check() },
		})
	})
}

type loads struct {
	*quorumtest.Cluster
	t       *rapid.T
	a       *quorumtest.Sled
	next    quorum.RequestID
	replies []quorum.Reply
	waiting map[quorum.RequestID]ident.Epoch // requests and what they ask for; 0 = the latest
	commits []ident.Epoch
	loaded  []ident.Epoch // what should be in memory
	secrets map[ident.Epoch]secret.RackSecret
}

func (l *loads) do(in quorum.Input) {
	if _, err := l.Do(l.a, in); err != nil {
		l.t.Fatal(err)
	}
}

// take gives the replies since the last time, of which there must be so many.
func (l *loads) take(want int) []quorum.Reply {
	got := l.replies
	if l.replies = nil; len(got) != want {
		l.t.Fatalf("have %d replies, want %d", len(got), want)
	}
	return got
}

func (l *loads) latest() ident.Epoch {
	if len(l.commits) == 0 {
		return 0
	}
	return l.commits[len(l.commits)-1]
}

// right holds a reply against what was asked.
func (l *loads) right(r quorum.Reply, asked ident.Epoch) {
	if asked == 0 {
		asked = l.latest()
	}
	if !slices.Contains(l.commits, asked) {
		if reason.CodeOf(r.Err) != quorum.CodeNotAvailable {
			l.t.Fatalf("epoch %d was never committed: have %+v", asked, r)
		}
		return
	}
	if r.Err != nil || r.Epoch != asked || r.Secret.IsEmpty() {
		l.t.Fatalf("epoch %d: have %+v", asked, r)
	}
	if have, seen := l.secrets[asked]; seen && !have.Equal(r.Secret) {
		l.t.Fatalf("epoch %d: another secret than before", asked)
	}
	l.secrets[asked] = r.Secret
}

func (l *loads) load(e ident.Epoch) {
	l.next++
	in := quorum.LoadSecret{ID: l.next}
	want := l.latest()
	if e != 0 {
		in.Epoch, want = &e, e
	}
	_, err := l.Do(l.a, in)
	switch inside := slices.Contains(l.loaded, want); {
	case inside:
		if err != nil {
			l.t.Fatal(err)
		}
		l.right(l.take(1)[0], e)
	case len(l.commits) == 0:
		l.refused(err, quorum.CodeNoCommitted)
	case want > l.latest():
		l.refused(err, quorum.CodeNotCommitted)
	case slices.Contains(l.loaded, l.latest()):
		l.refused(err, quorum.CodeNotAvailable)
	case len(l.waiting) >= 64:
		l.refused(err, quorum.CodeBusy)
	default:
		l.waiting[l.next] = e
		l.answered(err)
	}
}

func (l *loads) refused(err error, code reason.Code) {
	l.take(0)
	if reason.CodeOf(err) != code {
		l.t.Fatalf("have %v, want %s", err, code)
	}
}

func (l *loads) answered(err error) {
	if err != nil {
		l.t.Fatal(err)
	}
	l.harvest()
}

// harvest takes the replies to those who wait, if the secret has come.
func (l *loads) harvest() {
	status := l.a.Node.Status().Loader
	if !slices.Contains(status.Loaded, l.latest()) || slices.Contains(l.loaded, l.latest()) {
		l.take(0)
		return
	}
	for _, r := range l.take(len(l.waiting)) {
		asked, waits := l.waiting[r.ID]
		if !waits {
			l.t.Fatalf("a reply to %d, who does not wait", r.ID)
		}
		l.right(r, asked)
	}
	clear(l.waiting)
	l.loaded = slices.Clone(l.commits)
}

func (l *loads) settle(from, to *quorumtest.Sled) {
	for l.Pending(from, to) > 0 {
		if _, _, err := l.Deliver(from, to); err != nil {
			l.t.Fatal(err)
		}
	}
	l.harvest()
}

// change commits the next epoch everywhere; each second epoch is skipped, as if it had been given up.
func (l *loads) change() {
	e, last := l.latest()+1, l.latest()
	if len(l.commits)%2 == 1 {
		e++
	}
	if e > 5 {
		return
	}
	b := l.Sled("b")
	if err := l.Step(b, l.Request(b, e, last, 3, l.Sleds...)); err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.DeliverAll(nil); err != nil {
		l.t.Fatal(err)
	}
	l.harvest()
	for _, s := range l.Sleds {
		config := s.Disk.Configs[e]
		if _, err := l.Do(s, quorum.Commit{RackID: config.RackID, Epoch: e, Certificate: l.Auth.Certify(config)}); err != nil {
			l.t.Fatal(err)
		}
	}
	l.commits = append(l.commits, e)
	l.replies = slices.DeleteFunc(l.replies, func(r quorum.Reply) bool { return r.Status == quorum.Committed })
	l.harvest()
}

func (l *loads) check() {
	st := l.a.Node.Status()
	if !slices.Equal(st.Loader.Loaded, l.loaded) || st.Loader.Waiting != len(l.waiting) || len(st.Alarms) != 0 {
		l.t.Fatalf("have %+v, want %v in memory and %d waiting", st.Loader, l.loaded, len(l.waiting))
	}
	if c := st.Loader.Collecting; len(l.waiting) > 0 && (c == nil || c.Epoch != l.latest()) {
		l.t.Fatalf("somebody waits and nothing is collected: %+v", st.Loader)
	}
}
