package api

import (
	"context"
	"net/http"
	"time"

	"github.com/sledvault/sledvault/vault/ident"
)

// ResetRequest asks a sled to forget its rack.
type ResetRequest struct {
	// Baseboard must be this sled's: whoever means another sled is stopped here.
	Baseboard ident.Baseboard `json:"baseboard"`
	// LeaveRack confirms that a sled that is, or may be, a member gives up its shares and the records of its disks.
	LeaveRack bool `json:"leave_rack"`
}

// routeReset un-claims the sled.
const routeReset = "POST /v1/seal/reset"

// reset answers before the daemon ends.
func (l *Local) reset(w http.ResponseWriter, r *http.Request, who Caller) {
	err := takeBody(w, r)
	var req ResetRequest
	if err == nil {
		req, err = body[ResetRequest](r)
	}
	end := func() {}
	if err == nil {
		end, err = l.cfg.Node.ResetSeal(r.Context(), who, req)
	}
	if err != nil {
		writeError(l.cfg.Reasons, who.name(), w, r, err)
	} else {
		writeJSON(w, http.StatusOK, struct{}{})
	}
	_ = http.NewResponseController(w).Flush()
	if end != nil {
		end()
	}
}

// statusWait is the longest that a caller waits for a change of the status.
const statusWait = 30 * time.Second

// status answers at once, or with ?after= when the status has another revision.
func (l *Local) status(ctx context.Context, r *http.Request) (any, error) {
	after, asked, err := afterOf(r)
	if err != nil {
		return nil, err
	}
	if asked {
		wait, cancel := context.WithTimeout(ctx, statusWait)
		defer cancel()
		l.cfg.Node.AwaitChange(wait, after)
	}
	return l.cfg.Node.Status(ctx), nil
}
