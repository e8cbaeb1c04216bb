// Package channel carries attested connections between sleds: TLS 1.3, then evidence both ways, bound to the connection.
//
// It owns the TLS profile, the frames of the evidence exchange, and the exchange of the enrolment set. It refuses
// everything that is not a sled of the same rack showing the evidence that this sled's own enrolment set demands: other
// key exchanges, resumed sessions, oversized frames, unknown sleds, forked sets. A connection exists only after both
// sides have said that they accept the other.
//
// No wall clock is read here, no certificate date is looked at: a booting sled's clock may say 1970. Deadlines come from
// contexts. How many handshakes run at once is the caller's to limit (vault/peer).
//
// Implements docs/evidence.md §9 and §10. Read next: handshake.go (the order of frames), judge.go (by which
// expectation), tls.go (the profile).
package channel
