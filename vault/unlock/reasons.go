package unlock

import "github.com/sledvault/sledvault/vault/reason"

// The reasons of this package (docs/disks.md §6).
const (
	CodeConfig      reason.Code = "disk-config"         // the disk's entry cannot be used
	CodeMissing     reason.Code = "cryptsetup-missing"  // no cryptsetup on this machine
	CodeTool        reason.Code = "cryptsetup-failed"   // cryptsetup failed for another reason; its words are quoted
	CodeTimeout     reason.Code = "disk-timeout"        // the deadline passed, or the caller gave up
	CodeAbsent      reason.Code = "disk-absent"         // nothing at the path
	CodeIO          reason.Code = "disk-io"             // reading or writing the device failed
	CodeUnformatted reason.Code = "disk-unformatted"    // no encryption header and nothing else known
	CodeNotLUKS2    reason.Code = "disk-not-luks2"      // something else is there
	CodeDamaged     reason.Code = "disk-header-damaged" // LUKS2, but neither copy of the header can be believed
	CodeRefused     reason.Code = "disk-header-refused" // a sound header that asks for what we do not accept
	CodeChanged     reason.Code = "disk-header-changed" // not what was recorded
	CodeReencrypt   reason.Code = "disk-reencrypting"   // marked as being re-encrypted
	CodeKey         reason.Code = "disk-key-refused"    // the key opens no slot of the header
	CodeHasHeader   reason.Code = "disk-has-header"     // format refused: already encrypted
	CodeHasData     reason.Code = "disk-has-data"       // format refused: a known signature
	CodeTooSmall    reason.Code = "disk-too-small"      // format refused: no room
	CodeBusy        reason.Code = "disk-busy"           // the device or the mapping's name is in use
	CodeNoSlot      reason.Code = "disk-no-slot"        // no free key slot for a new key
)

const (
	hintConfig    = "correct the disk's table in the sled's configuration"
	hintMissing   = "run: sledvault doctor --install"
	hintTool      = "look at the quoted words of cryptsetup; `sledvault doctor` checks the machine"
	hintTimeout   = "the device is slow or hangs: look at the kernel log, then run `sledvault unlock` again"
	hintAbsent    = "check that the disk is plugged in and that its path is right in the sled's configuration"
	hintIO        = "check the disk's health and the permissions of its path"
	hintUnformat  = "encrypt it with `sledvault disks format`"
	hintNotLUKS2  = "check the path: this may be the wrong disk; to give up its contents run `sledvault disks format --overwrite`"
	hintDamaged   = "restore the header from a backup; the data cannot be read without it"
	hintRefused   = "this header was not made by sledvault: adopt the disk only after converting it to aes-xts-plain64"
	hintChanged   = "do not use this disk before you know who changed it; if it was you, run `sledvault disks format`"
	hintReencrypt = "if encrypting this disk in place was interrupted, run `sledvault disks format --keep-data --resume`; if not, it was tampered with"
	hintKey       = "the disk may come from another sled or rack, or was formatted under another identity; compare vendor, model and serial"
	hintHasHeader = "adopt it with `sledvault disks format`, or give up its contents with `sledvault disks format --overwrite`"
	hintHasData   = "keep it with `sledvault disks format --keep-data`, or give it up with `sledvault disks format --overwrite`"
	hintTooSmall  = "use a larger disk; keeping data needs 32 MiB unused at its end"
	hintBusy      = "close what uses the device: see `cryptsetup status` and `lsblk`"
	hintNoSlot    = "remove unused key slots with `cryptsetup luksKillSlot`; sledvault needs one free"
)
