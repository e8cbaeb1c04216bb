//go:build linux

package simrack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sledvault/sledvault/hwtest/sim/firmware"
	"github.com/sledvault/sledvault/vault/api"
	"github.com/sledvault/sledvault/vault/ident"
)

// The scenes, in the order in which they are played.
const (
	SceneInit           = "init"            // a rack is set up from nothing
	SceneColdBoot       = "cold-boot"       // all sleds lose power and come back
	SceneOneSledDown    = "one-sled-down"   // all but one come back
	SceneStolenSled     = "stolen-sled"     // disks and state of one sled in a machine of the thief's
	SceneTamperedSled   = "tampered-sled"   // one sled boots with another kernel command line
	SceneAddSled        = "add-sled"        // a new sled becomes a member
	SceneRotate         = "rotate"          // the same members get a new secret
	SceneRemoveSled     = "remove-sled"     // a member is taken out
	SceneOldDrive       = "old-drive"       // one sled boots with state folders of before a rotation
	SceneBelowThreshold = "below-threshold" // too few come back
)

// Scenes lists every scene.
func Scenes() []string {
	return []string{
		SceneInit, SceneColdBoot, SceneOneSledDown, SceneStolenSled, SceneTamperedSled,
		SceneAddSled, SceneRotate, SceneRemoveSled, SceneOldDrive, SceneBelowThreshold,
	}
}

// Boot is how one sled came up in the scene cold-boot.
type Boot struct {
	Sled         string     `json:"sled"`
	MSToUnlocked float64    `json:"ms_to_unlocked"` // from the daemon's start until every disk was open
	Disks        []BootDisk `json:"disks"`
}

// BootDisk is one disk of a [Boot].
type BootDisk struct {
	ID      string `json:"id"`
	Backend string `json:"backend"`
	State   string `json:"state"`
	Proof   string `json:"proof"`
}

// Boots is what the last cold boot measured, one entry per sled.
func (r *Rack) Boots() []Boot { return slices.Clone(r.boots) }

// Play plays one scene. The rack must be whole before, and is whole after a scene that succeeds. Detail is one line for
// people.
func (r *Rack) Play(ctx context.Context, scene string) (detail string, err error) {
	switch scene {
	case SceneInit:
		return r.playInit(ctx)
	case SceneColdBoot:
		return r.playColdBoot(ctx)
	case SceneOneSledDown:
		return r.playOneDown(ctx)
	case SceneStolenSled:
		return r.playStolen(ctx)
	case SceneTamperedSled:
		return r.playTampered(ctx)
	case SceneAddSled:
		return r.playAddSled(ctx)
	case SceneRotate:
		return r.playRotate(ctx)
	case SceneRemoveSled:
		return r.playRemoveSled(ctx)
	case SceneOldDrive:
		return r.playOldDrive(ctx)
	case SceneBelowThreshold:
		return r.playBelowThreshold(ctx)
	}
	return "", fmt.Errorf("simrack: no scene %.40q", scene)
}

func (r *Rack) playInit(ctx context.Context) (string, error) {
	if err := r.Init(ctx); err != nil {
		return "", err
	}
	if err := r.all(ctx, r.sleds, func(ctx context.Context, s *Sled) error {
		_, err := s.Await(ctx, "a member of the rack", func(st api.Status) bool { return st.State == api.StateMember && open(st) == nil })
		return err
	}); err != nil {
		return "", err
	}
	if err := r.each(ctx, r.sleds, func(ctx context.Context, s *Sled) error { return s.CheckDisks(ctx) }); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d sleds enrolled, threshold %d, every disk encrypted in place and read back", len(r.sleds), r.Threshold()), nil
}

func (r *Rack) playColdBoot(ctx context.Context) (string, error) {
	boots, err := r.coldBoot(ctx)
	if err != nil {
		return "", err
	}
	r.boots = boots
	ms := make([]float64, len(boots))
	for i, b := range boots {
		ms[i] = b.MSToUnlocked
	}
	slices.Sort(ms)
	return fmt.Sprintf("from start to open disks: median %.0f ms, slowest %.0f ms", ms[len(ms)/2], ms[len(ms)-1]), nil
}

// coldBoot cuts every sled's power, waits until all disks are open, and checks their data.
func (r *Rack) coldBoot(ctx context.Context) ([]Boot, error) {
	boots := make([]Boot, len(r.sleds))
	if err := r.all(ctx, r.sleds, func(_ context.Context, s *Sled) error { return s.PowerCycle() }); err != nil {
		return nil, err
	}
	if err := r.all(ctx, r.sleds, func(ctx context.Context, s *Sled) error {
		st, err := s.Unlock(ctx)
		b := Boot{Sled: s.Name, MSToUnlocked: st.Boot.MSToUnlocked, Disks: []BootDisk{}}
		for _, d := range st.Disks {
			b.Disks = append(b.Disks, BootDisk{d.ID, d.Backend, d.State, d.Proof})
		}
		boots[slices.Index(r.sleds, s)] = b
		return err
	}); err != nil {
		return nil, err
	}
	return boots, r.each(ctx, r.sleds, func(ctx context.Context, s *Sled) error { return s.CheckDisks(ctx) })
}

func (r *Rack) playOneDown(ctx context.Context) (string, error) {
	last := len(r.sleds) - 1
	down, up := r.sleds[last], r.sleds[:last]
	if err := down.PowerOff(); err != nil {
		return "", &SledError{down, err}
	}
	if err := r.all(ctx, up, func(_ context.Context, s *Sled) error { return s.PowerCycle() }); err != nil {
		return "", err
	}
	if err := r.Recover(ctx, up); err != nil {
		return "", err
	}
	if err := down.PowerCycle(); err != nil {
		return "", &SledError{down, err}
	}
	return fmt.Sprintf("%d of %d came back without %s", len(up), len(r.sleds), down.Name), r.Recover(ctx, r.sleds[last:])
}

// playStolen gives a thief the disks and state folders of a sled. His machine has a TPM of its own.
func (r *Rack) playStolen(ctx context.Context) (string, error) {
	victim := r.sleds[0]
	thief, err := r.Steal(ctx, victim)
	if err != nil {
		return "", &SledError{victim, err}
	}
	st, err := thief.refused(ctx, "lost-seal", "tpm-foreign")
	if err != nil {
		return "", &SledError{thief, err}
	}
	if err := r.Scrap(thief); err != nil {
		return "", &SledError{thief, err}
	}
	return "the thief's machine opens nothing, " + why(st), nil
}

// refused waits until a sled says why it does not open its disks, and makes sure that it does not.
func (s *Sled) refused(ctx context.Context, codes ...string) (api.Status, error) {
	st, err := s.Await(ctx, "refusing with "+strings.Join(codes, " or "), func(st api.Status) bool {
		e := cause(st)
		return e != nil && slices.Contains(codes, string(e.Code))
	})
	if err != nil {
		return st, err
	}
	for _, d := range st.Disks {
		if d.State == "unlocked" {
			return st, fmt.Errorf("simrack: disk %s: have unlocked, want locked", d.ID)
		}
		if _, err := s.Key(ctx, d.ID); err == nil {
			return st, fmt.Errorf("simrack: disk %s: the sled gave its key away", d.ID)
		}
	}
	if _, err := s.Client().Unlock(ctx, 0); err == nil {
		return st, errors.New("simrack: unlock: have success, want a refusal")
	}
	return st, nil
}

// cause is why a sled stands still: what its boot met, or why its seal is lost.
func cause(st api.Status) *api.Error {
	if st.State == api.StateLostSeal && st.Seal != nil && st.Seal.Reason != nil {
		return st.Seal.Reason
	}
	return st.Boot.Error
}

// why is one line about what stopped a sled.
func why(st api.Status) string {
	e := cause(st)
	if e == nil {
		return string(st.State)
	}
	return fmt.Sprintf("%s: %.160s", e.Code, strings.ReplaceAll(e.Text, "\n", "; "))
}

func (r *Rack) playTampered(ctx context.Context) (string, error) {
	s := r.sleds[len(r.sleds)-1]
	if err := s.Boot(firmware.Options{CommandLine: "quiet init=/bin/sh"}); err != nil {
		return "", &SledError{s, err}
	}
	st, err := s.refused(ctx, "lost-seal", "seal-pcr")
	if err != nil {
		return "", &SledError{s, err}
	}
	for _, other := range r.sleds[:len(r.sleds)-1] {
		if _, err := other.Await(ctx, "apart from "+s.Name, func(st api.Status) bool {
			return st.Quorum != nil && !slices.Contains(st.Quorum.ConnectedPeers, s.Board)
		}); err != nil {
			return "", &SledError{other, err}
		}
	}
	if err := s.PowerCycle(); err != nil {
		return "", &SledError{s, err}
	}
	return "another kernel command line is measured, its own seal stays shut, peers are without it, " + why(st), r.Recover(ctx, []*Sled{s})
}

// unlockTimeout is how long the operator waits below the threshold.
const unlockTimeout = 2 * time.Second

func (r *Rack) playBelowThreshold(ctx context.Context) (string, error) {
	n := r.Threshold() - 1
	up, down := r.sleds[:n], r.sleds[n:]
	if err := r.all(ctx, down, func(_ context.Context, s *Sled) error { return s.PowerOff() }); err != nil {
		return "", err
	}
	if err := r.all(ctx, up, func(_ context.Context, s *Sled) error { return s.PowerCycle() }); err != nil {
		return "", err
	}
	late, err := r.tooFew(ctx, up[0], down)
	if err != nil {
		return "", &SledError{up[0], err}
	}
	if err := r.all(ctx, down, func(_ context.Context, s *Sled) error { return s.PowerCycle() }); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d of %d: unlock names the %d missing sleds, %d ms after its deadline", n, len(r.sleds), len(down), late.Milliseconds()),
		r.Recover(ctx, r.sleds)
}

// tooFew has the operator unlock a sled that cannot be unlocked. Late is how long after its deadline the command ended.
func (r *Rack) tooFew(ctx context.Context, s *Sled, missing []*Sled) (late time.Duration, err error) {
	if _, err := s.Await(ctx, "below the threshold", func(st api.Status) bool {
		return st.Boot.Error != nil && st.Boot.Error.Code == "below-threshold"
	}); err != nil {
		return 0, err
	}
	began := time.Now()
	_, err = r.On(ctx, s, "unlock", "--wait", "--timeout", unlockTimeout.String())
	late = time.Since(began) - unlockTimeout
	ce, ok := errors.AsType[*CommandError](err)
	if !ok || ce.Code != 3 {
		return late, fmt.Errorf("simrack: unlock below the threshold: have %v, want exit code 3", err)
	}
	for _, m := range missing {
		if !strings.Contains(ce.Stderr, m.Board.String()) {
			return late, fmt.Errorf("simrack: unlock below the threshold does not name %s: %.500s", m.Board, ce.Stderr)
		}
	}
	return late, nil
}

// Epochs are the committed epochs that any of the sleds knows, in order. A sled that does not answer is left out; the
// error is that of the last one if none answers.
func (r *Rack) Epochs(ctx context.Context) (out []ident.Epoch, err error) {
	answered := false
	for _, s := range r.Sleds() {
		st, statusErr := s.Client().Status(ctx)
		if statusErr != nil {
			err = &SledError{s, statusErr}
			continue
		}
		answered = true
		if st.Quorum != nil {
			out = append(out, st.Quorum.Commits...)
		}
	}
	slices.Sort(out)
	if answered {
		err = nil
	}
	return slices.Compact(out), err
}
