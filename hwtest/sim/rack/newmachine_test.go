//go:build linux

package simrack_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/vault/api"
)

// TestNewMachine: whoever holds a rack asks for one more machine, and adds it as an operator does.
func TestNewMachine(t *testing.T) {
	t.Parallel()
	r := newRack(t)
	m, err := r.Manifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- r.Control(ctx, func() { close(ready) }) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	<-ready
	c, err := net.Dial("unix", m.Control)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprintln(c, "new"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	var made simrack.ManifestSled
	if err != nil || json.Unmarshal([]byte(line), &made) != nil || made.Name == "" {
		t.Fatalf("have %q, %v", line, err)
	}
	s, err := r.Find(made.Name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Await(ctx, "unclaimed", func(st api.Status) bool { return st.State == api.StateUnclaimed }); err != nil {
		t.Fatal(err)
	}
	ek, err := r.On(ctx, s, "tpm", "ek")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(m.RackFile, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(f, "\n[[sled]]\nname = %q\npart = %q\nserial = %q\nunderlay = %q\nek_name = %q\n",
		made.Name, made.Baseboard.Part, made.Baseboard.Serial, made.Underlay, strings.TrimSpace(string(ek)))
	if err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	if _, err := r.Run(ctx, "rack", "add", made.Name, "--rack", m.RackFile); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Await(ctx, "a member", func(st api.Status) bool { return st.State == api.StateMember }); err != nil {
		t.Fatal(err)
	}
}
