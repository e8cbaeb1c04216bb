package quorumtest

import (
	"github.com/sledvault/sledvault/vault/quorum"
	"github.com/sledvault/sledvault/vault/rack"
)

// plant holds hooks through which tests put a bug between a core and its surroundings, to see that the checks find it.
// All are nil in a real run.
type plant struct {
	input func(s *Sim, sled *Sled, in quorum.Input) quorum.Input
	// save may change what is saved; skip stores nothing and says that all went well.
	save    func(s *Sim, sled *Sled, st quorum.State) (_ quorum.State, skip bool)
	send    func(s *Sim, from, to *Sled, m quorum.Message) quorum.Message
	effects func(s *Sim, sled *Sled, fx *quorum.Effects)
	ready   func(s *Sim, ch *rack.Change) bool        // replaces the core's opinion
	journal func(s *Sim, st *rack.State, what string) // may change what is written
}
