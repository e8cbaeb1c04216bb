package vault

import "time"

// stopGrace is how long the end of the daemon waits for disks. An interrupted cryptsetup has 2 s to tidy up; a service
// manager, and the simulated rack, give the daemon 10 s or more before they kill it.
const stopGrace = 8 * time.Second

// settle waits until no disk is being worked on, and keeps it so: the daemon is about to end. The requests and the boot have
// been told to end already; what cryptsetup they run is interrupted and tidies up.
func (s *disks) settle() {
	select {
	case s.work <- struct{}{}:
	case <-time.After(stopGrace):
		s.d.log.Error("work on a disk did not end in time", "waited", stopGrace)
	}
}
