//go:build !linux

package landlock

// Restrict does nothing: there is no landlock here.
func Restrict([]Rule) (Result, error) { return Result{}, ErrUnsupported }

// NoNewPrivileges does nothing here.
func NoNewPrivileges() error { return ErrUnsupported }

// Privileges reports that nothing is in force.
func Privileges() (fixed bool, err error) { return false, ErrUnsupported }
