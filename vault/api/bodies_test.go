package api

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
)

// takesAll is a node that only looks at what requests became.
type takesAll struct {
	Node
	t *testing.T
}

func (n takesAll) Reconfigure(_ context.Context, in quorum.Reconfigure) error {
	for _, m := range in.Members {
		if !m.IsZero() && m.Validate() != nil {
			n.t.Fatalf("member %q", m)
		}
	}
	return nil
}

func (n takesAll) UpgradeLRTQ(_ context.Context, in quorum.UpgradeLRTQ) error {
	return n.Reconfigure(n.t.Context(), quorum.Reconfigure{Members: in.Members})
}

func (n takesAll) Commit(context.Context, quorum.Commit) (quorum.CommitStatus, error) {
	return quorum.Pending, nil
}

func (n takesAll) PrepareAndCommit(_ context.Context, in quorum.PrepareAndCommit) (quorum.CommitStatus, error) {
	if in.Config == nil {
		n.t.Fatal("no configuration")
	}
	return quorum.Pending, nil
}

func (n takesAll) ProxyCommit(context.Context, ident.Baseboard, quorum.Commit) (quorum.CommitStatus, error) {
	return quorum.Pending, nil
}

func (n takesAll) ProxyPrepareAndCommit(ctx context.Context, _ ident.Baseboard, in quorum.PrepareAndCommit) (quorum.CommitStatus, error) {
	return n.PrepareAndCommit(ctx, in)
}

func (n takesAll) ProxyStatus(context.Context, ident.Baseboard) (NodeStatus, error) {
	return NodeStatus{}, nil
}

// FuzzBodies: whatever the body, a request is read as one value without unknown fields or refused with the code of a bad
// request; nothing panics, and what was read survives being written
// and read.
func FuzzBodies(f *testing.F) {
	cert := `{"rack_id":"01000000-0000-0000-0000-000000000000","epoch":1,"config_digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","signature":"AA=="}`
	for _, b := range []string{
		`{"rack_id":"01000000-0000-0000-0000-000000000000","epoch":1,"members":["a:1","a:2","a:3"],"threshold":2,"last_committed_epoch":null,"grant":null}`,
		`{"rack_id":"01000000-0000-0000-0000-000000000000","epoch":1,"certificate":` + cert + `}`,
		`{"config":{"epoch":1},"certificate":` + cert + `}`, `{"wait_ms":1}`, `{"peers":["[::1]:1"]}`, `{"generation":7,"blob":"e30="}`,
		`{"destination":"a:1","request":{"rack_id":"01000000-0000-0000-0000-000000000000","epoch":1,"certificate":` + cert + `}}`, `{"baseboard":"a:1","leave_rack":true}`, `{"nonce":"AA=="}`, `{}`, `null`, `[]`,
	} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range quorumRoutes(takesAll{t: t}, RoleOperate) {
			if r.pattern == "GET /v1/quorum/coordinator" || r.pattern == "GET /v1/quorum/config" {
				continue
			}
			_, err := r.handle(t.Context(), httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(b)))
			typed(t, err)
		}
		survives[UnlockRequest](t, b)
		survives[PeersRequest](t, b)
		survives[NetworkConfigRequest](t, b)
		survives[ProxyCommitRequest](t, b)
		survives[FormatRequest](t, b)
		survives[ResetRequest](t, b)
		survives[AttestRequest](t, b)
		survives[enroll.BeginRequest](t, b)
		survives[enroll.ActivateRequest](t, b)
	})
}

func typed(t *testing.T, err error) {
	t.Helper()
	if err != nil && (reason.CodeOf(err) != CodeBadRequest || len(err.Error()) > 1000) {
		t.Fatalf("have %v", err)
	}
}

func survives[T any](t *testing.T, b []byte) {
	t.Helper()
	read := func(b []byte) (T, error) {
		return body[T](httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(b)))
	}
	v, err := read(b)
	if err != nil {
		typed(t, err)
		return
	}
	once, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	v, err = read(once)
	if err != nil { // an identity that was left out has no text that would be read
		typed(t, err)
		return
	}
	if twice, err := json.Marshal(v); err != nil || !bytes.Equal(once, twice) {
		t.Fatalf("%v: have %s, want %s", err, twice, once)
	}
}
