// Boot path 9/9: after vault/keys/disk.go.

package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/sledvault/sledvault/vault/reason"
)

// routeKey hands out a disk key.
const routeKey = "POST /v1/disks/{id}/key"

// releaseKey is the only way by which a key leaves a sled: to a caller with the role unlock, for the disk it names,
// after the release was recorded (local-api.md §4). The answer is the 32 bytes and nothing else. The connection is taken
// over from the HTTP library first, so that no buffer of its own keeps a copy, and closed behind the last byte.
func (l *Local) releaseKey(w http.ResponseWriter, r *http.Request, who Caller) {
	if err := takeBody(w, r); err != nil {
		writeError(l.cfg.Reasons, who.name(), w, r, err)
		return
	}
	key, err := l.cfg.Node.ReleaseKey(r.Context(), who, r.PathValue("id"))
	if err != nil {
		writeError(l.cfg.Reasons, who.name(), w, r, err)
		return
	}
	defer key.Destroy()
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeError(l.cfg.Reasons, who.name(), w, r, reason.Wrap(err, CodeInternal, "", "api: take the connection over"))
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	head := "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Length: " +
		strconv.Itoa(key.Len()) + "\r\n\r\n"
	if _, err := conn.Write([]byte(head)); err == nil {
		_ = key.Use(func(b []byte) error { _, err := conn.Write(b); return err })
	}
}
