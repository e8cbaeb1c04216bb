package journal

import (
	"io/fs"

	"github.com/sledvault/sledvault/vault/rack"
)

// WriteFileSteps is WriteFile with a look at, and a fault before, each step.
func WriteFileSteps(path string, b []byte, mode fs.FileMode, before func(step string) error) error {
	return writeFile(path, b, mode, before)
}

// Encode and Decode are the file's format.
func Encode(st rack.State) ([]byte, error) { return encode(st) }
func Decode(b []byte) (rack.State, error)  { return parse(b) }
