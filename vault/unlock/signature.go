package unlock

import (
	"bytes"
	"io"
)

// mark is a byte pattern at a fixed place by which a kind of content is known.
type mark struct {
	name string
	at   int64
	want string
}

// marks lists what must not be overwritten by accident. Most specific first: a boot sector's 55 aa says little.
func marks() []mark {
	return []mark{
		{"a LUKS1 header", 0, "LUKS\xba\xbe\x00\x01"},
		{"a LUKS2 header", 0, "LUKS\xba\xbe\x00\x02"},
		{"an ext file system", 0x438, "\x53\xef"},
		{"an XFS file system", 0, "XFSB"},
		{"a btrfs file system", 0x10040, "_BHRfS_M"},
		{"a bcachefs file system", 0x1018, "\xc6\x85\x73\xf6\x66\xce\x90\xa9"},
		{"an F2FS file system", 0x400, "\x10\x20\xf5\xf2"},
		{"a squashfs image", 0, "hsqs"},
		{"an ISO 9660 image", 0x8001, "CD001"},
		{"swap space", 0xff6, "SWAPSPACE2"},
		{"an LVM volume", 0x200, "LABELONE"},
		{"an LVM volume", 0, "LABELONE"},
		{"a RAID member", 0x1000, "\xfc\x4e\x2b\xa9"},
		{"a RAID member", 0, "\xfc\x4e\x2b\xa9"},
		{"a ZFS member", 0x3fd8, "\x11\x7a\x0c\xb1\x7a\xda\x10\x02"}, // the first label's embedded checksum magic
		{"a ZFS member", 0x20000, "\x0c\xb1\xba\x00"},
		{"a ZFS member", 0x20004, "\x00\xba\xb1\x0c"},
		{"a BitLocker volume", 3, "-FVE-FS-"},
		{"an NTFS file system", 3, "NTFS    "},
		{"a partition table (GPT)", 0x200, "EFI PART"},
		{"a partition table (GPT)", 0x1000, "EFI PART"},
		{"a FAT file system", 0x52, "FAT32"},
		{"a FAT file system", 0x36, "FAT1"},
		{"a partition table or boot sector", 0x1fe, "\x55\xaa"},
	}
}

// signature names what a device holds, "" if nothing known.
func signature(r io.ReaderAt) string {
	for _, m := range marks() {
		have := make([]byte, len(m.want))
		if n, _ := r.ReadAt(have, m.at); n == len(have) && bytes.Equal(have, []byte(m.want)) {
			return m.name
		}
	}
	if anySecond(r) {
		return "the second copy of a LUKS2 header"
	}
	return ""
}
