package enroll

import "github.com/sledvault/sledvault/vault/reason"

// The codes of everything this package refuses. They begin with enroll-.
const (
	CodeFormat      reason.Code = "enroll-format"       // bytes that are no enrolment set, or not in the one form of it
	CodeLimit       reason.Code = "enroll-limit"        // more or larger than a set may hold
	CodeRecord      reason.Code = "enroll-record"       // a record that contradicts itself
	CodeDuplicate   reason.Code = "enroll-duplicate"    // two live records for one sled, or one TPM in two live records
	CodeSignature   reason.Code = "enroll-signature"    // signature missing or not by the key that must sign
	CodeFingerprint reason.Code = "enroll-fingerprint"  // another membership key than the config names
	CodeRack        reason.Code = "enroll-rack"         // of another rack
	CodeStale       reason.Code = "enroll-stale"        // an older generation than the one held
	CodeUnchanged   reason.Code = "enroll-unchanged"    // the set that is already held
	CodeFork        reason.Code = "set-fork"            // same generation, other content
	CodeTakeover    reason.Code = "enroll-takeover"     // a record that would give a sled's identity to another device
	CodeVanished    reason.Code = "enroll-vanished"     // a record that was dropped instead of marked removed
	CodeKey         reason.Code = "enroll-key"          // a key that is malformed, or of another type
	CodeKeyFile     reason.Code = "enroll-key-file"     // a key file that cannot be used or written
	CodePassphrase  reason.Code = "enroll-passphrase"   // a key file under a passphrase that was not given, or is another one
	CodeRecovery    reason.Code = "enroll-recovery-key" // a recovery text with a typing error
	CodeClient      reason.Code = "enroll-client"       // client certificate not issued by the membership key
	CodeClientOld   reason.Code = "enroll-client-old"   // client certificate of a revoked generation
	CodeGrant       reason.Code = "authority-grant"     // grant not signed for this rack
	CodeCertificate reason.Code = "authority-commit"    // commit certificate not signed for this configuration
	CodeBegin       reason.Code = "enroll-begin"        // first answer of an enrolment that is incomplete
)

const (
	hintController = "let the controller that owns the rack send the newest enrolment set: sledvault rack status"
	hintFork       = "two controllers signed the same generation: find out who holds a copy of the membership key, then sledvault rack recover"
	hintReplace    = "if TPM or board was really changed, say so: sledvault rack enroll --replace"
	hintFolder     = "use the folder that holds the rack's membership key"
)

func refuse(code reason.Code, hint, format string, args ...any) error {
	return reason.New(code, hint, "enroll: "+format, args...)
}
