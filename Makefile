# Every target is a plain go command; the README's own commands need no make.
GO      ?= go
BIN     := bin
LDFLAGS := -s -w
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo devel)
RACE    := ./vault/... ./rot/... ./sealing/... ./tpm/... ./sp/... ./internal/...
FUZZ    ?= 5s
ACTIONS ?= 3000000

# The linter is not built in .ci/run: that takes over a minute. One on PATH is taken there as it is.
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: build release check test race demo bench bench-peers bench-shamir bench-boot bench-handshake fuzz-smoke sim kill leak model model-long model-traces lint fmt vuln docs tpmsim clean

build: ## static binaries in bin/, for tests and the demo too
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS) -X main.version=$(VERSION)' -o $(BIN)/ ./cmd/...

release: ## static binaries for real sleds in dist/: no relaxation can be configured, so no demo runs with them
	CGO_ENABLED=0 $(GO) build -trimpath -tags packaged -ldflags '$(LDFLAGS) -X main.version=$(VERSION)' -o dist/ ./cmd/sledvault ./cmd/sledvaultd

check: ## what CI runs
	.ci/run

test: ## every test; a missing tool is a failure
	RIG_REQUIRE=1 $(GO) test ./...

race: ## the race detector where goroutines meet
	RIG_REQUIRE=1 $(GO) test -race -short $(RACE)

demo: ## a whole rack on this machine
	$(GO) run ./cmd/sledvault demo

bench: ## figures of docs/benchmarks.md
	$(GO) test -run '^$$' -bench . -benchmem ./vault/gfss ./vault/keys ./vault/quorum ./vault/quorum/replay ./sealing ./vault/ledger ./rot/... ./tpm

bench-peers: ## beside clevis, tang, tpm2-tools and systemd-creds (about four minutes)
	$(GO) run ./cmd/hwtest bench-peers $(if $(INSTALL),--install)

bench-shamir: ## secret sharing beside Vault's, in a module of its own
	cd hwtest/benchmarks && $(GO) run .

bench-boot: ## cold boots of racks of 3 to 31 sleds, and their plot
	$(GO) run ./cmd/hwtest bench-boot --plot docs/boot-to-unlocked.svg

fuzz-smoke: ## every fuzz target for a moment
	.ci/fuzz $(FUZZ)

mutation: ## mutation testing of the core with gremlins (hours)
	.ci/mutation

mutation-fast: ## the same with all mutants in one binary (minutes)
	$(GO) run .ci/mutate.go ./vault/gfss ./vault/keys ./vault/lrtq ./vault/rack ./vault/quorum

sim: ## the seeded cluster simulation
	$(GO) test ./vault/quorum/quorumtest -run 'Simulation$$' -timeout 0 -v -args -sim.actions=$(ACTIONS)

kill: ## SIGKILL before every system call of a save, a start, an enrolment, a rotation (half an hour)
	RIG_REQUIRE=1 $(GO) test ./vault/ledger -run 'Killed(Between|While|With)' -timeout 30m -v -args -kill.every
	RIG_REQUIRE=1 $(GO) test ./hwtest/sim/rack -run 'Killed(While|Command|Enrolment)' -timeout 60m -v -args -kill.step=1

leak: ## timing leakage of the field arithmetic and of comparing, with positive controls
	$(GO) test -tags leak -run 'Leak(Timing)?$$' -count=1 -p 1 -v ./vault/gfss ./vault/secret ./vault/lrtq

model: ## the formal model of the protocol under TLC, and rules broken on purpose (fetches TLC; installs Java as root)
	.ci/model

model-long: ## the same in larger bounds
	.ci/model long

model-traces: ## runs of the simulated cluster must be behaviours of the model
	.ci/model traces

tpmsim: ## the TPM suites on the in-process simulator as well (needs gcc and libssl-dev)
	$(GO) test -tags tpmsim ./tpm/... ./sealing/...

lint: ## golangci-lint, what go fix would do, and shellcheck where it is installed
	$(GO) run $(GOLANGCI) run ./...
	-$(GO) fix -diff ./...
	if command -v shellcheck >/dev/null; then shellcheck $$(grep -lE '^#!.*sh' .ci/*); fi

fmt: ## format as lint wants it
	$(GO) run $(GOLANGCI) fmt ./...

vuln: ## known vulnerabilities; an unreachable database is said, not hidden
	.ci/vuln

docs: ## man pages and completions
	$(GO) run ./cmd/sledvault docs docs/man packaging/completions

clean:
	rm -rf $(BIN) dist
