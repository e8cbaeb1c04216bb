package replay_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"slices"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/replay"
)

// generator makes logs as the reference's property test does: the same actions with the same weights, lived through by a
// rack of twins, and written down in the reference's form.
type generator struct {
	*twinRack
	rand   *rand.Rand
	random *rand.ChaCha8
	out    bytes.Buffer
	events int
}

const universe = 16

// generate makes a log of so many actions; fewer become events. It returns the final state too.
func generate(seed uint64, actions int) (log []byte, final replay.Final, events int) {
	g := &generator{twinRack: newTwinRack(), rand: rand.New(rand.NewPCG(seed, 1)), random: rand.NewChaCha8([32]byte{byte(seed)})}
	g.begin()
	for range actions {
		g.act()
	}
	g.finish()
	g.out.WriteString("\n]\n")
	return g.out.Bytes(), g.final(), g.events
}

// do writes an event down and lives through it.
func (g *generator) do(e replay.Event) {
	sep := ",\n"
	if g.events == 0 {
		sep = "[\n"
	}
	b, err := json.MarshalIndent(map[string]any{e.Name(): g.payload(e)}, "", "  ")
	if err != nil {
		panic(err) // our own types
	}
	g.out.WriteString(sep)
	g.out.Write(b)
	g.events++
	if !g.apply(e) {
		panic("the generator made an event that its own rack refuses")
	}
}

func (g *generator) pick(ids []ident.Baseboard) ident.Baseboard { return ids[g.rand.IntN(len(ids))] }

func (g *generator) begin() {
	ids := []ident.Baseboard{}
	for i := range universe {
		ids = append(ids, ident.Baseboard{Part: "test", Serial: string(json.Number(itoa(i)))})
	}
	g.rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	n := 3 + g.rand.IntN(9)
	members := ident.SortBaseboards(ids[:n])
	if g.rand.IntN(2) == 0 {
		c := g.newChange(1, nil, members[0], members)
		c.Op, c.Threshold, c.Tolerance = replay.OpLRTQCommitted, ident.Threshold(n/2+1), 0
		g.do(replay.InitialSetup{Universe: universe, Change: c, LRTQ: true})
		return
	}
	g.rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	crashed := ident.SortBaseboards(ids[:g.rand.IntN(5)])
	g.do(replay.InitialSetup{Universe: universe, Change: g.newChange(1, nil, members[0], members), Crashed: crashed})
	g.abortIfDown()
}

func itoa(i int) string { b, _ := json.Marshal(i); return string(b) }

func (g *generator) newChange(e ident.Epoch, last *ident.Epoch, coordinator ident.Baseboard, members []ident.Baseboard) replay.Change {
	c := replay.Change{Op: replay.OpPreparing, Epoch: e, LastCommitted: last, Coordinator: coordinator, Members: members}
	c.Threshold = ident.Threshold(max(2, g.rand.IntN(len(members))))
	switch d := len(members) - int(c.Threshold); {
	case d >= 8:
		c.Tolerance = 3
	case d >= 5:
		c.Tolerance = 2
	case d >= 2:
		c.Tolerance = 1
	}
	return c
}

func (g *generator) abortIfDown() {
	if c := g.latest(); g.down[c.Coordinator] && c.Op == replay.OpPreparing {
		g.do(replay.AbortConfiguration{Epoch: c.Epoch})
	}
}

func (g *generator) lastCommitted() *replay.Change {
	for _, c := range slices.Backward(g.changes) {
		if c.Op == replay.OpCommitted {
			return c
		}
	}
	return nil
}

func (g *generator) act() {
	switch w := g.rand.IntN(77); {
	case w < 30:
		if len(g.wire) > 0 {
			var to []ident.Baseboard
			for _, id := range g.ids {
				if len(g.wire[id]) > 0 {
					to = append(to, id)
				}
			}
			g.deliver(g.pick(to))
		}
	case w < 40:
		g.loadSome(w < 35)
	case w < 42:
		if c := g.lastCommitted(); c != nil {
			g.do(replay.ClearSecrets{ID: g.pick(c.Members)})
		}
	case w < 52:
		g.poll()
	case w < 62:
		g.commitSome()
	case w < 72:
		if n := len(g.replies); n > 0 {
			g.do(replay.DeliverReply{Reply: g.replies[n-1]})
		}
	case w < 73:
		g.reconfigure()
	case w < 75:
		if up := g.live(); len(up) > 0 {
			g.do(replay.CrashNode{ID: g.pick(up)})
			g.abortIfDown()
		}
	default:
		if down := sorted(g.down); len(down) > 0 {
			order := g.live()
			g.rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			g.do(replay.RestartNode{ID: g.pick(down), Order: order})
		}
	}
}

func (g *generator) live() (up []ident.Baseboard) {
	for _, id := range g.ids {
		if !g.down[id] {
			up = append(up, id)
		}
	}
	return up
}

func (g *generator) deliver(to ident.Baseboard) {
	l := g.wire[to][len(g.wire[to])-1]
	m := replay.Message{Kind: l.kind, Epoch: l.epoch, X: l.x}
	if l.config != nil {
		m.Config = &l.config.Config
	}
	g.do(replay.DeliverEnvelope{To: to, From: l.from, Message: m})
}

func (g *generator) loadSome(latest bool) {
	c := g.lastCommitted()
	if c == nil {
		return
	}
	if latest {
		if id := g.pick(c.Members); !g.down[id] {
			g.do(replay.LoadRackSecret{ID: id, Epoch: c.Epoch})
		}
		return
	}
	for _, o := range g.changes {
		if o.Op == replay.OpCommitted && g.rand.IntN(2) == 0 {
			c = o
		}
	}
	g.do(replay.LoadRackSecret{ID: g.pick(c.Members), Epoch: c.Epoch})
}

func (g *generator) poll() {
	c := g.latest()
	if c.Op != replay.OpPreparing {
		return
	}
	n := g.nodes[c.Coordinator]
	if newest(n.configs) != c.Epoch || n.coord == nil {
		return
	}
	g.do(replay.SendReply{Reply: replay.Reply{Epoch: c.Epoch, Acks: sorted(n.coord.acks)}})
}

func (g *generator) commitSome() {
	c := g.latest()
	if c.Op != replay.OpCommitted {
		return
	}
	var can []ident.Baseboard
	for _, m := range c.Prepared {
		if !g.down[m] && !slices.Contains(c.Committed, m) {
			can = append(can, m)
		}
	}
	if len(can) > 0 {
		g.do(replay.CommitConfiguration{ID: g.pick(can)})
	}
}

func (g *generator) reconfigure() {
	last, e := g.lastCommitted(), g.latest().Epoch+1
	switch {
	case last == nil && g.changes[0].Op == replay.OpLRTQCommitted:
		members := g.changes[0].Members
		g.do(replay.Reconfigure{Change: g.newChange(e, nil, g.pick(members), members), LRTQ: true})
	case last == nil:
		n := g.rand.IntN(12)
		if n < 3 {
			return
		}
		members := ident.SortBaseboards(g.ids[:n])
		g.do(replay.Reconfigure{Change: g.newChange(e, nil, members[0], members)})
	case len(last.Committed) == 0:
		return
	default:
		coordinator := g.pick(last.Committed)
		g.do(replay.Reconfigure{Change: g.newChange(e, &last.Epoch, coordinator, g.membership(last, coordinator))})
	}
	g.abortIfDown()
}

func (g *generator) membership(last *replay.Change, coordinator ident.Baseboard) []ident.Baseboard {
	members := slices.Clone(last.Members)
	add := min(g.rand.IntN(5), 12-len(members))
	for _, id := range g.ids {
		if add > 0 && !g.expunged[id] && !slices.Contains(members, id) {
			members = append(members, id)
			add--
		}
	}
	for remove := g.rand.IntN(3); remove > 0 && len(members) > 3; remove-- {
		if i := g.rand.IntN(len(members)); members[i] != coordinator {
			members = slices.Delete(members, i, i+1)
		}
	}
	return ident.SortBaseboards(members)
}

// finish restarts what is needed, delivers everything and lets the last configuration come to its end.
func (g *generator) finish() {
	need := g.latest().Members
	if last := g.lastCommitted(); last != nil {
		need = append(slices.Clone(need), last.Members...)
	}
	for _, id := range union(nil, need...) {
		if g.down[id] {
			g.do(replay.RestartNode{ID: id, Order: g.live()})
		}
	}
	g.settle()
	if c := g.latest(); c.Op == replay.OpAborted {
		again := *c
		again.Op, again.Epoch, again.Prepared, again.Committed = replay.OpPreparing, c.Epoch+1, nil, nil
		g.do(replay.Reconfigure{Change: again, LRTQ: g.lastCommitted() == nil && g.changes[0].Op == replay.OpLRTQCommitted})
		g.settle()
	}
	c := g.latest()
	for _, m := range c.Members {
		if c.Op == replay.OpCommitted && !slices.Contains(c.Prepared, m) {
			g.do(replay.PrepareAndCommit{ID: m})
		}
	}
	g.settle()
	for _, m := range c.Members {
		if g.nodes[m].prepared(c.Epoch) && !slices.Contains(c.Committed, m) {
			g.do(replay.CommitConfiguration{ID: m})
		}
	}
	g.settle()
	for range 2 {
		for _, m := range c.Members {
			g.do(replay.LoadRackSecret{ID: m, Epoch: c.Epoch})
		}
		g.settle()
	}
}

func (g *generator) settle() {
	for len(g.wire) > 0 {
		for _, id := range ident.SortBaseboards(g.ids) {
			if len(g.wire[id]) > 0 {
				g.deliver(id)
				break
			}
		}
	}
}

// What follows writes events in the reference's form. Everything cryptographic is noise, as it is to a replay.

func (g *generator) hex(n int) string {
	b := make([]byte, n)
	_, _ = g.random.Read(b)
	return hex.EncodeToString(b)
}

func (g *generator) noise(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = g.rand.IntN(256)
	}
	return out
}

type boardJSON struct {
	Part   string `json:"part_number"`
	Serial string `json:"serial_number"`
}

func boardsJSON(in []ident.Baseboard) []boardJSON {
	out := []boardJSON{}
	for _, b := range in {
		out = append(out, boardJSON(b))
	}
	return out
}

func (g *generator) payload(e replay.Event) any {
	switch e := e.(type) {
	case replay.InitialSetup:
		if e.LRTQ {
			return struct {
				Size   int           `json:"member_universe_size"`
				Config replay.Change `json:"config"`
			}{e.Universe, e.Change}
		}
		return struct {
			Size    int           `json:"member_universe_size"`
			Config  replay.Change `json:"config"`
			Crashed []boardJSON   `json:"crashed_nodes"`
		}{e.Universe, e.Change, boardsJSON(e.Crashed)}
	case replay.AbortConfiguration:
		return e.Epoch
	case replay.SendReply:
		return e.Reply
	case replay.DeliverReply:
		return e.Reply
	case replay.DeliverEnvelope:
		type msg struct {
			RackID ident.RackID `json:"rack_id"`
			Kind   any          `json:"kind"`
		}
		return struct {
			To   boardJSON `json:"to"`
			From boardJSON `json:"from"`
			Msg  msg       `json:"msg"`
		}{boardJSON(e.To), boardJSON(e.From), msg{Kind: g.kind(e.Message)}}
	case replay.LoadRackSecret:
		return []any{boardJSON(e.ID), e.Epoch}
	case replay.ClearSecrets:
		return boardJSON(e.ID)
	case replay.CommitConfiguration:
		return boardJSON(e.ID)
	case replay.PrepareAndCommit:
		return boardJSON(e.ID)
	case replay.CrashNode:
		return boardJSON(e.ID)
	case replay.Reconfigure:
		return e.Change
	case replay.RestartNode:
		return struct {
			ID    boardJSON   `json:"id"`
			Order []boardJSON `json:"connection_order"`
		}{boardJSON(e.ID), boardsJSON(e.Order)}
	}
	return nil
}

func (g *generator) kind(m replay.Message) any {
	type share struct {
		X int   `json:"x_coordinate"`
		Y []int `json:"y_coordinates"`
	}
	switch m.Kind {
	case quorum.KindPrepare:
		return map[string]any{"Prepare": struct {
			Config any   `json:"config"`
			Share  share `json:"share"`
		}{g.config(m.Config), share{int(m.X), g.noise(32)}}}
	case quorum.KindShare:
		return map[string]any{"Share": struct {
			Epoch ident.Epoch `json:"epoch"`
			Share share       `json:"share"`
		}{m.Epoch, share{int(m.X), g.noise(32)}}}
	case quorum.KindCommitAdvance:
		return map[string]any{"CommitAdvance": g.config(m.Config)}
	case quorum.KindLRTQShare:
		return map[string]any{"LrtqShare": g.noise(33)}
	case quorum.KindGetLRTQShare:
		return "GetLrtqShare"
	case quorum.KindPrepareAck:
		return map[string]any{"PrepareAck": m.Epoch}
	case quorum.KindGetShare:
		return map[string]any{"GetShare": m.Epoch}
	case quorum.KindExpunged:
		return map[string]any{"Expunged": m.Epoch}
	case quorum.KindGrant, quorum.KindCommitProof, quorum.KindNoSuchShare: // ours alone: the reference has no words for them
	}
	return nil
}

func (g *generator) config(c *replay.Config) any {
	type old struct {
		Salt string `json:"salt"`
		Data string `json:"data"`
	}
	out := struct {
		RackID      ident.RackID    `json:"rack_id"`
		Epoch       ident.Epoch     `json:"epoch"`
		Coordinator boardJSON       `json:"coordinator"`
		Members     [][2]any        `json:"members"`
		Threshold   ident.Threshold `json:"threshold"`
		Old         *old            `json:"encrypted_rack_secrets"`
	}{Epoch: c.Epoch, Coordinator: boardJSON(c.Coordinator), Threshold: c.Threshold}
	for _, m := range c.Members {
		out.Members = append(out.Members, [2]any{boardJSON(m), g.hex(32)})
	}
	if c.OldSecrets != nil {
		out.Old = &old{g.hex(32), g.hex(*c.OldSecrets)}
	}
	return out
}
