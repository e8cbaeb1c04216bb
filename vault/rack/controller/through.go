package controller

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/wire"
)

// node is a sled's trust-quorum node: at its own API, or as another sled passes requests on (peers.md §9).
type node interface {
	Commit(ctx context.Context, r api.CommitRequest) (quorum.CommitStatus, error)
	PrepareAndCommit(ctx context.Context, r api.PrepareAndCommitRequest) (quorum.CommitStatus, error)
	// newest is the latest committed epoch, 0 if there is none.
	newest(ctx context.Context) (ident.Epoch, error)
}

func (s *Sledlink) newest(ctx context.Context) (ident.Epoch, error) {
	raw, err := s.Config(ctx)
	if err != nil {
		return 0, err
	}
	cfg, err := wire.DecodeConfigurationJSON(raw.Config)
	if err != nil || cfg == nil {
		return 0, nil //nolint:nilerr // what it is behind in is the commit's matter
	}
	return cfg.Epoch, nil
}

// proxied is the node of a sled that another one is connected to. That one has proved itself to us, and the sled to it.
type proxied struct {
	via *Sledlink
	to  ident.Baseboard
}

func (p proxied) Commit(ctx context.Context, r api.CommitRequest) (quorum.CommitStatus, error) {
	return p.via.ProxyCommit(ctx, p.to, r)
}

func (p proxied) PrepareAndCommit(ctx context.Context, r api.PrepareAndCommitRequest) (quorum.CommitStatus, error) {
	return p.via.ProxyPrepareAndCommit(ctx, p.to, r)
}

func (p proxied) newest(ctx context.Context) (ident.Epoch, error) {
	st, err := p.via.ProxyStatus(ctx, p.to)
	if err != nil || len(st.PersistentState.Commits) == 0 {
		return 0, err
	}
	return slices.Max(st.PersistentState.Commits), nil
}

// reach runs f on the sled's node, again and again while what fails may succeed later. While the sled itself cannot be
// reached, or is slow to answer, f runs through sleds that are connected to it. f may run on both ways at once.
func (c *Controller) reach(ctx context.Context, b ident.Baseboard, f func(context.Context, node) error) error {
	return c.again(ctx, b, func() error { return c.eitherWay(ctx, b, f) })
}

// eitherWay tries the sled itself and, when that fails or takes long, the ways through others. It ends with the first that
// comes to a result.
func (c *Controller) eitherWay(parent context.Context, b ident.Baseboard, f func(context.Context, node) error) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	direct := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		s, err := c.link(ctx, b)
		if err == nil {
			err = f(ctx, s)
			_ = s.Close()
		}
		direct <- err
	})
	slow := time.NewTimer(patience)
	defer slow.Stop()
	err := error(reason.Later(client.CodeUnreachable, "", "rack: %s has not answered for %v", c.label(b), patience))
	pending := true
	select {
	case err = <-direct:
		if !outOfReach(err) {
			return err
		}
		pending = false
	case <-slow.C:
	}
	found, perr := c.through(ctx, b, err, f)
	if found && (perr == nil || reason.RemedyOf(perr) != reason.Retry) {
		return perr
	}
	if pending {
		if err = <-direct; !outOfReach(err) {
			return err
		}
	}
	return &reason.Error{Code: reason.CodeOf(err), Text: err.Error() + "; " + perr.Error(), Hint: reason.HintOf(err), Remedy: reason.Retry}
}

// outOfReach reports whether an error says nothing but that the sled could not be spoken to.
func outOfReach(err error) bool {
	code := reason.CodeOf(err)
	return code == client.CodeUnreachable || code == api.CodeTimeout
}

// through runs f through one sled after another that says it is connected to b, until one gives a result that counts.
// Where there is none it reports false, and in the error why.
func (c *Controller) through(ctx context.Context, b ident.Baseboard, why error, f func(context.Context, node) error) (found bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for s := range c.connectedTo(ctx, b) {
		found = true
		c.sayOnce(b, "through "+s.Label(), "going through "+s.Label()+": "+why.Error())
		perr := c.via(ctx, s, b, f)
		switch {
		case perr == nil:
			return true, nil
		case reason.RemedyOf(perr) != reason.Retry && !proxysFault(perr):
			return true, perr
		}
		e := reason.Later(reason.CodeOf(perr), reason.HintOf(perr), "through %s: %v", s.Label(), perr)
		if err == nil {
			err = e
		} else {
			err = reason.Later(reason.CodeOf(perr), reason.HintOf(perr), "%v; %v", err, e)
		}
	}
	if !found {
		err = reason.Later(client.CodeUnreachable, "", "no other sled that answers is connected to it")
	}
	return found, err
}

// proxysFault reports whether another way may do better: the sled may refuse one member and not another.
func proxysFault(err error) bool {
	switch reason.CodeOf(err) {
	case api.CodeProxyRefused, api.CodeProxyInvalid, api.CodeForbidden, api.CodeNotFound:
		return true
	}
	_, plain := errors.AsType[*reason.Error](err)
	return !plain
}

// via runs f through one sled, once that has proved itself.
func (c *Controller) via(ctx context.Context, s Sled, to ident.Baseboard, f func(context.Context, node) error) error {
	link, err := c.link(ctx, s.Baseboard())
	if err != nil {
		return err
	}
	defer func() { _ = link.Close() }()
	return f(ctx, proxied{link, to})
}

// connectedTo asks all other sleds whether they are connected to b, and yields those that are, as they answer. Nothing is
// decided by what they say here: whoever is asked to pass a request on proves itself first.
func (c *Controller) connectedTo(ctx context.Context, b ident.Baseboard) <-chan Sled {
	out := make(chan Sled, len(c.file.Sleds))
	var wg sync.WaitGroup
	for _, s := range c.file.Sleds {
		if s.Baseboard() == b {
			continue
		}
		wg.Go(func() {
			if r := c.reportOf(ctx, s); connects(&r, b) {
				out <- s
			}
		})
	}
	go func() {
		wg.Wait()
		close(out)
	}()
	return out
}

// connects reports whether a sled says that it is connected to b.
func connects(r *Report, b ident.Baseboard) bool {
	return r.Status != nil && r.Status.Quorum != nil && slices.Contains(r.Status.Quorum.ConnectedPeers, b)
}
