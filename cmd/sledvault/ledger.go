package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/lrtq"
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/reason"
	"github.com/sledvault/sledvault/vault/secret"
	"github.com/sledvault/sledvault/vault/wire"
)

func (a *app) ledgerCommand() *cobra.Command {
	show := &cobra.Command{
		Use: "show FILE", Short: "what is in a ledger file of the reference, or why it is refused", Args: exactArgs(1),
		Long: "Reads a ledger that the reference implementation wrote: trust-quorum-state.json, bootstore-fsm-state.json, or\n" +
			"either of the network-config files, whatever it is called here. Needs no rack and no daemon, changes nothing, and\n" +
			"never prints a share. What the file says is held against itself: a share that does not fit its digest is told.\n" +
			"Exit code 1 if the file is refused, or contradicts itself.",
		Example: "  sledvault ledger show /mnt/a/bootstore-fsm-state.json\n  sledvault ledger show trust-quorum-state.json --json",
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := showLedger(args[0])
			if err != nil {
				return err
			}
			if err := a.print(l, func(w io.Writer) { l.write(w) }); err != nil {
				return err
			}
			if len(l.Problems) > 0 {
				return reported{}
			}
			return nil
		},
	}
	return group("ledger", "ledger files of the reference implementation", show)
}

// shownLedger is a ledger file without its secrets.
type shownLedger struct {
	File       string                   `json:"file"`
	Kind       wire.ReferenceLedgerKind `json:"kind"`
	Bytes      int                      `json:"bytes"`
	Generation uint64                   `json:"generation"`
	Quorum     *shownQuorum             `json:"trust_quorum,omitempty"`
	LRTQ       *shownLRTQ               `json:"lrtq,omitempty"`
	Network    *shownNetwork            `json:"network_config,omitempty"`
	Problems   []string                 `json:"problems"` // contradictions; none in a file that is right
}

type shownQuorum struct {
	RackID   *ident.RackID `json:"rack_id"`
	Configs  []shownConfig `json:"configs"`
	Shares   []shownShare  `json:"shares"`
	Commits  []ident.Epoch `json:"commits"`
	Expunged *struct {
		Epoch ident.Epoch     `json:"epoch"`
		From  ident.Baseboard `json:"from"`
	} `json:"expunged"`
	LRTQ *shownLRTQ `json:"lrtq"`
}

type shownConfig struct {
	Epoch        ident.Epoch       `json:"epoch"`
	Coordinator  ident.Baseboard   `json:"coordinator"`
	Threshold    ident.Threshold   `json:"threshold"`
	Members      []ident.Baseboard `json:"members"`
	OlderSecrets int               `json:"older_secrets"`
}

type shownShare struct {
	Epoch  ident.Epoch      `json:"epoch"`
	Number int              `json:"number"`
	Owner  *ident.Baseboard `json:"owner"` // whose digest it fits; null if nobody's
}

type shownLRTQ struct {
	Phase     string          `json:"phase"`
	RackID    *ident.RackID   `json:"rack_id"`
	Threshold ident.Threshold `json:"threshold,omitempty"`
	Share     int             `json:"share,omitempty"` // its number
	Digests   int             `json:"digests,omitempty"`
	Members   []string        `json:"members,omitempty"`
	Spare     int             `json:"spare,omitempty"` // spare shares, given ones included
	Given     []string        `json:"given,omitempty"` // to whom, in order of number
}

type shownNetwork struct {
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Reasons of reading ledger files.
const (
	codeLedgerFile    reason.Code = "ledger-file"    // a ledger file cannot be read at all
	codeLedgerRefused reason.Code = "ledger-refused" // a ledger file is none of the reference's, or damaged; the text says where
)

func showLedger(path string) (*shownLedger, error) {
	b, err := readLedgerFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	l := &shownLedger{File: path, Bytes: len(b), Problems: []string{}}
	if l.Kind, err = wire.SniffReferenceLedger(b); err != nil {
		return nil, refusedLedger(path, err)
	}
	switch l.Kind {
	case wire.LedgerTrustQuorum:
		var v wire.TrustQuorumLedger
		if v, err = wire.DecodeTrustQuorumLedger(secret.Heap{}, b); err == nil {
			l.Generation = v.Generation
			l.quorum(v.State)
			v.Destroy()
		}
	case wire.LedgerLRTQ:
		var v wire.LRTQLedger
		if v, err = wire.DecodeLRTQLedger(secret.Heap{}, b); err == nil {
			l.Generation, l.LRTQ = v.Generation, showLRTQ(v.State)
			v.Destroy()
		}
	case wire.LedgerNetworkConfig:
		var v wire.NetworkConfig
		if v, err = wire.DecodeNetworkConfigLedger(b); err == nil {
			sum := sha256.Sum256(v.Blob)
			l.Generation, l.Network = v.Generation, &shownNetwork{len(v.Blob), hex.EncodeToString(sum[:])}
		}
	}
	if err != nil {
		return nil, refusedLedger(path, err)
	}
	return l, nil
}

// readLedgerFile reads the file into one buffer, so that it can be wiped.
func readLedgerFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, reason.Wrap(err, codeLedgerFile, "check the path", "ledger")
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("it is no regular file: %s", fi.Mode())
	}
	if err != nil {
		return nil, reason.Wrap(err, codeLedgerFile, "name a regular file", "ledger: %s", path)
	}
	b := make([]byte, min(fi.Size(), wire.MaxReferenceLedger+1))
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, reason.Wrap(err, codeLedgerFile, "check the medium", "ledger: read %s", path)
	}
	return b, nil
}

func refusedLedger(path string, err error) error {
	return reason.Wrap(err, codeLedgerRefused, "look at the other copy of the file", "ledger: %s is refused", path)
}

func (l *shownLedger) problem(format string, args ...any) {
	l.Problems = append(l.Problems, fmt.Sprintf(format, args...))
}

// quorum shows a state and what contradicts itself in it.
func (l *shownLedger) quorum(s quorum.State) {
	q := &shownQuorum{Configs: []shownConfig{}, Shares: []shownShare{}, Commits: quorum.Epochs(s.Commits)}
	l.Quorum = q
	if id, ok := s.RackID(); ok {
		q.RackID = &id
	}
	for _, e := range quorum.Epochs(s.Configs) {
		c := s.Configs[e]
		v := shownConfig{Epoch: e, Coordinator: c.Coordinator, Threshold: c.Threshold, Members: []ident.Baseboard{}, OlderSecrets: c.OldSecrets()}
		for _, m := range c.Members {
			v.Members = append(v.Members, m.ID)
		}
		q.Configs = append(q.Configs, v)
		if q.RackID != nil && c.RackID != *q.RackID {
			l.problem("configuration of epoch %d is of rack %s", e, c.RackID)
		}
	}
	owners := map[ident.Baseboard]bool{}
	for _, e := range quorum.Epochs(s.Shares) {
		share := s.Shares[e]
		v := shownShare{Epoch: e, Number: int(share.X)}
		c := s.Configs[e]
		if c == nil {
			l.problem("share of epoch %d without its configuration", e)
		} else if i := int(share.X) - 1; i >= len(c.Members) {
			l.problem("share of epoch %d has number %d of %d members", e, share.X, len(c.Members))
		} else if d, err := share.Digest(); err != nil || c.Members[i].ShareDigest != d {
			l.problem("share of epoch %d does not fit the digest of member %d", e, share.X)
		} else {
			v.Owner = &c.Members[i].ID
			owners[*v.Owner] = true
		}
		q.Shares = append(q.Shares, v)
	}
	if len(owners) > 1 {
		l.problem("shares of %d different sleds", len(owners))
	}
	for _, e := range q.Commits {
		if !s.Prepared(e) {
			l.problem("epoch %d is committed without configuration or share", e)
		}
	}
	if x := s.Expunged; x != nil {
		q.Expunged = &struct {
			Epoch ident.Epoch     `json:"epoch"`
			From  ident.Baseboard `json:"from"`
		}{x.Epoch, x.From}
	}
	if p := s.LRTQ; p != nil {
		q.LRTQ = showLRTQ(lrtq.State{Phase: lrtq.Learned, Package: lrtq.SharePackage{Common: *p}})
		if q.RackID != nil && p.RackID != *q.RackID {
			l.problem("the older scheme's package is of rack %s", p.RackID)
		}
	}
}

func showLRTQ(s lrtq.State) *shownLRTQ {
	v := &shownLRTQ{Phase: s.Phase.String()}
	p, ok := s.Common()
	if !ok {
		return v
	}
	v.RackID, v.Threshold, v.Share, v.Digests, v.Spare = &p.RackID, p.Threshold, int(p.Share.X), len(p.Digests), s.Package.Spare()
	for _, m := range s.Package.Members {
		v.Members = append(v.Members, m.String())
	}
	given := slices.SortedFunc(maps.Keys(s.Given), func(a, b lrtq.Board) int { return s.Given[a] - s.Given[b] })
	for _, b := range given {
		v.Given = append(v.Given, b.String())
	}
	return v
}

func (l *shownLedger) write(w io.Writer) {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	say("%s: %s, generation %d, %d bytes", l.File, l.Kind, l.Generation, l.Bytes)
	if n := l.Network; n != nil {
		say("  %d bytes, SHA-256 %s", n.Bytes, n.SHA256)
	}
	if v := l.LRTQ; v != nil {
		v.write(say)
	}
	if q := l.Quorum; q != nil {
		q.write(say)
	}
	for _, p := range l.Problems {
		say("  WRONG: %s", p)
	}
}

func (v *shownLRTQ) write(say func(string, ...any)) {
	say("  older scheme: %s", v.Phase)
	if v.RackID == nil {
		return
	}
	say("  rack %s, share %d, threshold %d, %d digests", v.RackID, v.Share, v.Threshold, v.Digests)
	if len(v.Members) > 0 {
		say("  founding members: %s", strings.Join(v.Members, " "))
		say("  %d spare shares, given to: %s", v.Spare, orNobody(v.Given))
	}
}

func orNobody(names []string) string {
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, " ")
}

func (q *shownQuorum) write(say func(string, ...any)) {
	if q.RackID == nil {
		say("  knows no rack")
		return
	}
	say("  rack %s, committed %v", q.RackID, q.Commits)
	for _, c := range q.Configs {
		var members []string
		for _, m := range c.Members {
			members = append(members, m.String())
		}
		say("  epoch %d: threshold %d of %d, coordinator %s, %d older secrets: %s", c.Epoch, c.Threshold, len(c.Members), c.Coordinator, c.OlderSecrets, strings.Join(members, " "))
	}
	for _, s := range q.Shares {
		owner := "nobody"
		if s.Owner != nil {
			owner = s.Owner.String()
		}
		say("  share of epoch %d: number %d, of %s", s.Epoch, s.Number, owner)
	}
	if q.Expunged != nil {
		say("  expunged at epoch %d, told by %s", q.Expunged.Epoch, q.Expunged.From)
	}
	if q.LRTQ != nil {
		q.LRTQ.write(say)
	}
}
