// Package controller runs a rack: it makes the rack's keys, enrolls sleds, and drives membership changes to their end.
//
// The rules are in package rack, the memory in package journal; here is what talks to sleds. A sled's answers are
// trusted only on a connection on which it has proved itself (evidence.md, role 'H'). Every call may be broken off at any
// point and run again. The rack commands run a controller in place.
package controller

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sledvault/sledvault/rot"
	"github.com/sledvault/sledvault/rot/channel"
	"github.com/sledvault/sledvault/rot/enroll"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/api/client"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/rack/journal"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
)

// Names of the files in the rack's folder, beside the journal's.
const (
	RackFile = "rack.toml"
	keyFile  = "membership.key"
	setFile  = "enrolment.cbor"
)

// Reasons of this package.
const (
	CodeNotEnrolled reason.Code = "rack-not-enrolled" // a sled has no record yet
	CodeSet         reason.Code = "rack-set"          // the folder's enrolment set cannot be used
	CodeForeignEK   reason.Code = "rack-foreign-ek"   // another TPM answers than the rack file names
	CodeImposter    reason.Code = "rack-imposter"     // another sled answers than the rack file names
)

// Event is one line of progress.
type Event struct {
	Sled string `json:"sled,omitempty"` // label; "" for the rack as a whole
	Text string `json:"text"`
}

// Controller works on one rack.
type Controller struct {
	file *File
	key  enroll.Key
	set  *enroll.Set // the newest, as this folder knows it
	cert tls.Certificate
	tell func(Event)

	former []*enroll.Authority // of membership keys before this one; only while one is being replaced

	onSave func(rack.State) error // see OnSave

	mu      sync.Mutex
	waiting map[ident.Baseboard]string // last reason told per sled, so that each is told once
	told    map[toldKey]bool           // what sayOnce has said
	lrtq    map[ident.Baseboard]bool   // sleds that said that they hold a package of the older scheme
}

// Access says how the file of the membership key is opened and written.
type Access struct {
	Passphrase enroll.Passphrase // asks for that of a file there is; nil: nobody can be asked
	Fresh      enroll.Passphrase // asks for that of a file to be made; nil: it is made without
	// NewRecovery has [Access.Recover] replace the recovery key as well: it shows the new one, which is stored nowhere and
	// is wiped afterwards. nil: the recovery key stays.
	NewRecovery func(text []byte) error
}

// save writes a key file.
func (a Access) save(path string, k enroll.Key) error {
	if a.Fresh == nil {
		return enroll.SaveKey(path, k)
	}
	pass, err := a.Fresh()
	defer clear(pass)
	if err != nil {
		return err
	}
	return enroll.SaveKeyUnder(path, k, pass, rand.Reader)
}

// NewRack is [Access.NewRack] with a key file without a passphrase.
func NewRack(dir, name string) (fingerprint string, recovery []byte, err error) {
	return Access{}.NewRack(dir, name)
}

// NewRack makes the folder of a new rack with a random id. See [Access.NewRackOf].
func (a Access) NewRack(dir, name string) (fingerprint string, recovery []byte, err error) {
	id, err := uuid.NewRandom()
	if err != nil {
		return "", nil, err
	}
	return a.NewRackOf(dir, name, ident.RackID(id))
}

// NewRackOf makes the folder of a rack: keys, an empty enrolment set, a rack file to fill in. A rack that comes from the
// older scheme keeps its id, which its disk keys depend on. It returns the fingerprint that goes into every sled's
// configuration, and the recovery key, which is stored nowhere: show it once and wipe it.
func (a Access) NewRackOf(dir, name string, id ident.RackID) (fingerprint string, recovery []byte, err error) {
	if !plainText(name) {
		return "", nil, &reason.Error{
			Code: CodeRackFile, Text: fmt.Sprintf("rack: name must be 1 to %d printable ASCII characters without quotes: have %.80q", maxName, name),
			Hint: "name it with --name", Remedy: reason.Usage,
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, reason.Wrap(err, CodeRackFile, "choose another folder", "rack: make folder")
	}
	member, err := enroll.NewKey(secret.Heap{}, rand.Reader)
	if err != nil {
		return "", nil, err
	}
	defer member.Destroy()
	rec, err := enroll.NewKey(secret.Heap{}, rand.Reader)
	if err != nil {
		return "", nil, err
	}
	defer rec.Destroy()
	set := enroll.NewSet(id, member.PublicKey(), rec.PublicKey())
	if err := set.Sign(member); err != nil {
		return "", nil, err
	}
	if err := a.save(filepath.Join(dir, keyFile), member); err != nil {
		return "", nil, err
	}
	if err := journal.WriteFile(filepath.Join(dir, setFile), set.Encode(), 0o600); err != nil {
		return "", nil, reason.Wrap(err, CodeSet, "free space", "rack: write enrolment set")
	}
	if err := writeRackFile(filepath.Join(dir, RackFile), name); err != nil {
		return "", nil, err
	}
	recovery, err = enroll.RecoveryText(rec)
	return enroll.Fingerprint(member.PublicKey()), recovery, err
}

// maxName bounds a rack's name and a sled's label in bytes.
const maxName = 64

// plainText accepts names that look the same in TOML, in tables and in logs.
func plainText(s string) bool {
	return len(s) > 0 && len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' })
}

const rackTemplate = `# The sleds of this rack. Add one table per sled, then: sledvault rack enroll
name = %q

# How many sleds must be together to unlock. Without it: half of them plus one.
# threshold = 3

# [[sled]]
# name = "left-1"
# part = "913-0000019"            # baseboard, as sledvault sp identity prints it on the sled
# serial = "BRM42220051"
# underlay = "[fd00::1]:12350"    # [underlay] listen of the sled's configuration
# ek_name = "000b..."             # as sledvault tpm ek prints it on the sled
`

func writeRackFile(path, name string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil // the operator wrote it first
	}
	if err == nil {
		_, err = fmt.Fprintf(f, rackTemplate, name)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return reason.Wrap(err, CodeRackFile, "free space", "rack: write rack file")
	}
	return nil
}

// Open is [Access.Open] for a key file without a passphrase.
func Open(path string, tell func(Event)) (*Controller, error) { return Access{}.Open(path, tell) }

// Open loads the rack file and what lies beside it. Progress goes to tell.
func (a Access) Open(path string, tell func(Event)) (*Controller, error) {
	f, err := Load(path)
	if err != nil {
		return nil, err
	}
	return openFile(f, a.Passphrase, tell)
}

func openFile(f *File, ask enroll.Passphrase, tell func(Event)) (c *Controller, err error) {
	c = &Controller{file: f, tell: tell, waiting: map[ident.Baseboard]string{}, lrtq: map[ident.Baseboard]bool{}}
	if c.key, err = enroll.LoadKey(secret.Heap{}, filepath.Join(f.dir, keyFile), ask); err != nil {
		return nil, err
	}
	if err := c.loadSet(); err != nil {
		return nil, err
	}
	if c.cert, err = enroll.SelfClient(c.key, c.set.MinClientGeneration); err != nil {
		return nil, err
	}
	return c, nil
}

// Close wipes the key.
func (c *Controller) Close() { c.key.Destroy() }

func (c *Controller) loadSet() error {
	const hint = "restore enrolment.cbor from a backup; every sled holds a copy in its state folders; if sledvault rack recover was broken off, run it again"
	b, err := os.ReadFile(filepath.Join(c.file.dir, setFile))
	if err != nil {
		return reason.Wrap(err, CodeSet, hint, "rack: enrolment set")
	}
	if c.set, err = enroll.DecodeSet(b); err != nil {
		return reason.Wrap(err, CodeSet, hint, "rack: enrolment set")
	}
	if err := c.set.VerifyHeld(enroll.Fingerprint(c.key.PublicKey()), c.sets(oldSet)...); err != nil {
		return reason.Wrap(err, CodeSet, hint, "rack: enrolment set")
	}
	return nil
}

func (c *Controller) saveSet(s *enroll.Set) error {
	if err := journal.WriteFile(filepath.Join(c.file.dir, setFile), s.Encode(), 0o600); err != nil {
		return reason.Wrap(err, CodeSet, "free space in the rack's folder", "rack: write enrolment set")
	}
	c.set = s
	return nil
}

// label names a sled for people.
func (c *Controller) label(b ident.Baseboard) string {
	if s, ok := c.file.Find(b); ok {
		return s.Label()
	}
	return b.String()
}

func (c *Controller) note(format string, args ...any) {
	c.tell(Event{Text: fmt.Sprintf(format, args...)})
}

func (c *Controller) say(b ident.Baseboard, format string, args ...any) {
	c.tell(Event{Sled: c.label(b), Text: fmt.Sprintf(format, args...)})
}

// waitingFor tells why a sled is being waited for, once per reason.
func (c *Controller) waitingFor(b ident.Baseboard, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if text := err.Error(); c.waiting[b] != text {
		c.waiting[b] = text
		c.say(b, "waiting: %s", text)
	}
}

// toldKey is a topic about a sled.
type toldKey struct {
	sled  ident.Baseboard
	topic string
}

// sayOnce tells something about a sled unless something was told under that topic.
func (c *Controller) sayOnce(b ident.Baseboard, topic, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.told[toldKey{b, topic}] {
		if c.told == nil {
			c.told = map[toldKey]bool{}
		}
		c.told[toldKey{b, topic}] = true
		c.say(b, "%s", text)
	}
}

func (c *Controller) progress(ch *rack.Change) {
	switch ch.Phase {
	case rack.Preparing:
		c.note("epoch %d: %d of %d members have prepared", ch.Epoch, len(ch.Acked), len(ch.Members))
	case rack.Decided, rack.Done:
		c.note("epoch %d: %s, %d of %d members have committed", ch.Epoch, ch.Phase, len(ch.Committed), len(ch.Members))
	case rack.Aborted:
		c.note("epoch %d: aborted", ch.Epoch)
	}
}

// Sledlink is a connection to a sled that has proved itself on it.
type Sledlink struct {
	*client.Session
	Verdict *rot.Verdict
}

// link connects to a sled and has it prove itself by the set's record.
func (c *Controller) link(ctx context.Context, b ident.Baseboard) (*Sledlink, error) {
	sled, ok := c.file.Find(b)
	if !ok {
		return nil, reason.New(rack.CodeMembers, "add its table to the rack file again", "rack: member %s is not in the rack file", b)
	}
	rec, ok := c.set.Find(b)
	if !ok {
		return nil, reason.New(CodeNotEnrolled, "enroll it: sledvault rack enroll", "rack: sled %s is not enrolled", sled.Label())
	}
	s, err := client.Open(ctx, sled.Underlay, c.cert)
	if err != nil {
		return nil, err
	}
	v, err := c.appraise(ctx, s, rec)
	if reason.CodeOf(err) == api.CodeForbidden {
		if err = c.handKeys(ctx, s, false); err == nil { // also if it took none: a peer may have told it of the new key meanwhile
			v, err = c.appraise(ctx, s, rec)
		}
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return &Sledlink{s, v}, nil
}

// proofTimeout bounds how long a sled may take to prove itself.
const proofTimeout = 60 * time.Second

func (c *Controller) appraise(ctx context.Context, s *client.Session, rec *enroll.Record) (*rot.Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	var nonce [32]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, err
	}
	ev, err := s.Attest(ctx, nonce)
	if err != nil {
		return nil, err
	}
	exp, err := channel.Expect(c.set, rec, nil)
	if err != nil {
		return nil, err
	}
	return rot.Appraise(ev, rot.Request{Role: rot.RoleUnderlay, Nonce: nonce, Exporter: s.Exporter, ProverSPKI: s.ServerSPKI, VerifierSPKI: s.ClientSPKI}, exp, rot.Seen{})
}

// Report is what one sled says.
type Report struct {
	Sled   Sled        `json:"sled"`
	Status *api.Status `json:"status"` // nil if it cannot be reached
	Error  *api.Error  `json:"error"`
}

// statusTimeout bounds how long a sled may take to say its status.
const statusTimeout = 15 * time.Second

// Sleds asks every sled of the rack file for its status, at the same time.
func (c *Controller) Sleds(ctx context.Context) []Report {
	out := make([]Report, len(c.file.Sleds))
	var wg sync.WaitGroup
	for i, sled := range c.file.Sleds {
		wg.Go(func() { out[i] = c.reportOf(ctx, sled) })
	}
	wg.Wait()
	return out
}

func (c *Controller) reportOf(ctx context.Context, sled Sled) Report {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	out := Report{Sled: sled}
	s, err := client.Open(ctx, sled.Underlay, c.cert)
	if err == nil {
		defer func() { _ = s.Close() }()
		var st api.Status
		if st, err = s.Status(ctx); err == nil {
			out.Status = &st
		}
	}
	out.Error = api.ErrorOf(err)
	return out
}

// RackStatus is the rack as the controller sees it.
type RackStatus struct {
	Name          string       `json:"name"`
	RackID        ident.RackID `json:"rack_id"`
	SetGeneration uint64       `json:"set_generation"`
	Fingerprint   string       `json:"fingerprint"`
	Change        *rack.Change `json:"change"` // the newest change; null before the first
	Waiting       []string     `json:"waiting"`
	Waits         []Wait       `json:"waits"` // why
	Sleds         []Report     `json:"sleds"`
}

// Status puts the journal and the sleds' own words together.
func (c *Controller) Status(ctx context.Context) (RackStatus, error) {
	st, err := journal.Peek(c.file.dir)
	if err != nil {
		return RackStatus{}, err
	}
	out := RackStatus{
		Name: c.file.Name, RackID: c.set.Rack, SetGeneration: c.set.Generation, Fingerprint: enroll.Fingerprint(c.key.PublicKey()),
		Change: st.Change, Waiting: []string{}, Sleds: c.Sleds(ctx),
	}
	out.Waits = c.waits(st.Change, out.Sleds)
	if st.Change != nil {
		for _, m := range st.Change.Missing() {
			out.Waiting = append(out.Waiting, c.label(m))
		}
	}
	return out, nil
}
