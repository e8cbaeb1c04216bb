package tpm

import (
	"encoding/binary"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// Properties is what a TPM says about itself. Not authenticated: fit for display and for sizes, not for decisions.
type Properties struct {
	Manufacturer string `json:"manufacturer"`  // four characters, padding removed
	Vendor       string `json:"vendor"`        // up to sixteen characters
	Firmware     uint64 `json:"firmware"`      // firmware version, as in attestations
	NVBufferMax  int    `json:"nv_buffer_max"` // bytes per NV read or write
}

// Properties returns what the TPM said about itself when it was opened.
func (t *TPM) Properties() Properties { return t.props }

// Software tells that the TPM calls itself a software TPM (swtpm, libtpms, the Microsoft reference code). Callers demand
// the relaxation software-tpm for it. A TPM that lies here is met by the enrolment record, not by this.
func (t *TPM) Software() bool {
	if t.socket || strings.HasPrefix(t.props.Vendor, "SW ") || strings.HasPrefix(t.props.Vendor, "xCG ") {
		return true
	}
	switch t.props.Manufacturer {
	case "IBM", "XYZ", "xCG", "SIMU", "QEMU", "":
		return true
	}
	return false
}

const propertyCount = 64 // covers the fixed group, 0x100 to 0x12d

func (s *Session) properties() (p Properties, err error) {
	rsp, err := run(s, "properties", tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTManufacturer), PropertyCount: propertyCount})
	if err != nil {
		return p, err
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return p, fail("properties", err)
	}
	var vendor [16]byte
	for _, e := range list.TPMProperty {
		switch e.Property {
		case tpm2.TPMPTManufacturer:
			p.Manufacturer = printable(binary.BigEndian.AppendUint32(nil, e.Value))
		case tpm2.TPMPTVendorString1, tpm2.TPMPTVendorString2, tpm2.TPMPTVendorString3, tpm2.TPMPTVendorString4:
			binary.BigEndian.PutUint32(vendor[4*(e.Property-tpm2.TPMPTVendorString1):], e.Value)
		case tpm2.TPMPTFirmwareVersion1:
			p.Firmware |= uint64(e.Value) << 32
		case tpm2.TPMPTFirmwareVersion2:
			p.Firmware |= uint64(e.Value)
		case tpm2.TPMPTNVBufferMax:
			p.NVBufferMax = int(e.Value)
		}
	}
	p.Vendor = printable(vendor[:])
	p.NVBufferMax = clampNV(p.NVBufferMax)
	return p, nil
}

// clampNV keeps an absurd claim from steering allocations.
func clampNV(n int) int {
	if n < 64 || n > 2048 {
		return 512
	}
	return n
}

func printable(b []byte) string {
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(b))
	return strings.TrimSpace(clean)
}
