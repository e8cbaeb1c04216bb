package quorumtest

// Invariant names a rule of docs/protocol.md §12 that the simulation checks.
type Invariant uint8

// The invariants, in the order of the table.
const (
	P1 Invariant = iota
	P2
	P3
	P4
	P5
	P6
	P7
	P8
	P9
	P10
	P11
	P12
	P13
	P14
	P15
	P16
	P17
	P18
	P19
	P20
	P21
	P22
	P23
	X1
	X2
	X3
	X4
	X5
	X6
	X7
	X8
	X9
	X10
	C1
	C2
	C3
	XStart
	XSound
	invariants
)

var invariantNames = [invariants]struct{ name, meaning string }{ //nolint:gochecknoglobals // a table that nobody changes
	P1:     {"P1", "one configuration per epoch, everywhere"},
	P2:     {"P2", "whoever acknowledged a prepare has stored it"},
	P3:     {"P3", "whoever said \"committed\" has committed and is prepared"},
	P4:     {"P4", "no sled coordinates and computes a share at once, or coordinates an epoch older than one it has stored"},
	P5:     {"P5", "no alarms but those that name a liar"},
	P6:     {"P6", "only sleds that a decision left out are expunged; nobody commits an epoch that lacks it"},
	P7:     {"P7", "a first request makes a grant and a prepare for each connected member, and nothing else"},
	P8:     {"P8", "requests that the rules allow succeed, others are refused; repeated ones have no effect"},
	P9:     {"P9", "commits of prepared sleds succeed"},
	P10:    {"P10", "a configuration is first seen at its coordinator"},
	P11:    {"P11", "a seed says everything: the run repeats"},
	P12:    {"P12", "nothing is on its way to or from a sled that is down"},
	P13:    {"P13", "who waits for a secret collects shares of that epoch or a later one"},
	P14:    {"P14", "who gives a secret has committed its epoch or a later one"},
	P15:    {"P15", "\"nothing committed\" is said only where nothing is"},
	P16:    {"P16", "\"not committed\" is said only of later epochs"},
	P17:    {"P17", "\"not available\" is said only of epochs that were never decided, or dropped; each request is answered once"},
	P18:    {"P18", "a coordinator that did not restart still coordinates what the controller waits for"},
	P19:    {"P19", "healed, every member commits the last decision and nobody is busy; a healthy core does so alone"},
	P20:    {"P20", "healed, a change under way is prepared by every member"},
	P21:    {"P21", "healed, a change that was given up goes through at the next epoch"},
	P22:    {"P22", "healed, every member gives the secrets of all epochs, and nobody collects"},
	P23:    {"P23", "healed, nothing is left on its way"},
	X1:     {"X1", "commits are prepared and certified, each by the certificate of that very configuration"},
	X2:     {"X2", "an own share fits number and digest in its configuration"},
	X3:     {"X3", "nothing stored is ever lost or changed"},
	X4:     {"X4", "all configurations of a sled have the rack's id"},
	X5:     {"X5", "at least K members hold their shares of the last decision"},
	X6:     {"X6", "all sleds give the same secret of an epoch, old epochs included"},
	X7:     {"X7", "nothing leaves before it is stored"},
	X8:     {"X8", "a decided configuration carries exactly the older decided secrets that the operator keeps"},
	X9:     {"X9", "a share goes only to the member whose share it is, or to a member that collects that epoch"},
	X10:    {"X10", "a sled stores no configuration without a secret for each older epoch that it has committed and the operator keeps"},
	C1:     {"C1", "no epoch is asked of two coordinators, or with two contents"},
	C2:     {"C2", "a decision has K+Z true acknowledgements, and builds on the decision before it"},
	C3:     {"C3", "the decision is in the journal before the first commit leaves; one controller at a time"},
	XStart: {"start", "a sled starts from its own disk, goes on computing a share that it lacks, and starts from no foreign or torn disk that breaks a rule"},
	XSound: {"sound", "no step ends in a broken invariant of the core"},
}

func (i Invariant) String() string { return invariantNames[i].name }

// Meaning is the invariant in words.
func (i Invariant) Meaning() string { return invariantNames[i].meaning }

// Fault is a kind of injected fault.
type Fault uint8

// The faults, in the order of the table.
const (
	FaultCrash Fault = iota
	FaultCrashBeforeSave
	FaultCrashAfterSave
	FaultFailedSave
	FaultTornSave
	FaultLostSync
	FaultRollbackRefused
	FaultRollbackUnseen
	FaultSwap
	FaultPowerCut
	FaultLoss
	FaultBreak
	FaultFullQueue
	FaultDuplicate
	FaultReorder
	FaultPartition
	FaultOneWay
	FaultPreempted
	FaultLiar
	FaultFalseAck
	FaultUngranted
	FaultRogue
	FaultForgedRequest
	FaultControllerCrash
	FaultControllerBeforeSave
	FaultControllerAfterSave
	FaultSecondController
	FaultOldJournal
	FaultLostAnswer
	faults
)

var faultNames = [faults]struct{ name, meaning string }{ //nolint:gochecknoglobals // a table that nobody changes
	FaultCrash:                {"crash", "a sled's process dies between two steps"},
	FaultCrashBeforeSave:      {"crash-before-save", "it dies when it is about to save"},
	FaultCrashAfterSave:       {"crash-after-save", "it dies when it has saved and not sent yet"},
	FaultFailedSave:           {"failed-save", "the disk refuses a save"},
	FaultTornSave:             {"torn-save", "it dies in a save; one copy is old, the other is a mixture"},
	FaultLostSync:             {"lost-sync", "a disk acknowledged saves and lost them in a power cut"},
	FaultRollbackRefused:      {"rollback-refused", "an old disk comes back; the ledger refuses it, and the sled is enrolled again"},
	FaultRollbackUnseen:       {"rollback-unseen", "an old disk comes back and nothing notices"},
	FaultSwap:                 {"swap", "a sled finds the disk of another one"},
	FaultPowerCut:             {"power-cut", "all sleds lose power at once"},
	FaultLoss:                 {"loss", "one message is lost and its connection goes on"},
	FaultBreak:                {"break", "a connection breaks with all that is on its way"},
	FaultFullQueue:            {"full-queue", "a queue is full: the message is lost and the connection breaks"},
	FaultDuplicate:            {"duplicate", "a message comes twice"},
	FaultReorder:              {"reorder", "two messages of one connection change places"},
	FaultPartition:            {"partition", "the network falls into two parts"},
	FaultOneWay:               {"one-way", "messages pass in one direction only"},
	FaultPreempted:            {"pre-empted", "a change is given up for another one"},
	FaultLiar:                 {"liar", "a member alters what it sends, or invents messages"},
	FaultFalseAck:             {"false-ack", "a member acknowledges a prepare that it has not stored"},
	FaultUngranted:            {"ungranted", "a member plays coordinator without a grant"},
	FaultRogue:                {"rogue", "a coordinator with a grant hands out shares that do not fit together, or two configurations"},
	FaultForgedRequest:        {"forged-request", "somebody without the operator's key makes requests at a sled, or somebody with it at the wrong sled"},
	FaultControllerCrash:      {"ctl-crash", "the controller dies between two steps"},
	FaultControllerBeforeSave: {"ctl-before-save", "it dies before the journal is written"},
	FaultControllerAfterSave:  {"ctl-after-save", "it dies when the journal is written and nothing is sent"},
	FaultSecondController:     {"second-ctl", "a second controller opens the journal"},
	FaultOldJournal:           {"old-journal", "the controller resumes from an older journal, or an empty one"},
	FaultLostAnswer:           {"lost-answer", "a sled's answer to the controller is lost"},
}

func (f Fault) String() string { return faultNames[f].name }

// Meaning is the fault in words.
func (f Fault) Meaning() string { return faultNames[f].meaning }
