package vault

import (
	"context"
	"time"

	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/peer"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// CodeExpunged marks what a sled refuses because it was removed from its rack.
const CodeExpunged reason.Code = "expunged"

const hintExpunged = "this sled was removed from its rack; to use it again: sledvault seal reset, then sledvault rack add"

func errRemoved() error {
	return reason.New(CodeExpunged, hintExpunged, "vault: this sled was removed from its rack")
}

// removal waits for the news that this sled was removed.
type removal struct{ news chan struct{} }

func newRemoval() removal { return removal{make(chan struct{}, 1)} }

// signal says that the enrolment set may have changed.
func (r removal) signal() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// marked reports whether the enrolment set says that this sled was removed. That alone ends nothing: only a committed
// configuration without this sled does (protocol.md §9.6).
func (d *Daemon) marked() bool {
	set := d.Set()
	if set == nil {
		return false
	}
	rec, ok := set.Find(d.identity())
	return ok && !rec.Live()
}

// dropChanged ends connections to sleds whose record changed: they were judged by the old one. The new connection is
// judged by the new record, and tells a removed sled of it.
func dropChanged(peers *peer.Manager, old, set *enroll.Set) {
	for i := range set.Records {
		is := &set.Records[i]
		if was, ok := old.Find(is.Baseboard); ok && was.Hash() != is.Hash() {
			peers.Drop(is.Baseboard, reason.Later(channel.CodeRemoved, "nothing to do: the connection is made again under the new record",
				"vault: the record of sled %s changed with enrolment set %d", is.Baseboard, set.Generation))
		}
	}
}

// followRemoval asks the members for shares once the enrolment set says that this sled was removed. Instead of a share
// they give the proof.
func (d *Daemon) followRemoval(ctx context.Context, drv *driver) {
	for {
		var again <-chan time.Time
		if d.marked() {
			if st, _, _ := drv.Status(); st.Expunged != nil {
				return
			}
			drv.tell(quorum.ClearSecrets{}) // a secret in memory would answer instead of the members
			rep, err := drv.do(ctx, func(id quorum.RequestID) quorum.Input { return quorum.LoadSecret{ID: id} })
			rep.Secret.Destroy()
			if err == nil || reason.RemedyOf(err) == reason.Retry {
				again = time.After(retryLast) // members that have not heard of the removal still answered
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-d.removal.news:
		case <-again:
		}
	}
}

// staysRemoved keeps a removed sled as it is: its APIs answer, and nothing is opened.
func (d *Daemon) staysRemoved(ctx context.Context) error {
	d.setState(api.StateExpunged)
	d.boot.wait("nothing: this sled was removed from its rack", errRemoved())
	<-ctx.Done()
	return ctx.Err()
}
