package api_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
)

// lastWords is a node that ends only when its caller has read the answer to the reset.
type lastWords struct {
	*fakeNode

	read  chan struct{}
	ended chan bool
}

func (n lastWords) ResetSeal(context.Context, api.Caller, api.ResetRequest) (func(), error) {
	return func() {
		select {
		case <-n.read:
			n.ended <- true
		case <-time.After(5 * time.Second):
			n.ended <- false
		}
	}, nil
}

// TestResetAnswer: all of the answer has left before the daemon ends. A caller that got half of it would take a reset that
// was done for one that failed.
func TestResetAnswer(t *testing.T) {
	t.Parallel()
	n := lastWords{newFake(), make(chan struct{}), make(chan bool, 1)}
	dir, err := os.MkdirTemp("", "sv") // short: unix sockets have short names
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := api.ListenLocal(api.LocalConfig{
		Socket: dir + "/s", Node: n, Reasons: n.reasons, Rules: []api.RoleRule{{Role: api.RoleOperate, UIDs: []uint32{uint32(os.Getuid())}}},
	})
	must(t, err)
	serve(t, l.Serve)
	must(t, client.NewLocal(dir+"/s").ResetSeal(t.Context(), api.ResetRequest{Baseboard: sled}))
	close(n.read)
	if !<-n.ended {
		t.Error("the caller waited for the end of the daemon")
	}
}
