package replay

import "github.com/sledvault/sledvault/vault/quorum"

// Rule names a deviation from the reference (docs/protocol.md §11). A replayed node does there what the reference does;
// counted is how often a log came to the case, so how often a node with the operator's authority would go another way.
type Rule string

// The deviations that logs of the reference can come to.
const (
	RuleLoadWhileExpunged          Rule = "load-while-expunged"
	RuleExpungedKeepsSecrets       Rule = "expunged-keeps-secrets"
	RuleGetShareUnanswered         Rule = "get-share-unanswered"
	RuleMessageAfterDisconnect     Rule = "message-after-disconnect"
	RuleComputationOutlivesCommit  Rule = "computation-outlives-commit"
	RuleComputationForgotten       Rule = "computation-forgotten"
	RuleReconfigureEndsComputation Rule = "reconfigure-ends-computation"
)

// Rules lists the names.
func Rules() []Rule {
	return []Rule{
		RuleLoadWhileExpunged, RuleExpungedKeepsSecrets, RuleGetShareUnanswered, RuleMessageAfterDisconnect,
		RuleComputationOutlivesCommit, RuleComputationForgotten, RuleReconfigureEndsComputation,
	}
}

// answered looks at what a node that was asked for a share did.
func (r *Rack) answered(st quorum.State, fx quorum.Effects) {
	if len(fx.Send) == 0 && st.Expunged == nil {
		r.rule(RuleGetShareUnanswered)
	}
}

// wasExpunged looks at a node that has just been expunged.
func (r *Rack) wasExpunged(s *sled) {
	if len(s.node.Status().Loader.Loaded) > 0 {
		r.rule(RuleExpungedKeepsSecrets)
	}
}
