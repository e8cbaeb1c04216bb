package client

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/sledvault/sledvault/vault/api"
)

// ResetSeal makes the sled forget its rack. The daemon ends after its answer.
func (l *Local) ResetSeal(ctx context.Context, r api.ResetRequest) error {
	return l.call(ctx, "POST", "/v1/seal/reset", r, nil)
}

// ClearAlarms forgets the sled's alarms.
func (l *Local) ClearAlarms(ctx context.Context) error {
	return l.call(ctx, "DELETE", "/v1/alarms", nil, nil)
}

// StatusAfter waits, at most half a minute, until the status has another revision than the given one, and returns it as
// the sled wrote it.
func (l *Local) StatusAfter(ctx context.Context, revision uint64) (raw json.RawMessage, err error) {
	return raw, l.call(ctx, "GET", "/v1/status?after="+strconv.FormatUint(revision, 10), nil, &raw)
}
