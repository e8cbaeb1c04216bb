package replay

import (
	"encoding/json"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// board is a baseboard as logs have it.
type board struct {
	Part   string `json:"part_number"`
	Serial string `json:"serial_number"`
}

func boards(in []ident.Baseboard) []board {
	out := make([]board, len(in))
	for i, b := range in {
		out[i] = board(b)
	}
	return out
}

// MarshalJSON gives the form of the logs.
func (c Change) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Op            Op              `json:"op"`
		Epoch         ident.Epoch     `json:"epoch"`
		LastCommitted *ident.Epoch    `json:"last_committed_epoch"`
		Coordinator   board           `json:"coordinator"`
		Members       []board         `json:"members"`
		Threshold     ident.Threshold `json:"threshold"`
		Tolerance     uint64          `json:"commit_crash_tolerance"`
		Prepared      []board         `json:"prepared_members"`
		Committed     []board         `json:"committed_members"`
	}{
		c.Op, c.Epoch, c.LastCommitted, board(c.Coordinator), boards(c.Members), c.Threshold, c.Tolerance, boards(c.Prepared), boards(c.Committed),
	})
}

// MarshalJSON gives the form of the logs.
func (a Reply) MarshalJSON() ([]byte, error) {
	if !a.From.IsZero() {
		type ack struct {
			From  board       `json:"from"`
			Epoch ident.Epoch `json:"epoch"`
		}
		return json.Marshal(map[string]ack{"CommitAck": {board(a.From), a.Epoch}})
	}
	type acks struct {
		Epoch ident.Epoch `json:"epoch"`
		Acks  []board     `json:"acks"`
	}
	return json.Marshal(map[string]acks{"AckedPreparesFromCoordinator": {a.Epoch, boards(a.Acks)}})
}

// MarshalJSON gives code, text and place.
func (e *LogError) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Code   reason.Code `json:"code"`
		Text   string      `json:"error"`
		Hint   string      `json:"hint,omitempty"`
		Line   int         `json:"line"`
		Offset int64       `json:"offset"`
		Event  int         `json:"event"`
	}{reason.CodeOf(e), e.Error(), reason.HintOf(e), e.Line, e.Offset, e.Event})
}
