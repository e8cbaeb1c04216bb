package wire

import "github.com/sledvault/sledvault/vault/reason"

// The codes of everything this package refuses.
const (
	CodeTooLarge     reason.Code = "wire-too-large"       // frame, message or state above its limit
	CodeEmptyFrame   reason.Code = "wire-empty-frame"     // frame of length 0
	CodeShort        reason.Code = "wire-short"           // the input ends inside a frame or an item
	CodeTrailing     reason.Code = "wire-trailing"        // bytes after the item
	CodeType         reason.Code = "wire-type"            // another CBOR type than the field has
	CodeDuplicate    reason.Code = "wire-duplicate"       // a key, member or epoch occurs twice
	CodeMissing      reason.Code = "wire-missing-key"     // a field is absent
	CodeUnknownKey   reason.Code = "wire-unknown-key"     // a field that does not exist, where none may be added
	CodeUnknown      reason.Code = "wire-unknown-variant" // a message or value kind that does not exist
	CodeRange        reason.Code = "wire-range"           // a number outside its range
	CodeLength       reason.Code = "wire-length"          // a share, digest, id or list of the wrong length
	CodeOrder        reason.Code = "wire-order"           // a set that is not ascending
	CodeDepth        reason.Code = "wire-depth"           // nested deeper than any message is
	CodeText         reason.Code = "wire-text"            // text that is not UTF-8, not hex or not an identity
	CodeNotCanonical reason.Code = "wire-not-canonical"   // a second form of the same value, where only one is allowed
	CodeVersion      reason.Code = "wire-version"         // a state version that this release does not know
	CodeAllocate     reason.Code = "wire-allocate"        // no memory for a share
	CodeEncode       reason.Code = "wire-encode"          // a value that has no encoding
)

const (
	hintPeer    = "compare the software versions of the two sleds"
	hintState   = "restore the other copy of the state, or re-enrol this sled"
	hintVersion = "run the release that wrote this state, or a newer one"
)

func hintOf(code reason.Code, state bool) string {
	switch {
	case code == CodeVersion:
		return hintVersion
	case state:
		return hintState
	}
	return hintPeer
}
