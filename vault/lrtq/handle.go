package lrtq

import (
	"errors"
	"maps"
	"slices"

	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// message acts on what a peer says (lrtq.md §3).
func (n *Node) message(from Board, m Message) error {
	kind := KindOf(m)
	switch {
	case kind == "":
		n.note(CodeMalformed, from, "", "")
		return nil
	case !n.connected(from):
		n.note(CodeNotConnected, from, kind, "")
		return nil
	case n.failed != nil:
		n.note(CodeInitFailed, from, kind, "")
		return nil //nolint:nilerr // the failure was said when it happened; this message is counted
	}
	switch m := m.(type) {
	case Request:
		return n.request(from, m)
	case Response:
		return n.response(from, m)
	}
	return nil
}

func (n *Node) request(from Board, m Request) error {
	switch k := m.Kind.(type) {
	case Init:
		return n.onInit(from, m.ID, k)
	case GetShare:
		return n.onGetShare(from, m.ID, k)
	case Learn:
		return n.onLearn(from, m.ID)
	}
	return nil
}

func (n *Node) response(from Board, m Response) error {
	t := n.find(m.Request)
	switch k := m.Kind.(type) {
	case InitAck:
		n.onInitAck(from, t)
	case ShareReply:
		return n.onShare(from, t, k.Share)
	case LearnReply:
		return n.onLearnReply(from, t, k.Package)
	case Refusal:
		n.note(CodeRefusedByPeer, from, KindError, "%s", k)
	}
	return nil
}

// refuse answers a request with an error.
func (n *Node) refuse(to Board, id RequestID, kind Kind, r Refusal) {
	n.note(CodeRefusedToPeer, to, kind, "%s", r)
	n.send(to, Response{id, r})
}

func (n *Node) onInit(from Board, id RequestID, k Init) error {
	switch n.st.Phase {
	case Uninitialized:
		if err := k.Package.Validate(); err != nil {
			n.note(CodePackageInvalid, from, KindInit, "%v", err)
			return nil
		}
		own, err := k.Package.Clone(n.alloc)
		if err != nil {
			return exhausted(err)
		}
		n.become(State{Phase: InitialMember, Package: own})
		n.note(CodeInitialized, from, KindInit, "")
	case InitialMember:
		if !n.st.Package.Equal(k.Package) {
			n.refuse(from, id, KindInit, Refusal{Why: AlreadyInitialized})
			return nil
		}
	case Learning, Learned:
		n.refuse(from, id, KindInit, Refusal{Why: AlreadyInitialized})
		return nil
	}
	n.send(from, Response{id, InitAck{}})
	return nil
}

func (n *Node) onGetShare(from Board, id RequestID, k GetShare) error {
	common := n.st.Package.Common
	switch {
	case n.st.Phase == Uninitialized:
		n.refuse(from, id, KindGetShare, Refusal{Why: NotInitialized})
	case n.st.Phase == Learning:
		n.refuse(from, id, KindGetShare, Refusal{Why: StillLearning})
	case common.RackID != k.RackID:
		n.refuse(from, id, KindGetShare, Refusal{RackMismatch, common.RackID, k.RackID})
	default:
		share, err := common.Share.Clone(n.alloc)
		if err != nil {
			return exhausted(err)
		}
		n.note(CodeShareGiven, from, KindGetShare, "")
		n.send(from, Response{id, ShareReply{share}})
	}
	return nil
}

// onLearn collects the shares that open the spare ones. The answer comes later, under the learner's id; a learner that
// asks again replaces its question.
func (n *Node) onLearn(from Board, id RequestID) error {
	switch n.st.Phase {
	case Uninitialized:
		n.refuse(from, id, KindLearn, Refusal{Why: NotInitialized})
		return nil
	case Learning:
		n.refuse(from, id, KindLearn, Refusal{Why: StillLearning})
		return nil
	case Learned:
		n.refuse(from, id, KindLearn, Refusal{Why: CannotSpareAShare})
		return nil
	case InitialMember:
	}
	for _, t := range n.tracked {
		if t.kind == answering && t.peer == from {
			n.end(t)
			t.destroy()
			break
		}
	}
	if n.find(id) != nil {
		n.note(CodeDuplicateID, from, KindLearn, "")
		return nil
	}
	n.collect(&tracked{id: id, kind: answering, peer: from}, n.timeouts.Load)
	return nil
}

func (n *Node) onInitAck(from Board, t *tracked) {
	if t == nil || t.kind != founding {
		n.note(CodeUnexpected, from, KindInitAck, "")
		return
	}
	p, expected := t.packages[from]
	if !expected {
		n.note(CodeUnexpected, from, KindInitAck, "not expected from this sled, or twice")
		return
	}
	p.Destroy()
	delete(t.packages, from)
	if len(t.packages) == 0 {
		n.end(t)
		n.note(CodeInitComplete, Board{}, "", "")
		n.fx.Replies = append(n.fx.Replies, Reply{Call: t.call})
	}
}

func (n *Node) onShare(from Board, t *tracked, s Share) error {
	common, ok := n.st.Common()
	if !ok {
		n.note(CodeUnexpected, from, KindShare, "this sled is %s", n.st.Phase)
		return nil
	}
	if d, err := s.Digest(); err != nil || !common.Has(d) {
		n.note(CodeShareInvalid, from, KindShare, "share %d: its digest is not in the package", s.X)
		return nil
	}
	switch {
	case t == nil:
		n.note(CodeShareNotNeeded, from, KindShare, "")
		return nil
	case t.kind != loading && t.kind != answering:
		n.note(CodeUnexpected, from, KindShare, "")
		return nil
	}
	if s.X == common.Share.X || slices.ContainsFunc(t.shares, func(have Share) bool { return have.X == s.X }) {
		n.note(CodeShareDuplicate, from, KindShare, "share %d", s.X)
		return nil
	}
	clone, err := s.Clone(n.alloc)
	if err != nil {
		return exhausted(err)
	}
	t.shares = append(t.shares, clone)
	if len(t.shares) < int(common.Threshold)-1 {
		return nil
	}
	n.end(t)
	defer t.destroy()
	return n.collected(t)
}

// collected goes on with enough shares.
func (n *Node) collected(t *tracked) error {
	s, err := n.rebuild(t)
	if err != nil {
		return n.notRebuilt(t, err)
	}
	n.note(CodeLoaded, Board{}, "", "")
	if t.kind == loading {
		n.fx.Replies = append(n.fx.Replies, Reply{Call: t.call, Secret: s})
		return nil
	}
	defer s.Destroy()
	return n.giveSpare(t, s)
}

// notRebuilt tells who waits. Digests were compared, so only packages that were wrong from the start lead here.
func (n *Node) notRebuilt(t *tracked, err error) error {
	if _, typed := errors.AsType[CombineError](err); !typed {
		return exhausted(err)
	}
	n.note(CodeCombineFailed, t.peer, "", "%v", err)
	if t.kind == loading {
		n.fx.Replies = append(n.fx.Replies, Reply{Call: t.call, Err: reason.Wrap(err, CodeCombineFailed, "", "lrtq: load")})
	}
	return nil
}

// giveSpare answers a learner: with the share it was given before, or the next one, which is stored first.
func (n *Node) giveSpare(t *tracked, s secret.RackSecret) error {
	learner := t.peer
	if !n.connected(learner) {
		n.note(CodeLearnerGone, learner, KindLearn, "")
		return nil
	}
	index, again := n.st.Given[learner]
	if !again {
		index = nextSpare(n.st.Given)
	}
	share, err := n.st.Package.SpareShare(n.alloc, s, index)
	if _, damaged := errors.AsType[*PackageError](err); damaged || errors.Is(err, ErrDecrypt) {
		n.note(CodePackageDamaged, learner, KindLearn, "%v", err)
		return nil
	}
	if errors.Is(err, ErrNoSpare) {
		n.refuse(learner, t.id, KindLearn, Refusal{Why: CannotSpareAShare})
		return nil
	}
	if err != nil {
		return exhausted(err)
	}
	defer share.Destroy()
	p := n.st.Package.Common
	p.Share = share
	if p, err = p.Clone(n.alloc); err != nil {
		return exhausted(err)
	}
	if !again {
		st := n.st
		if st.Given = maps.Clone(st.Given); st.Given == nil {
			st.Given = map[Board]int{}
		}
		st.Given[learner] = index
		n.become(st)
	}
	n.note(CodeSpareShareGiven, learner, KindLearn, "number %d", share.X)
	n.send(learner, Response{t.id, LearnReply{p}})
	return nil
}

// nextSpare is one more than the highest number given.
func nextSpare(given map[Board]int) int {
	next := 0
	for _, i := range given {
		next = max(next, i+1)
	}
	return next
}

func (n *Node) onLearnReply(from Board, t *tracked, p Package) error {
	if n.st.Phase != Learning || t == nil || t.kind != asking || t.peer != from {
		n.note(CodeUnexpected, from, KindLearnPkg, "this sled is %s", n.st.Phase)
		return nil
	}
	if err := p.Validate(); err != nil {
		n.note(CodePackageInvalid, from, KindLearnPkg, "%v", err)
		return nil
	}
	own, err := p.Clone(n.alloc)
	if err != nil {
		return exhausted(err)
	}
	n.end(t)
	n.become(State{Phase: Learned, Package: SharePackage{Common: own}})
	n.note(CodeLearned, from, KindLearnPkg, "share %d", own.Share.X)
	return nil
}
