package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	simrack "github.com/sledvault/sledvault/hwtest/sim/rack"
	"github.com/sledvault/sledvault/internal/cli"
	"github.com/sledvault/sledvault/internal/doctor"
	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/reason"
)

// demoOptions are the flags of sledvault demo.
type demoOptions struct {
	sleds               int
	scenes              []string
	hold, install, keep bool
}

// demoReport is what demo --json prints (docs/demo.md §3).
type demoReport struct {
	Sleds     int            `json:"sleds"`
	Threshold int            `json:"threshold"`
	Epochs    []ident.Epoch  `json:"epochs"`
	Boots     []simrack.Boot `json:"boots"`
	Scenes    []sceneResult  `json:"scenes"`
	OK        bool           `json:"ok"` // stays last: scripts look at the end of the line
}

// sceneResult is how one scene went.
type sceneResult struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	MS     int64  `json:"ms"`
	Detail string `json:"detail,omitempty"`
	Error  string `json:"error,omitempty"`
}

func (a *app) demoCommand() *cobra.Command {
	o := &demoOptions{}
	c := &cobra.Command{
		Use: "demo", Short: "a whole rack on this machine: set up, cut the power, unlock", Args: noArgs,
		Long: "Runs a rack of sledvaultd processes, each with a software TPM, a simulated service processor and an encrypted\n" +
			"disk of its own, and plays what happens to racks: cold boots, missing, stolen and tampered sleds, sleds that come\n" +
			"and go, new secrets, old drives put back. Nothing is left behind. Needs swtpm and cryptsetup, and no root; --install gets what is missing.\n\n" +
			"With --hold it stops after the cold boot, prints where everything is as one JSON line, and keeps the rack\n" +
			"running until it is interrupted. See docs/demo.md.",
		Example: "  sledvault demo\n  sledvault demo --install --json\n  sledvault demo --sleds 7 --scenes one-sled-down\n  sledvault demo --hold",
		RunE:    func(c *cobra.Command, _ []string) error { return a.demo(c.Context(), o) },
	}
	f := c.Flags()
	f.IntVar(&o.sleds, "sleds", 5, fmt.Sprintf("how many sleds, %d to %d", simrack.MinSleds, simrack.MaxSleds))
	f.StringSliceVar(&o.scenes, "scenes", nil, "scenes to play after init: "+strings.Join(simrack.Scenes()[1:], ", ")+" (default all)")
	f.BoolVar(&o.hold, "hold", false, "stop after the cold boot and keep the rack up until interrupted")
	f.BoolVar(&o.install, "install", false, "first install what this machine lacks (Debian, as root)")
	f.BoolVar(&o.keep, "keep", false, "leave the rack's folder, with its logs, behind")
	return c
}

// choose returns the scenes to play, in their order. The rack is always set up first.
func (o *demoOptions) choose() ([]string, error) {
	all := simrack.Scenes()
	switch {
	case o.sleds < simrack.MinSleds || o.sleds > simrack.MaxSleds:
		return nil, cli.UsageError("--sleds: have %d, want %d to %d", o.sleds, simrack.MinSleds, simrack.MaxSleds)
	case o.hold && len(o.scenes) > 0:
		return nil, cli.UsageError("--hold plays %s and %s only: leave --scenes away", simrack.SceneInit, simrack.SceneColdBoot)
	case o.hold:
		return []string{simrack.SceneInit, simrack.SceneColdBoot}, nil
	case len(o.scenes) == 0:
		return all, nil
	}
	for _, s := range o.scenes {
		if !slices.Contains(all, s) {
			return nil, cli.UsageError("--scenes: unknown scene %.60q; there are: %s", s, strings.Join(all, ", "))
		}
	}
	chosen := slices.DeleteFunc(all, func(s string) bool { return s != simrack.SceneInit && !slices.Contains(o.scenes, s) })
	if o.sleds == simrack.MinSleds && slices.Contains(chosen, simrack.SceneRemoveSled) && !slices.Contains(chosen, simrack.SceneAddSled) {
		return nil, cli.UsageError("--scenes: %s would leave fewer than %d sleds: play %s as well, or have more --sleds",
			simrack.SceneRemoveSled, simrack.MinSleds, simrack.SceneAddSled)
	}
	return chosen, nil
}

// demo runs from flags to result. Whatever happens, it takes the rack down before it returns.
func (a *app) demo(ctx context.Context, o *demoOptions) (err error) {
	scenes, err := o.choose()
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(ctx, syscall.SIGHUP) // interrupt and SIGTERM end ctx already
	defer cancel()
	endWithGoRun()
	if o.install {
		if err := doctor.Install(ctx, a.err); err != nil {
			return err
		}
	}
	if err := doctor.Check(doctor.ForDemo); err != nil {
		return err
	}
	bin, err := findBinaries(ctx, a.err)
	if err != nil {
		return err
	}
	defer bin.remove()
	view := newDemoView(a.err, scenes)
	r, err := simrack.New(ctx, simrack.Options{Sleds: o.sleds, Daemon: bin.daemon, Command: bin.command, Keep: o.keep, Tell: view.event})
	if err != nil {
		view.close()
		return interrupted(ctx, err)
	}
	defer func() {
		if closeErr := r.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
		if o.keep {
			_, _ = fmt.Fprintln(a.err, "kept:", r.Dir)
		}
	}()
	view.watch(r)
	rep := playDemo(ctx, r, scenes, view)
	view.close()
	switch {
	case o.hold && rep.OK:
		return a.hold(ctx, r)
	case a.json && !o.hold:
		if err := cli.JSON(a.out, rep); err != nil {
			return err
		}
	}
	if !rep.OK {
		return interrupted(ctx, reported{})
	}
	return nil
}

// interrupted puts the reason in place of an error that an interrupt caused.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return reason.New("interrupted", "", "demo: interrupted")
	}
	return err
}

// sceneTime bounds one scene; more sleds take longer to encrypt.
func sceneTime(sleds int) time.Duration { return 2*time.Minute + time.Duration(sleds)*5*time.Second }

// playDemo plays the scenes until one fails.
func playDemo(ctx context.Context, r *simrack.Rack, scenes []string, view *demoView) demoReport {
	rep := demoReport{Sleds: len(r.Sleds()), Threshold: r.Threshold(), OK: true}
	for _, name := range scenes {
		view.begin(name)
		began := time.Now()
		sctx, cancel := context.WithTimeout(ctx, sceneTime(rep.Sleds))
		detail, err := r.Play(sctx, name)
		cancel()
		res := sceneResult{Name: name, OK: err == nil, MS: time.Since(began).Milliseconds(), Detail: detail}
		if err != nil {
			res.Detail, res.Error, rep.OK = "", err.Error(), false
		}
		rep.Scenes = append(rep.Scenes, res)
		view.finish(res, err)
		if err != nil {
			break
		}
	}
	rep.Boots = r.Boots()
	if e, err := r.Epochs(ctx); err == nil { // without an answer the list stays empty
		rep.Epochs = e
	}
	rep.normalize()
	return rep
}

// normalize makes empty lists of absent ones.
func (r *demoReport) normalize() {
	r.Epochs = append([]ident.Epoch{}, r.Epochs...)
	r.Boots = append([]simrack.Boot{}, r.Boots...)
	r.Scenes = append([]sceneResult{}, r.Scenes...)
}

// hold prints the manifest and keeps the rack up until ctx ends.
func (a *app) hold(ctx context.Context, r *simrack.Rack) error {
	m, err := r.Manifest(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- r.Control(ctx, func() { close(ready) }) }()
	defer cancel()
	select {
	case <-ready:
	case err := <-ended:
		return err
	}
	if err := cli.JSON(a.out, m); err != nil {
		cancel()
		return errors.Join(err, <-ended)
	}
	_, _ = fmt.Fprintln(a.err, "the rack is up; interrupt to take it down")
	return <-ended // nil when ctx has ended
}
