//go:build linux && !race

package ledger

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/sledvault/sledvault/sealing"
	"github.com/sledvault/sledvault/tpm"
	"github.com/sledvault/sledvault/vault/secret"
)

// victimEnv has this program, started again, be the process that is killed.
const victimEnv = "LEDGER_TEST_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	os.Exit(m.Run())
}

// job is what a victim does, in one line of JSON on its standard input.
type job struct {
	Op     string // a name of [victimOps]
	Value  uint64 // what it stores
	Dirs   [2]string
	Device string // of the TPM
	Pins   sealing.Pins
}

// found is what a victim has found at its start, and done what it had stored when it was done: one line each on its
// standard output.
type (
	saw struct {
		Value    uint64 // of the state
		Release  uint64 // of the newest observation
		Set      uint64 // generation of the newest enrolment set in the folders
		Whole    bool   // both copies stand and the counter has their sequence
		Sequence uint64
		Lost     string // why there is no state, if there is none
		Pins     sealing.Pins
	}
	stored struct{ Done bool }
)

// victim says that it is there, waits for its job, does it, and waits for the end. Between its lines it does nothing but that.
func victim() {
	in := bufio.NewReader(os.Stdin)
	say("ready")
	line, err := in.ReadBytes('\n')
	var j job
	if err == nil {
		err = json.Unmarshal(line, &j)
	}
	if err == nil {
		err = j.run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	say(stored{true})
	_, _ = in.ReadByte()
}

// say writes a line with one system call.
func say(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	_, _ = os.Stdout.Write(append(b, '\n'))
}

func (j *job) run(ctx context.Context) error {
	t, err := tpm.Open(ctx, tpm.Config{Device: j.Device})
	if err != nil {
		return err
	}
	defer func() { _ = t.Close() }()
	p := sealing.Params{TPM: t, Alloc: secret.Heap{}, Rand: rand.Reader, Baseboard: testID, AuthDirs: j.Dirs}
	cfg := Config{Dirs: j.Dirs, Rack: testRack, Baseboard: testID, Alloc: secret.Heap{}, Rand: rand.Reader}
	l, st, _, err := Open(ctx, cfg, func(ctx context.Context, blob []byte, approvals [][]byte) (Sealer, error) {
		return sealing.Open(ctx, p, j.Pins, testRack, blob, approvals)
	})
	if lost := (*LostSealError)(nil); errors.Is(err, ErrAbsent) || errors.As(err, &lost) {
		say(saw{Lost: err.Error()})
		if j.Op == "enrol" {
			return j.enrol(ctx, p, cfg)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	s := l.Status()
	out := saw{Value: value(st), Whole: !s.Degraded && s.Counter == s.Sequence, Sequence: s.Sequence}
	if r := l.Observed().Releases; len(r) > 0 {
		out.Release = uint64(r[len(r)-1].BootMS)
	}
	if set, err := ReadEnrolment(j.Dirs); err == nil {
		out.Set = stated(set)
	}
	say(out)
	return j.do(ctx, l)
}

func (j *job) do(ctx context.Context, l *Ledger) error {
	switch j.Op {
	case "save":
		return l.Save(ctx, state(j.Value))
	case "observe":
		o := l.Observed()
		o.AddRelease(Release{Disk: "d", BootMS: int64(j.Value)})
		return l.SaveObserved(ctx, o)
	case "rekey":
		fresh, err := l.sealer.(*sealing.Unsealed).Rekey(ctx)
		if err != nil {
			return err
		}
		return l.Rekey(ctx, fresh, state(j.Value))
	case "set":
		return l.SaveSet(ctx, setOf(j.Value), state(j.Value))
	case "refresh":
		// An update is staged, another one each time: without something new to approve nothing is written.
		next := map[int][32]byte{}
		for _, n := range sealing.DefaultPCRs() {
			next[n] = sha256.Sum256([]byte(rand.Text()))
		}
		if err := l.sealer.(*sealing.Unsealed).Stage(next); err != nil {
			return err
		}
		return l.Refresh(ctx)
	}
	return nil
}

// setOf looks like an enrolment set of a generation, as far as the ledger looks.
func setOf(generation uint64) []byte {
	b, err := cbor.Marshal(map[int]uint64{2: generation})
	if err != nil {
		panic(err)
	}
	return b
}

// enrol makes a sled's first state as the daemon does, or makes it again.
func (j *job) enrol(ctx context.Context, p sealing.Params, cfg Config) error {
	if err := MoveAside(j.Dirs); err != nil {
		return err
	}
	e, err := sealing.Begin(ctx, p)
	if err != nil {
		return err
	}
	d, err := e.Describe(ctx, [32]byte{})
	if err != nil {
		return err
	}
	say(saw{Pins: sealing.Pins{SRKName: d.SRKName, EKName: d.EKName, AKName: d.AKName, CounterName: d.CounterName}})
	u, err := e.Finish(ctx, testRack, sealing.Claim{Rack: testRack})
	if err != nil {
		return err
	}
	if err := WriteEnrolment(j.Dirs, setOf(j.Value)); err != nil {
		return err
	}
	l, err := Create(ctx, cfg, u, state(j.Value))
	if err != nil {
		return err
	}
	return l.Close()
}

// same reports whether two pins name one counter.
func same(a, b sealing.Pins) bool { return bytes.Equal(a.CounterName, b.CounterName) }
