//go:build linux

package peers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/keys"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/quorum/quorumtest"
	"github.com/sledvault/sledvault/vault/secret"
)

// lastShare is the case P7: the last share that is needed arrives; how long until a disk key is there. Nodes run without
// a network: what is timed is the step of the protocol core that takes the share, rebuilds the rack secret and checks it,
// and the derivation of one disk key.
func (b *bench) lastShare(ctx context.Context) error {
	for _, size := range []struct {
		n, reps int
		k       ident.Threshold
	}{{3, 1000, 2}, {32, 500, 17}} {
		c, err := committed(size.n, size.k)
		if err != nil {
			return err
		}
		var times []time.Duration
		for range size.reps {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			took, err := lastShare(c, int(size.k))
			if err != nil {
				return err
			}
			times = append(times, took)
		}
		f := b.add("P7", "sledvault", fmt.Sprintf("last of %d shares taken in, to one disk key", size.k), times)
		b.ratio("P7", fmt.Sprintf("p99 of the last of %d shares, ms", size.k), f.P99, "2 or less", f.P99 <= 2)
	}
	return nil
}

// committed makes a cluster with one committed configuration.
func committed(n int, k ident.Threshold) (*quorumtest.Cluster, error) {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("s%02d", i)
	}
	c := quorumtest.NewCluster(1, names...)
	c.ConnectAll()
	first := c.Sleds[0]
	if err := c.Step(first, c.Request(first, 1, 0, k, c.Sleds...)); err != nil {
		return nil, err
	}
	if _, err := c.DeliverAll(nil); err != nil {
		return nil, err
	}
	config := first.Node.State().LatestConfig()
	if config == nil {
		return nil, errors.New("peers: the cluster has no configuration")
	}
	for _, s := range c.Sleds {
		if err := c.Step(s, quorum.Commit{ID: 1, RackID: config.RackID, Epoch: 1, Certificate: c.Auth.Certify(config)}); err != nil {
			return nil, err
		}
	}
	_, err := c.DeliverAll(nil)
	return c, err
}

// lastShare reboots the first sled of the cluster and lets it collect shares. All but the last are not timed.
func lastShare(c *quorumtest.Cluster, k int) (time.Duration, error) {
	s := c.Sleds[0]
	c.Crash(s)
	if err := c.Start(s); err != nil {
		return 0, err
	}
	for _, o := range c.Sleds[1:k] {
		c.Connect(s, o)
	}
	var got []quorum.Reply
	c.Seen = func(at *quorumtest.Sled, fx *quorum.Effects) {
		if at == s {
			got = append(got, fx.Replies...)
		}
	}
	defer func() { c.Seen = nil }()
	if err := c.Step(s, quorum.LoadSecret{ID: 7}); err != nil {
		return 0, err
	}
	var took time.Duration
	for _, o := range c.Sleds[1:k] {
		for c.Pending(s, o) > 0 {
			if _, _, err := c.Deliver(s, o); err != nil {
				return 0, err
			}
		}
		for c.Pending(o, s) > 0 {
			began := time.Now()
			if _, _, err := c.Deliver(o, s); err != nil {
				return 0, err
			}
			if len(got) == 0 {
				continue
			}
			if err := derive(got[0]); err != nil {
				return 0, err
			}
			took = time.Since(began)
			got = got[:0]
		}
	}
	if took == 0 {
		return 0, fmt.Errorf("peers: %d shares gave no rack secret", k)
	}
	return took, nil
}

func derive(r quorum.Reply) error {
	if r.Err != nil {
		return r.Err
	}
	defer r.Secret.Destroy()
	prk, err := keys.NewPRK(secret.Heap{}, r.Secret, [keys.Size]byte{1})
	if err != nil {
		return err
	}
	defer prk.Destroy()
	key, err := keys.DiskKey(secret.Heap{}, prk, keys.Disk{Vendor: "1b96", Model: "model", Serial: "serial"})
	if err != nil {
		return err
	}
	key.Destroy()
	return nil
}
