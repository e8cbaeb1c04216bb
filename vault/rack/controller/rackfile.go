package controller

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/sledvault/sledvault/vault/ident"
	"github.com/sledvault/sledvault/vault/rack"
	"github.com/sledvault/sledvault/vault/reason"
)

// File is the operator's rack file: which sleds the rack has. The controller's own files lie in the same folder.
type File struct {
	Name      string `toml:"name"`
	Threshold uint8  `toml:"threshold,omitempty"` // 0: the default, n/2+1
	Sleds     []Sled `toml:"sled"`

	dir string
}

// Sled is one sled in the rack file.
type Sled struct {
	Name     string `toml:"name,omitempty"` // label in tables; default the baseboard
	Part     string `toml:"part"`
	Serial   string `toml:"serial"`
	Underlay string `toml:"underlay"` // "ip:port" of the sled's underlay API
	EKName   string `toml:"ek_name"`  // as sledvault tpm ek prints it on the sled
}

// CodeRackFile marks a rack file that cannot be used.
const CodeRackFile reason.Code = "rack-file"

// maxFile bounds a rack file in bytes.
const maxFile = 1 << 20

// maxEKName bounds an EK Name in bytes: algorithm and SHA-512 digest.
const maxEKName = 66

// Baseboard is the sled's identity.
func (s Sled) Baseboard() ident.Baseboard { return ident.Baseboard{Part: s.Part, Serial: s.Serial} }

// Label is how the sled is called in tables.
func (s Sled) Label() string {
	if s.Name != "" {
		return s.Name
	}
	return s.Baseboard().String()
}

func (s Sled) ekName() ([]byte, error) {
	b, err := hex.DecodeString(s.EKName)
	if err != nil || len(b) < 34 || len(b) > maxEKName {
		return nil, fmt.Errorf("ek_name must be the hex text that sledvault tpm ek prints: have %.40q", s.EKName)
	}
	return b, nil
}

// Load reads and checks a rack file.
func Load(path string) (*File, error) {
	hint := "correct " + path
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxFile {
		return nil, reason.New(CodeRackFile, hint, "rack file: have %d bytes, want at most %d", fi.Size(), maxFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, reason.Wrap(err, CodeRackFile, "make one: sledvault rack new FOLDER", "rack file")
	}
	f := &File{dir: filepath.Dir(path)}
	md, err := toml.Decode(string(b), f)
	if err != nil {
		return nil, reason.New(CodeRackFile, hint, "rack file: %.300s", err)
	}
	if u := md.Undecoded(); len(u) > 0 {
		return nil, reason.New(CodeRackFile, hint, "rack file: unknown key %.100q", u[0].String())
	}
	if err := f.validate(); err != nil {
		return nil, reason.Wrap(err, CodeRackFile, hint, "rack file")
	}
	return f, nil
}

func (f *File) validate() error {
	if !plainText(f.Name) {
		return fmt.Errorf("name must be 1 to %d printable ASCII characters without quotes: have %.80q", maxName, f.Name)
	}
	if n := len(f.Sleds); f.Threshold != 0 && (f.Threshold < 2 || int(f.Threshold) >= rack.MaxMembers || n > 0 && int(f.Threshold) >= n) {
		return fmt.Errorf("threshold must be at least 2 and below the number of sleds: have %d for %d sleds", f.Threshold, n)
	}
	if len(f.Sleds) > rack.MaxMembers {
		return fmt.Errorf("sleds: have %d, want at most %d", len(f.Sleds), rack.MaxMembers)
	}
	for i, s := range f.Sleds {
		if err := s.Baseboard().Validate(); err != nil {
			return fmt.Errorf("sled %d: %w", i+1, err)
		}
		if s.Name != "" && !plainText(s.Name) {
			return fmt.Errorf("sled %d: name must be 1 to %d printable ASCII characters without quotes: have %.80q", i+1, maxName, s.Name)
		}
		if _, err := netip.ParseAddrPort(s.Underlay); err != nil {
			return fmt.Errorf("sled %s: underlay must be ip:port: have %.60q", s.Label(), s.Underlay)
		}
		if _, err := s.ekName(); err != nil {
			return fmt.Errorf("sled %s: %w", s.Label(), err)
		}
		for _, o := range f.Sleds[:i] {
			if o.Baseboard() == s.Baseboard() || strings.EqualFold(o.EKName, s.EKName) || s.Name != "" && o.Name == s.Name || o.Underlay == s.Underlay {
				return fmt.Errorf("sleds %s and %s share a name, a baseboard, an EK name or an address", o.Label(), s.Label())
			}
		}
	}
	return nil
}

// Find returns the sled with that baseboard.
func (f *File) Find(b ident.Baseboard) (Sled, bool) {
	i := slices.IndexFunc(f.Sleds, func(s Sled) bool { return s.Baseboard() == b })
	if i < 0 {
		return Sled{}, false
	}
	return f.Sleds[i], true
}
