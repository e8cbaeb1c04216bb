package lrtq

import (
	"fmt"
	"maps"
	"slices"

	"github.com/sledvault/sledvault/vault/gfss"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// trackedKind says what a request that is not over is about.
type trackedKind uint8

const (
	founding  trackedKind = iota // this sled sent Init and waits for acknowledgements
	loading                      // this sled collects shares for a caller
	asking                       // this sled sent Learn and waits for its package
	answering                    // this sled collects shares for a learner
)

// tracked is a request that is not over. Each has a deadline of its own, whatever the others have.
type tracked struct {
	id       RequestID
	kind     trackedKind
	due      uint64                 // in ticks
	call     Call                   // founding, loading
	packages map[Board]SharePackage // founding: of those who have not acknowledged
	shares   []Share                // loading, answering: of others
	peer     Board                  // asking: who was asked; answering: the learner
}

func (t *tracked) String() string {
	switch t.kind {
	case founding:
		return fmt.Sprintf("founding the rack, %d not acknowledged", len(t.packages))
	case loading:
		return fmt.Sprintf("loading the secret, %d shares", len(t.shares))
	case asking:
		return fmt.Sprintf("asking %s for a package", t.peer)
	case answering:
		return fmt.Sprintf("collecting for %s, %d shares", t.peer, len(t.shares))
	}
	return "unknown"
}

func (t *tracked) destroy() {
	gfss.DestroyAll(t.shares)
	for _, p := range t.packages {
		p.Destroy()
	}
	t.shares, t.packages = nil, nil
}

func (n *Node) find(id RequestID) *tracked {
	for _, t := range n.tracked {
		if t.id == id {
			return t
		}
	}
	return nil
}

func (n *Node) findKind(k trackedKind) *tracked {
	for _, t := range n.tracked {
		if t.kind == k {
			return t
		}
	}
	return nil
}

func (n *Node) track(t *tracked, timeout uint32) *tracked {
	t.due = n.now + uint64(timeout)
	n.tracked = append(n.tracked, t)
	return t
}

// end takes a request off the list; its shares and packages stay for the caller to destroy.
func (n *Node) end(t *tracked) {
	n.tracked = slices.DeleteFunc(n.tracked, func(o *tracked) bool { return o == t })
}

// initRack makes packages for all members and sends them out. The own one is stored before any leaves.
func (n *Node) initRack(in InitRack) error {
	switch {
	case n.failed != nil:
		return n.failed
	case n.st.Phase != Uninitialized:
		return reason.New(CodeAlreadyInitialized, "", "lrtq: init rack: already %s", n.st.Phase)
	case !slices.Contains(in.Members, n.id):
		return reason.New(CodeConfig, "", "lrtq: init rack: this sled is not among the members")
	}
	id, err := n.newID()
	if err != nil {
		return err
	}
	packages, err := Create(n.alloc, n.rand, in.RackID, in.Members)
	if err != nil {
		return reason.Wrap(err, CodeConfig, "", "lrtq: init rack")
	}
	t := &tracked{id: id, kind: founding, call: in.Call, packages: map[Board]SharePackage{}}
	for i, owner := range Owners(n.id, in.Members) {
		if owner == n.id {
			n.become(State{Phase: InitialMember, Package: packages[i]})
		} else {
			t.packages[owner] = packages[i]
		}
	}
	n.track(t, n.timeouts.Init)
	for _, p := range n.peers {
		if err := n.resend(t, p); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) become(st State) { n.st, n.changed = st, true }

func (n *Node) startLearning() error {
	switch {
	case n.failed != nil:
		return n.failed
	case n.st.Phase != Uninitialized:
		return reason.New(CodeAlreadyInitialized, "", "lrtq: start learning: already %s", n.st.Phase)
	}
	n.become(State{Phase: Learning})
	if len(n.peers) > 0 {
		return n.ask(n.peers[0])
	}
	return nil
}

// ask sends Learn to one peer.
func (n *Node) ask(peer Board) error {
	id, err := n.newID()
	if err != nil {
		return err
	}
	n.track(&tracked{id: id, kind: asking, peer: peer}, n.timeouts.Learn)
	n.send(peer, Request{id, Learn{}})
	return nil
}

func (n *Node) loadSecret(in LoadSecret) error {
	switch {
	case n.failed != nil:
		return n.failed
	case n.st.Phase == Uninitialized:
		return reason.New(CodeNotInitialized, "", "lrtq: load: this sled has no package of the older scheme")
	case n.st.Phase == Learning:
		return reason.Later(CodeStillLearning, "", "lrtq: load: this sled waits for its package")
	case n.findKind(loading) != nil:
		return reason.Later(CodePending, "", "lrtq: load: another one is running")
	}
	id, err := n.newID()
	if err != nil {
		return err
	}
	n.collect(&tracked{id: id, kind: loading, call: in.Call}, n.timeouts.Load)
	return nil
}

// collect asks all connected peers for their shares.
func (n *Node) collect(t *tracked, timeout uint32) {
	n.track(t, timeout)
	for _, p := range n.peers {
		n.send(p, Request{t.id, GetShare{n.st.Package.Common.RackID}})
	}
}

// resend tells a peer, if it is concerned and has not answered, what it may have missed.
func (n *Node) resend(t *tracked, peer Board) error {
	switch t.kind {
	case founding:
		p, ok := t.packages[peer]
		if !ok {
			return nil
		}
		clone, err := p.Clone(n.alloc)
		if err != nil {
			return exhausted(err)
		}
		n.send(peer, Request{t.id, Init{clone}})
	case loading, answering:
		n.send(peer, Request{t.id, GetShare{n.st.Package.Common.RackID}})
	case asking: // its deadline sends it to the next peer
	}
	return nil
}

func (n *Node) peerUp(peer Board) error {
	if !n.connected(peer) {
		if peer == n.id || len(n.peers) >= n.limits.Peers || peer.Validate() != nil {
			n.note(CodePeerRefused, peer, "", "own or unusable identity, or too many peers")
			return nil //nolint:nilerr // a peer's fault is counted, it is none of the node's
		}
		n.peers = append(n.peers, peer)
		slices.SortFunc(n.peers, Board.Compare)
	}
	if n.st.Phase == Learning && n.findKind(asking) == nil {
		if err := n.ask(peer); err != nil {
			return err
		}
	}
	for _, t := range n.tracked {
		if err := n.resend(t, peer); err != nil {
			return err
		}
	}
	return nil
}

// tick ends every request whose time is over, in the order in which they began.
func (n *Node) tick() error {
	n.now++
	var due []*tracked
	for _, t := range n.tracked {
		if t.due <= n.now {
			due = append(due, t)
		}
	}
	for _, t := range due {
		n.end(t)
		err := n.expire(t)
		t.destroy()
		if err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) expire(t *tracked) error {
	switch t.kind {
	case founding:
		missing := slices.SortedFunc(maps.Keys(t.packages), Board.Compare)
		n.failed = reason.New(CodeInitTimeout, hintReset, "lrtq: init rack: not acknowledged by %v", missing)
		n.fx.Replies = append(n.fx.Replies, Reply{Call: t.call, Err: n.failed})
		n.note(CodeInitTimeout, Board{}, "", "not acknowledged by %v", missing)
	case loading:
		err := reason.Later(CodeLoadTimeout, hintLoad, "lrtq: load: have %d shares of others, want %d", len(t.shares), n.st.Package.Common.Threshold-1)
		n.fx.Replies = append(n.fx.Replies, Reply{Call: t.call, Err: err})
		n.note(CodeLoadTimeout, Board{}, "", "%d shares of others", len(t.shares))
	case asking:
		n.note(CodeLearnUnanswered, t.peer, KindLearn, "")
		if n.st.Phase == Learning && len(n.peers) > 0 {
			return n.ask(n.after(t.peer))
		}
	case answering:
		n.note(CodeLoadTimeout, t.peer, KindLearn, "%d shares of others", len(t.shares))
	}
	return nil
}

// after is the connected peer that follows one in order; the first if that one is gone or the last.
func (n *Node) after(peer Board) Board {
	if i, ok := slices.BinarySearchFunc(n.peers, peer, Board.Compare); ok && i+1 < len(n.peers) {
		return n.peers[i+1]
	}
	return n.peers[0]
}

// rebuild gives the secret from the own share and those collected.
func (n *Node) rebuild(t *tracked) (secret.RackSecret, error) {
	return Combine(n.alloc, append(slices.Clone(t.shares), n.st.Package.Common.Share))
}
