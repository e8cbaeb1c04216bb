package replay

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
)

// Snapshot is a copy of the state of a run after a number of events. It holds no secrets: configurations and shares are
// there as digests, to be compared.
type Snapshot struct {
	At         int
	Controller []string // its configurations
	Replies    []string // on their way to the controller, the newest last
	Nodes      map[ident.Baseboard]NodeSnapshot
	Flight     map[ident.Baseboard][]string // messages on their way, by destination
}

// NodeSnapshot is one node of a snapshot.
type NodeSnapshot struct {
	View     NodeView
	configs  map[ident.Epoch]quorum.Digest
	shares   map[ident.Epoch]quorum.Digest
	describe map[ident.Epoch]string // of configurations
}

// SnapshotNode copies what is to be seen of a node.
func SnapshotNode(v NodeView, st quorum.State) NodeSnapshot {
	n := NodeSnapshot{v, map[ident.Epoch]quorum.Digest{}, map[ident.Epoch]quorum.Digest{}, map[ident.Epoch]string{}}
	for e, c := range st.Configs {
		n.configs[e], n.describe[e] = contentOf(c), configView(c).String()
	}
	for e, s := range st.Shares {
		if d, err := s.Digest(); err == nil {
			n.shares[e] = d
		}
	}
	return n
}

// contentOf digests a configuration with what is random in it.
func contentOf(c *quorum.Configuration) quorum.Digest {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s %d %s %d\n", c.RackID, c.Epoch, c.Coordinator, c.Threshold) // documented never to fail
	for _, m := range c.Members {
		_, _ = fmt.Fprintf(h, "%s %x\n", m.ID, m.ShareDigest)
	}
	if s := c.EncryptedSecrets; s != nil {
		h.Write(s.Salt[:])
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s.Data))))
		h.Write(s.Data)
	}
	return quorum.Digest(h.Sum(nil))
}

// fields is a view in words, field by field, in a fixed order. Fields that say nothing are empty.
func (v NodeView) fields() [][2]string {
	state := "up"
	if v.Crashed {
		state = "crashed"
	}
	rack, expunged, collecting, computing, coordinating := "", "", "", "", ""
	if v.RackID != nil {
		rack = v.RackID.String()
	}
	if v.Expunged != nil {
		expunged = fmt.Sprintf("at epoch %d, by %s", v.Expunged.Epoch, v.Expunged.From)
	}
	if v.Collecting != nil {
		collecting = fmt.Sprintf("epoch %d", *v.Collecting)
	}
	if v.Computing != nil {
		computing = fmt.Sprintf("epoch %d", v.Computing.Epoch)
	}
	if v.Coordinating != nil {
		coordinating = v.Coordinating.String()
	}
	var alarms []string
	for _, a := range v.Alarms {
		alarms = append(alarms, string(a))
	}
	return [][2]string{
		{"state", state},
		{"rack", rack},
		{"older scheme", map[bool]string{true: "has a package"}[v.HasLRTQ]},
		{"expunged", expunged},
		{"coordinator", coordinating},
		{"key share computer", computing},
		{"secret collector", collecting},
		{"alarms", strings.Join(alarms, " ")},
	}
}

// lists are the parts of a view that are compared element by element.
func (v NodeView) lists() []itemList {
	var shares []string
	for _, s := range v.Shares {
		shares = append(shares, fmt.Sprintf("%d:x%d", s[0], s[1]))
	}
	return []itemList{
		{"configurations", texts(v.Configs)},
		{"shares", shares},
		{"commits", texts(v.Commits)},
		{"loaded secrets", texts(v.Loaded)},
		{"connected", texts(v.Connected)},
	}
}

type itemList struct {
	name  string
	items []string
}

func texts[T any](in []T) []string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = fmt.Sprint(v)
	}
	return out
}

// String is the coordination in one line.
func (c *CoordinatingView) String() string {
	text := fmt.Sprintf("%s to epoch %d (%s): %s", c.Kind, c.Epoch, c.Config, c.Op.Name)
	if c.Op.OldEpoch != 0 {
		text += fmt.Sprintf(" of epoch %d", c.Op.OldEpoch)
	}
	parts := []string{text}
	for _, l := range []struct {
		name string
		ids  *[]ident.Baseboard
	}{{"have", c.Op.Collected}, {"acknowledged", c.Op.Acks}, {"pending", c.Op.Pending}} {
		if l.ids != nil {
			parts = append(parts, l.name+" "+names(*l.ids))
		}
	}
	return strings.Join(parts, ", ")
}

// lines is a node in words, what says nothing left out.
func (n NodeSnapshot) lines() (out []string) {
	for _, f := range n.View.fields() {
		if f[1] != "" {
			out = append(out, f[0]+": "+f[1])
		}
	}
	for _, l := range n.View.lists() {
		if len(l.items) > 0 {
			out = append(out, l.name+": "+strings.Join(l.items, " "))
		}
	}
	for _, e := range n.View.Configs {
		out = append(out, fmt.Sprintf("configuration %d: %s", e, n.describe[e]))
	}
	return out
}

// brief is a node in one line.
func (n NodeSnapshot) brief() string {
	var parts []string
	for _, f := range n.View.fields() {
		switch f[0] {
		case "rack", "older scheme":
		case "state":
			parts = append(parts, f[1])
		default:
			if f[1] != "" {
				parts = append(parts, f[0]+" "+f[1])
			}
		}
	}
	for _, l := range n.View.lists() {
		switch {
		case l.name == "connected":
			parts = append(parts, fmt.Sprintf("%d connected", len(l.items)))
		case l.name == "commits" && len(l.items) > 0, l.name == "loaded secrets" && len(l.items) > 0:
			parts = append(parts, l.name+" "+strings.Join(l.items, " "))
		}
	}
	return strings.Join(parts, ", ")
}

// Diff lists what differs between two snapshots, per node.
func (s *Snapshot) Diff(o *Snapshot) (out []string) {
	out = appendSection(out, "controller", changed(s.Controller, o.Controller))
	out = appendSection(out, "replies on their way", changed(s.Replies, o.Replies))
	all := map[ident.Baseboard]bool{}
	for id := range s.Nodes {
		all[id] = true
	}
	for id := range o.Nodes {
		all[id] = true
	}
	for _, id := range sortedIDs(all) {
		a, was := s.Nodes[id]
		b, is := o.Nodes[id]
		var lines []string
		switch {
		case !was:
			lines = append(lines, "+ the sled exists")
		case !is:
			lines = append(lines, "- the sled exists")
		}
		lines = append(lines, a.diff(b)...)
		for _, l := range changed(s.Flight[id], o.Flight[id]) {
			lines = append(lines, l[:2]+"on its way "+l[2:])
		}
		out = appendSection(out, id.String(), lines)
	}
	return out
}

func appendSection(out []string, title string, lines []string) []string {
	if len(lines) == 0 {
		return out
	}
	out = append(out, title)
	for _, l := range lines {
		out = append(out, "  "+l)
	}
	return out
}

// diff lists what differs between two states of a node.
func (n NodeSnapshot) diff(o NodeSnapshot) (out []string) {
	a, b := n.View.fields(), o.View.fields()
	for i := range a {
		if a[i] != b[i] {
			out = append(out, fmt.Sprintf("%s: %s -> %s", a[i][0], orNone(a[i][1]), orNone(b[i][1])))
		}
	}
	la, lb := n.View.lists(), o.View.lists()
	for i := range la {
		var words []string
		for _, l := range changed(la[i].items, lb[i].items) {
			words = append(words, l[:1]+l[2:])
		}
		if len(words) > 0 {
			out = append(out, la[i].name+": "+strings.Join(words, " "))
		}
	}
	out = append(out, otherContent("configuration", n.configs, o.configs)...)
	return append(out, otherContent("share", n.shares, o.shares)...)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// otherContent lists epochs that are in both maps with different content.
func otherContent(what string, a, b map[ident.Epoch]quorum.Digest) (out []string) {
	for _, e := range quorum.Epochs(a) {
		if d, ok := b[e]; ok && d != a[e] {
			out = append(out, fmt.Sprintf("%s %d: other content", what, e))
		}
	}
	return out
}

// changed lists what a list has lost ("- ") and gained ("+ "), counting what is there more than once.
func changed(a, b []string) (out []string) {
	rest := slices.Clone(b)
	for _, x := range a {
		if i := slices.Index(rest, x); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			out = append(out, "- "+x)
		}
	}
	for _, x := range rest {
		out = append(out, "+ "+x)
	}
	return out
}

// lines is the whole snapshot in words.
func (s *Snapshot) lines() (out []string) {
	out = append(out, s.overview()...)
	for _, id := range sortedIDs(s.Nodes) {
		lines := s.Nodes[id].lines()
		for _, l := range s.Flight[id] {
			lines = append(lines, "on its way "+l)
		}
		out = appendSection(out, id.String(), lines)
	}
	return out
}

func (s *Snapshot) overview() (out []string) {
	out = append(out, fmt.Sprintf("after %d events", s.At))
	out = appendSection(out, "controller", s.Controller)
	return appendSection(out, "replies on their way, newest last", s.Replies)
}

// summary is the snapshot with one line per node.
func (s *Snapshot) summary() []string {
	out := s.overview()
	for _, id := range sortedIDs(s.Nodes) {
		line := fmt.Sprintf("%s: %s", id, s.Nodes[id].brief())
		if n := len(s.Flight[id]); n > 0 {
			line += fmt.Sprintf(", messages on their way to it: %d", n)
		}
		out = append(out, line)
	}
	return out
}
