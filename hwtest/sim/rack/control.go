//go:build linux

package simrack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/sledvault/sledvault/vault/ident"
)

// Manifest says where everything of a held rack is.
type Manifest struct {
	Rack     ident.RackID   `json:"rack"`
	Dir      string         `json:"dir"`
	RackFile string         `json:"rackfile"`
	Sleds    []ManifestSled `json:"sleds"`
	Control  string         `json:"control"` // unix socket, see [Rack.Control]
}

// ManifestSled is one sled of a [Manifest].
type ManifestSled struct {
	Name      string         `json:"name"`
	Baseboard ManifestBoard  `json:"baseboard"`
	Pid       int            `json:"pid"` // of the daemon when the manifest was made; the control socket tells the present one
	Start     []string       `json:"start"`
	Config    string         `json:"config"`
	State     [2]string      `json:"state"`
	Log       string         `json:"log"`
	Trace     string         `json:"trace"` // the file of [log] trace_marker
	API       string         `json:"api"`
	Peer      string         `json:"peer"`
	Underlay  string         `json:"underlay"`
	SP        string         `json:"sp"`
	SPInject  string         `json:"sp_inject"` // what is written there reaches the daemon as line noise
	TPM       string         `json:"tpm"`
	TPMDir    string         `json:"tpm_dir"`
	TPMLog    string         `json:"tpm_log"`
	Disks     []ManifestDisk `json:"disks"`
}

// ManifestBoard is a baseboard whose parts a script can take as they are.
type ManifestBoard struct {
	Part   string `json:"part"`
	Serial string `json:"serial"`
}

// ManifestDisk is one disk of a [ManifestSled].
type ManifestDisk struct {
	ID   string `json:"id"`
	Path string `json:"path"`
}

// Manifest describes the rack. It asks a sled for the rack's id.
func (r *Rack) Manifest(ctx context.Context) (Manifest, error) {
	st, err := r.Sled(0).Client().Status(ctx)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{Dir: r.Dir, RackFile: r.File, Control: r.controlPath()}
	if st.Rack != nil {
		m.Rack = st.Rack.ID
	}
	for _, s := range r.Sleds() {
		m.Sleds = append(m.Sleds, s.manifest())
	}
	return m, nil
}

func (s *Sled) manifest() ManifestSled {
	v := ManifestSled{
		Name: s.Name, Baseboard: ManifestBoard(s.Board), Pid: s.Pid(), Start: s.Argv(), Config: s.Config, State: s.State, Log: s.Log, Trace: s.Trace,
		API: s.API, Peer: s.Peer, Underlay: s.Underlay, SP: s.sp.Path(), SPInject: s.sp.InjectPath(),
		TPM: s.TPMSocket, TPMDir: s.TPMDir, TPMLog: s.TPMLog,
	}
	for _, d := range s.Disks {
		v.Disks = append(v.Disks, ManifestDisk{d.ID, d.Path})
	}
	return v
}

func (r *Rack) controlPath() string { return filepath.Join(r.Dir, "control.sock") }

// Control serves the control socket until ctx ends; ready is called when it listens. "start NAME", "stop NAME", "power-cycle NAME" in a line each are
// answered by "ok" or "error: TEXT" when they are carried out; "status" by one line of JSON; "new" by the [ManifestSled] of one more machine, unclaimed.
func (r *Rack) Control(ctx context.Context, ready func()) error {
	ln, err := net.Listen("unix", r.controlPath())
	if err != nil {
		return fmt.Errorf("simrack: control socket: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	ready()
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("simrack: control socket: %w", err)
		}
		r.wg.Go(func() { r.serveControl(ctx, c) })
	}
}

func (r *Rack) serveControl(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer func() { _ = c.Close() }()
	for in := bufio.NewScanner(c); in.Scan(); {
		if _, err := fmt.Fprintln(c, r.obey(ctx, in.Text())); err != nil {
			return
		}
	}
}

// obey carries out one line.
func (r *Rack) obey(ctx context.Context, line string) string {
	words := strings.Fields(line)
	var err error
	switch {
	case len(words) == 1 && words[0] == "status":
		return r.pids()
	case len(words) == 1 && words[0] == "new":
		var text string
		if text, err = r.newMachine(ctx); err == nil {
			return text
		}
	case len(words) != 2:
		err = fmt.Errorf("simrack: have %.60q, want start, stop or power-cycle with a name, new, or status", line)
	default:
		err = r.obeySled(words[0], words[1])
	}
	if err != nil {
		return "error: " + strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return "ok"
}

// newMachine builds one more sled and boots it. It is not in the rack file: to add it is the operator's work.
func (r *Rack) newMachine(ctx context.Context) (string, error) {
	r.making.Lock()
	defer r.making.Unlock()
	if r.hosts+1 >= strangerHost {
		return "", fmt.Errorf("simrack: new sled: have %d, and no address is left", r.hosts)
	}
	s := r.nextSled()
	r.outsider(s)
	if err := s.first(ctx, append(r.peers(), s.Peer)); err != nil {
		return "", &SledError{s, err}
	}
	r.insider(s)
	b, err := json.Marshal(s.manifest())
	return string(b), err
}

func (r *Rack) obeySled(verb, name string) error {
	s, err := r.Find(name)
	if err != nil {
		return err
	}
	switch verb {
	case "start":
		return s.Start()
	case "stop":
		return s.Stop()
	case "power-cycle":
		return s.PowerCycle()
	}
	return fmt.Errorf("simrack: have %.40q, want start, stop or power-cycle", verb)
}

// pids is the answer to "status".
func (r *Rack) pids() string {
	type sled struct {
		Name   string `json:"name"`
		Pid    int    `json:"pid"` // 0 while no daemon runs
		Starts uint64 `json:"starts"`
	}
	out := struct {
		Sleds []sled `json:"sleds"`
	}{}
	for _, s := range r.Sleds() {
		out.Sleds = append(out.Sleds, sled{s.Name, s.Pid(), s.started.Load()})
	}
	b, err := json.Marshal(out)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(b)
}
