package client

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/sledvault/sledvault/vault/reason"
)

const (
	maxHead = 16 << 10 // bytes of an answer's head
	keySize = 32       // bytes of a disk key
)

// Key copies the key of one disk to w: all of it, or nothing. It speaks HTTP by hand, since the library's buffers would
// keep a copy of the key; the only copy made here is wiped.
func (l *Local) Key(ctx context.Context, id string, w io.Writer) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", l.socket)
	if err != nil {
		return unreachable(l.socket, err)
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintf(c, "POST /v1/disks/%s/key HTTP/1.1\r\nHost: sled\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", url.PathEscape(id)); err != nil {
		return unreachable(l.socket, err)
	}
	head, err := readHead(c)
	if err != nil {
		return noKey(ctx, l.socket, err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), nil)
	if err != nil {
		return noKey(ctx, l.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body = io.NopCloser(io.LimitReader(c, 64<<10))
		return refusal(resp)
	}
	if resp.ContentLength != keySize {
		return reason.New(CodeBadAnswer, "compare the versions of sledvault and sledvaultd", "client: disk key: have %d bytes, want %d", resp.ContentLength, keySize)
	}
	var key [keySize]byte
	defer clear(key[:])
	if _, err := io.ReadFull(c, key[:]); err != nil {
		return noKey(ctx, l.socket, err)
	}
	_, err = w.Write(key[:])
	return err
}

func noKey(ctx context.Context, socket string, err error) error {
	if ctx.Err() != nil {
		return unreachable(socket, ctx.Err())
	}
	return reason.Wrap(err, CodeBadAnswer, "see sledvault status", "client: disk key")
}

// readHead reads up to the blank line, byte by byte, so that nothing of what follows is read ahead.
func readHead(c net.Conn) ([]byte, error) {
	head := make([]byte, 0, 1<<10)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) >= maxHead {
			return nil, fmt.Errorf("head of the answer: more than %d bytes", maxHead)
		}
		var b [1]byte
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return nil, err
		}
		head = append(head, b[0])
	}
	return head, nil
}
