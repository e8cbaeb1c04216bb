package configdoc

import (
	"fmt"
	"strings"
)

// width is where the example file's comments are wrapped.
const width = 100

// Example is the example configuration: every key with its meaning, keys with a default commented out.
func Example() string {
	var b strings.Builder
	b.WriteString("# Configuration of sledvaultd, see sledvaultd(8). Check it with: sledvaultd --check-config --config FILE\n" +
		"# Commented keys show their defaults, or an example.\n")
	for _, t := range Tables() {
		b.WriteString("\n")
		comment(&b, t.Text)
		optional := t.Name == "api.role"
		line(&b, optional, t.Head())
		for _, k := range t.Keys {
			comment(&b, k.Text)
			value := k.Example
			if value == "" {
				value = k.Default
			}
			line(&b, optional || k.Default != "", k.Name+" = "+value)
		}
	}
	return b.String()
}

func line(b *strings.Builder, off bool, s string) {
	if off {
		b.WriteString("# ")
	}
	b.WriteString(s + "\n")
}

// comment writes wrapped text.
func comment(b *strings.Builder, text string) {
	n := 0
	for i, w := range strings.Fields(text) {
		switch {
		case i == 0:
			b.WriteString("# ")
		case n+len(w)+1 > width:
			b.WriteString("\n# ")
			n = 0
		default:
			b.WriteString(" ")
		}
		b.WriteString(w)
		n += len(w) + 1
	}
	b.WriteString("\n")
}

// ManPage is sledvaultd(8) in the Markdown form that go-md2man reads.
func ManPage() string {
	var b strings.Builder
	b.WriteString(manHead)
	for _, t := range Tables() {
		fmt.Fprintf(&b, "### %s\n\n%s\n\n", escape(t.Head()), escape(t.Text))
		for _, k := range t.Keys {
			fmt.Fprintf(&b, "**%s**\n: %s", escape(k.Name), escape(k.Text))
			switch {
			case k.Default == "":
				b.WriteString(" Required.")
			case k.Default != `""` && k.Default != "[]":
				fmt.Fprintf(&b, " Default: `%s`.", k.Default)
			}
			b.WriteString("\n\n")
		}
	}
	b.WriteString(manTail)
	return b.String()
}

func escape(s string) string {
	return strings.NewReplacer("_", `\_`, "[", `\[`, "]", `\]`, "*", `\*`).Replace(s)
}

const manHead = `SLEDVAULTD 8 "" "sledvault" "sledvault"
=======================================

# NAME

sledvaultd - open a sled's disks when enough sleds of its rack are together

# SYNOPSIS

**sledvaultd** **--config** *FILE* [**--check-config**]

**sledvaultd** **--version**

# DESCRIPTION

Sledvaultd is the daemon of one sled. At start it reads the sled's identity from the service processor, opens its sealed
state with the TPM, proves the sled to the other sleds of the rack, and has them prove themselves. When enough of them are
there it rebuilds the rack secret in locked memory, derives one key for each disk, and opens the disks. Then it drops the
secret and stays up, to answer the other sleds and to take part in changes of membership.

It tells the service manager that it is ready as soon as its local API answers; **sledvault-status**(1) says how far the boot
is. **sledvault-unlock**(1) with **--wait** returns when the disks are open.

# OPTIONS

**--config** *FILE*
: The configuration file, see below.

**--check-config**
: Check the configuration and exit.

**--version**
: Print the version and exit.

# EXIT STATUS

0 when ended by a signal, 1 when it failed or its configuration cannot be used, 2 when the command line cannot be used, 3
after **sledvault-seal-reset**(1): start it again. A
daemon that cannot save its state exits at once: nothing leaves the sled that is not on both media.

# CONFIGURATION

The file is TOML. Unknown keys are refused. Durations are written like "20s" or "2m".

`

const manTail = `# EXAMPLE

    [state]
    copies = ["/var/lib/sledvault/a", "/mnt/second/sledvault"]
    [sp]
    port = "/dev/ttyS1"
    [peer]
    listen = "[fd00:1::1]:12349"
    peers = ["[fd00:1::1]:12349", "[fd00:1::2]:12349", "[fd00:1::3]:12349"]
    [underlay]
    listen = "[fd00:2::1]:12350"
    [claim]
    fingerprint = "sha256:..."
    [[disk]]
    id = "data0"
    backend = "luks2"
    path = "/dev/disk/by-id/nvme-1b96_WDC_A084A645"
    vendor = "1b96"
    model = "WDC"
    serial = "A084A645"

# FILES

/etc/sledvault/sledvaultd.toml
: The configuration that the packaged unit uses.

/run/sledvault/api.sock
: The local API.

# SEE ALSO

**sledvault**(1), **sledvault-status**(1), **sledvault-unlock**(1), **sledvault-rack**(1)
`
