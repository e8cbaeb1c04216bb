// Package rot makes and judges evidence: what a sled shows to another to prove which machine it is and what it runs.
//
// It owns the evidence format, the binding of evidence to one connection, the verification of a TPM's attestations,
// the event log's parser and replay, and the appraisal against an expectation that the enrolment set gives. It is the
// pure part: what it needs from a TPM it declares as an [Attestor], and it never reads a clock.
//
// It refuses everything it does not understand: trailing bytes, unknown keys, other banks, other curves, unknown
// event types. Every refusal has a stable code (codes.go) and a next step.
//
// The formats and the order of the checks are in docs/evidence.md. Read next: evidence.go (what travels), appraise.go
// (how it is judged), prover.go (how it is made), then rot/channel, which carries it.
package rot
