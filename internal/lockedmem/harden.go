package lockedmem

import (
	"errors"
	"fmt"
)

// Step is one measure that keeps this process's memory to itself.
type Step struct {
	Name    string `json:"name"`             // "no-core-files" or "not-dumpable"
	InForce bool   `json:"in_force"`         // as the system says now, not as it was asked for
	Detail  string `json:"detail,omitempty"` // what was found
}

// measure is a step and how to take it.
type measure struct {
	name  string
	take  func() error
	check func() (inForce bool, detail string)
}

// Harden forbids core files, and reading of this process by others of the same user. All measures are tried; the error
// names those that failed. Afterwards a process that is not root cannot read its own /proc/self/mem and the like.
func Harden() error {
	var errs []error
	for _, m := range measures() {
		if err := m.take(); err != nil {
			errs = append(errs, fmt.Errorf("lockedmem: %s: %w", m.name, err))
		}
	}
	return errors.Join(errs...)
}

// Hardening reports for each measure of [Harden] whether it is in force. It changes nothing.
func Hardening() []Step {
	var out []Step
	for _, m := range measures() {
		ok, detail := m.check()
		out = append(out, Step{m.name, ok, detail})
	}
	return out
}
