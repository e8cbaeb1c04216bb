package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sledvault/sledvault/rot/enroll"
)

// strangerPause is how long a refused set of a client without a certificate keeps the next one waiting: sets cost a
// signature and up to half a megabyte of decoding, and there is no other limit on who may send them.
const strangerPause = 100 * time.Millisecond

// putSet takes an enrolment set.
func (u *Underlay) putSet(ctx context.Context, r *http.Request) (any, error) {
	envelope, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, badField("set", err)
	}
	if len(envelope) > enroll.MaxSet {
		return nil, badField("set", fmt.Errorf("have %d bytes, want at most %d", len(envelope), enroll.MaxSet))
	}
	st := stateOf(ctx)
	if st.refused != nil {
		return u.strangerSet(ctx, st, envelope)
	}
	g, err := u.cfg.Node.EnrollSet(ctx, st.conn, envelope)
	return SetReply{Generation: g}, err
}

// strangerSet takes a set from a client whose certificate is not good: after the loss of the membership key nobody has
// one that is (local-api.md §5). The set carries its own proof: it must change a key, and be signed by the recovery key
// of the set held. Whoever hands it over decides nothing by it. One at a time is judged, in the order of arrival.
func (u *Underlay) strangerSet(ctx context.Context, st *connState, envelope []byte) (any, error) {
	select {
	case u.stranger <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	g, err := u.judge(ctx, st, envelope)
	if err != nil {
		time.AfterFunc(strangerPause, func() { <-u.stranger })
		return nil, err
	}
	<-u.stranger
	return SetReply{Generation: g}, nil
}

func (u *Underlay) judge(ctx context.Context, st *connState, envelope []byte) (uint64, error) {
	set, err := enroll.DecodeSet(envelope)
	if err != nil {
		return 0, st.refused
	}
	switch held := u.cfg.Node.Set(); {
	case held == nil: // it may have lost its seal with all files; the TPM remembers the key then
		if err := set.VerifyFirst(u.cfg.Node.ClaimFingerprint()); err != nil {
			return 0, st.refused
		}
	case !enroll.Rekeys(held, set):
		return 0, st.refused
	default:
		if err := enroll.VerifySuccessor(held, set); err != nil {
			return 0, err
		}
	}
	return u.cfg.Node.EnrollSet(ctx, st.conn, envelope) // which judges it again, by the set of that moment
}
