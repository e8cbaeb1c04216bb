//go:build linux

// Package pty opens pseudo-terminals that stand in for serial lines.
//
// It owns the pair: the side the simulator holds and the side a host opens by path. The host's side is raw before the
// first byte and is kept open here, so that hosts may come and go: no echo, no translated bytes, no hang-up in between.
// It refuses nothing and knows no protocol.
package pty

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Pair is an open pseudo-terminal.
type Pair struct {
	Dev  *os.File // the simulator's side; deadlines and Close work on it
	Path string   // what a host opens

	keep *os.File // the host's side, held open and never read
}

// Open makes a pair whose host side is raw.
func Open() (*Pair, error) {
	dev, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("pty: open: %w", err)
	}
	p := &Pair{Dev: dev}
	if err := p.attach(); err != nil {
		return nil, errors.Join(fmt.Errorf("pty: set up: %w", err), p.Close())
	}
	return p, nil
}

// attach unlocks the host's side, opens it and makes it raw.
func (p *Pair) attach() error {
	var number int
	err := control(p.Dev, func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		}
		return err
	})
	if err != nil {
		return err
	}
	p.Path = fmt.Sprintf("/dev/pts/%d", number)
	if p.keep, err = os.OpenFile(p.Path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	return control(p.keep, makeRaw)
}

func makeRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8 | unix.CREAD | unix.CLOCAL
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// control runs f on a descriptor without taking the file from the runtime's poller.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Close closes both sides. A host that still has the path open then sees a hang-up.
func (p *Pair) Close() error {
	err := p.Dev.Close()
	if p.keep != nil {
		err = errors.Join(err, p.keep.Close())
	}
	return err
}
