// Package configdoc describes every key of sledvaultd's configuration, once.
//
// From it come the man page sledvaultd(8) and the example packaging/sledvaultd.toml; a test holds it against the type
// that the daemon reads. It imports nothing of ours.
package configdoc

// Key is one key of the configuration file.
type Key struct {
	Name    string
	Default string // in TOML; "" = none
	Example string // in TOML; "" = Default. Keys without a default are written into the example file.
	Text    string // what it means: sentences
}

// Table is one table of the configuration file.
type Table struct {
	Name string // "state", or "disk" for [[disk]]
	List bool   // may appear several times: [[disk]]
	Text string
	Keys []Key
}

// Head is how the table is opened in the file.
func (t Table) Head() string {
	if t.List {
		return "[[" + t.Name + "]]"
	}
	return "[" + t.Name + "]"
}

// Tables lists all tables in the order of the example file.
func Tables() []Table {
	return []Table{
		{Name: "state", Text: "Where the sealed state lies.", Keys: []Key{
			{Name: "copies", Example: `["/var/lib/sledvault/a", "/mnt/second/sledvault"]`, Text: "Two folders on different media. Both hold the same files, and either is enough to boot. " +
				"Nothing in them opens a disk without this sled's TPM and enough other sleds."},
		}},
		{Name: "tpm", Text: "The TPM that seals the state.", Keys: []Key{
			{Name: "device", Default: `"/dev/tpmrm0"`, Text: "The kernel's TPM device, or unix:/path of a software TPM's socket, which needs relax.software-tpm."},
			{Name: "command_timeout", Default: `"20s"`, Text: "How long one TPM command may take."},
			{Name: "pcrs", Default: `[0, 2, 7, 11, 12, 14]`, Text: "The registers of the SHA-256 bank, 0 to 15, that the seal depends on. Software that changes one of them shuts the seal."},
			{Name: "event_log", Default: `"/sys/kernel/security/tpm0/binary_bios_measurements"`, Text: "The firmware's measurement log."},
			{Name: "counter_index", Default: `0x01805c01`, Text: "NV index of the counter against rollback, in the owner range 0x01800000 to 0x01bfffff."},
			{Name: "claim_index", Default: `0x01805c02`, Text: "NV index that remembers to which rack this TPM belongs. Another one than counter_index."},
		}},
		{Name: "sp", Text: "The service processor, which says who this sled is.", Keys: []Key{
			{Name: "port", Example: `"/dev/ttyS1"`, Text: "Serial device that leads to the service processor."},
			{Name: "baud", Default: `3000000`, Text: "Speed of the line in bits per second."},
			{Name: "deadline", Default: `"30s"`, Text: "How long to try to read the identity before the boot says that it is stuck there."},
		}},
		{Name: "peer", Text: "The other sleds, on the bootstrap network.", Keys: []Key{
			{Name: "listen", Example: `"[fd00:1::1]:12349"`, Text: "Address and port to listen on for other sleds."},
			{Name: "peers", Default: `[]`, Example: `["[fd00:1::1]:12349", "[fd00:1::2]:12349", "[fd00:1::3]:12349"]`, Text: "Addresses of the other sleds, at most 256. The own address may be among them, so that all sleds can have the same list. " +
				"The bootstrap agent may replace the list through the local API."},
		}},
		{Name: "underlay", Text: "The rack controller's way in.", Keys: []Key{
			{Name: "listen", Example: `"[fd00:2::1]:12350"`, Text: "Address and port to listen on for the rack controller: TLS, and a client certificate under the rack's membership key."},
		}},
		{Name: "api", Text: "The local API.", Keys: []Key{
			{Name: "socket", Default: `"/run/sledvault/api.sock"`, Text: "Path of the unix socket. Everybody may connect; what a caller may do depends on his role."},
		}},
		{Name: "api.role", List: true, Text: "Gives one role to users and groups of this machine. Without any such table root and the daemon's own user have every role; " +
			"with one, only those named have one. A caller's group is the one that his process runs under.", Keys: []Key{
			{Name: "name", Example: `"observe"`, Text: "observe (read status), unlock (open and format disks, fetch disk keys), agent (set peers) or operate (quorum calls). No role includes another."},
			{Name: "uids", Default: `[]`, Example: `[0]`, Text: "User numbers that have the role."},
			{Name: "gids", Default: `[]`, Text: "Group numbers that have the role."},
		}},
		{Name: "claim", Text: "Who may take this sled into a rack.", Keys: []Key{
			{Name: "fingerprint", Default: `""`, Example: `"sha256:0000000000000000000000000000000000000000000000000000000000000000"`, Text: "Fingerprint of the rack's membership key, as sledvault rack new prints it. Without it nobody can claim the sled. It is looked at only while the sled is unclaimed."},
		}},
		{Name: "unlock", Text: "How long secrets stay in memory.", Keys: []Key{
			{Name: "deadline", Default: `"2m0s"`, Text: "How long the rack secret is kept for disks that do not open. It is dropped earlier when all are open."},
		}},
		{Name: "disk", List: true, Text: "One disk to unlock.", Keys: []Key{
			{Name: "id", Example: `"data0"`, Text: "Name of the disk in commands and status: 1 to 64 letters, digits, dots, hyphens or underscores."},
			{Name: "backend", Example: `"luks2"`, Text: "How the disk is encrypted: luks2."},
			{Name: "path", Example: `"/dev/disk/by-id/nvme-1b96_WDC_A084A645"`, Text: "The device, by a name that does not change."},
			{Name: "vendor", Example: `"1b96"`, Text: "Vendor of the disk. Vendor, model and serial number enter its key: a disk with one of them changed here does not open."},
			{Name: "model", Example: `"WDC"`, Text: "Model of the disk."},
			{Name: "serial", Example: `"A084A645"`, Text: "Serial number of the disk."},
			{Name: "mapping", Default: `""`, Example: `"sledvault-data0"`, Text: "Name under /dev/mapper; sledvault- and the id if empty."},
		}},
		{Name: "lrtq", Text: "The older scheme, for a rack that comes from it.", Keys: []Key{
			{Name: "ledgers", Default: `[]`, Example: `["/mnt/a/bootstore-fsm-state.json", "/mnt/b/bootstore-fsm-state.json"]`, Text: "Copies of the ledger that the older scheme left. They are read once, while the sled knows no configuration of the trust quorum; " +
				"one that is absent is passed over, one that is damaged is an error unless another can be read. sledvault ledger show says what is in one."},
			{Name: "serve", Default: `false`, Text: "Speak the older scheme with the other sleds until the first commit of the trust quorum: disks of epoch 1 open before the rack is upgraded, and sleds that still run the old software are given shares. " +
				"Nobody proves anything there: whoever connects from a configured address and names the rack is given this sled's share."},
			{Name: "listen", Default: `""`, Example: `"[fd00::1]:12347"`, Text: "This sled's IPv6 address and port for the older scheme. It must be the address by which the others know it."},
			{Name: "peers", Default: `[]`, Example: `["[fd00::1]:12347", "[fd00::2]:12347"]`, Text: "The addresses of all sleds in the older scheme. Connections from elsewhere are refused."},
		}},
		{Name: "metrics", Text: "Metrics in Prometheus' text format, at /metrics.", Keys: []Key{
			{Name: "listen", Default: `""`, Example: `"127.0.0.1:9351"`, Text: "Address and port; none if empty. Whoever reaches it reads states and counters; there are no secrets in them."},
		}},
		{Name: "log", Text: "The log on standard error.", Keys: []Key{
			{Name: "level", Default: `"info"`, Text: "debug, info, warn or error."},
			{Name: "format", Default: `"text"`, Text: "text or json."},
			{Name: "trace_marker", Default: `""`, Example: `"/sys/kernel/tracing/trace_marker"`, Text: "A file that exists, to which one line is added when a save of the ledger begins, when it is done, and before each message of the quorum protocol. " +
				"For whoever traces the daemon's system calls; none if empty. It grows with every change of the rack and every start."},
		}},
		{Name: "relax", Text: "Named relaxations, for development only. Each is shown in the log, in status and to every peer, which must have the same one. Packaged builds refuse them.", Keys: []Key{
			{Name: "software-tpm", Default: `false`, Text: "Accept a TPM that is a program. Whoever is root on this machine can then read everything that it seals."},
		}},
	}
}
