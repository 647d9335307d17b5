# Curfew. `make help` says what there is.
#
#   make demo    the whole story on throw-away hosts
#   make test    everything: what CI runs
SHELL := /bin/bash
.DEFAULT_GOAL := help
export GOTOOLCHAIN := local
export GOFLAGS := -buildvcs=false
export PATH := /usr/local/go/bin:/usr/sbin:/sbin:$(PATH)

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/curfew-access/curfew/internal/version.Version=$(VERSION)
GO_BUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
CLI_TARGETS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64

.PHONY: help
help: ## this text
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: deps
deps: ## install what builds and tests need (Debian packages; needs root)
	@e2e/deps.sh

.PHONY: build
build: ## the programs and the C modules, into bin/
	@$(GO_BUILD) -o bin/ ./cmd/...
	@$(MAKE) -s --no-print-directory -C pam all
	@$(MAKE) -s --no-print-directory -C nss all

.PHONY: cli
cli: ## the CLI for Linux and macOS, amd64 and arm64, static, into dist/
	@for t in $(CLI_TARGETS); do \
	  echo "  dist/curfew-$${t/\//-}"; \
	  GOOS=$${t%/*} GOARCH=$${t#*/} $(GO_BUILD) -o dist/curfew-$${t/\//-} ./cmd/curfew || exit 1; \
	done

.PHONY: install
install: build ## install into DESTDIR (no activation: see packaging/install.sh)
	packaging/install.sh --root "$(or $(DESTDIR),/)" all

TOOLS := bin/buf bin/gofumpt bin/staticcheck bin/protoc-gen-go bin/protoc-gen-go-grpc
$(TOOLS) &: tools/go.mod
	@echo "building tools (once, about three minutes)"
	@mkdir -p bin
	@go build -modfile=tools/go.mod -o bin/ github.com/bufbuild/buf/cmd/buf \
	  google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc \
	  mvdan.cc/gofumpt honnef.co/go/tools/cmd/staticcheck
	@touch $(TOOLS)

# Apart from the other tools: only packages need it.
bin/nfpm: tools/go.mod
	@echo "building nfpm (once, about a minute)"
	@go build -modfile=tools/go.mod -o bin/ github.com/goreleaser/nfpm/v2/cmd/nfpm
	@touch $@

.PHONY: packages
packages: deps bin/nfpm ## deb and rpm, amd64 and arm64, into dist/packages, with checksums and an SBOM
	@packaging/build/deps.sh arm64
	@go run ./packaging/build $(if $(TAG),-version $(TAG))

.PHONY: generate
generate: $(TOOLS) ## generated code
	cd proto && ../bin/buf generate

.PHONY: proto-baseline
proto-baseline: $(TOOLS) ## what `buf breaking` compares with: move it only with a release
	cd proto && ../bin/buf build -o baseline.binpb

.PHONY: lint
lint: $(TOOLS) ## formatting, vet, staticcheck, buf lint and breaking, stale generated code
	@out=$$(bin/gofumpt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); \
	  test -z "$$out" || { echo "gofumpt would change:"; echo "$$out"; exit 1; }
	@go vet ./...
	@bin/staticcheck ./...
	@cd proto && ../bin/buf lint && ../bin/buf breaking --against baseline.binpb
	@e2e/stale.sh

.PHONY: test
test: deps build lint cli bin/nfpm ## everything; this is what CI runs
	@$(MAKE) -s --no-print-directory -C pam asan
	@$(MAKE) -s --no-print-directory -C nss asan
	go test -timeout 20m $$(go list ./... | grep -v /e2e)
	@# The stories hold promises in seconds against the clock: nothing else runs beside them.
	@# Most of a story is waiting for an end to come, so four at a time leave a core idle still.
	go test -p 1 -timeout 60m -parallel 4 ./e2e/...

.PHONY: demo demo-up demo-down
demo: deps build ## the whole story on throw-away hosts, narrated; leaves nothing behind
	@go run ./e2e/demo
demo-up: deps build ## the same world, kept running, with the commands to try by hand
	@go build -o bin/curfew-demo ./e2e/demo && bin/curfew-demo up
demo-down: ## remove the world of demo-up
	@go build -o bin/curfew-demo ./e2e/demo && bin/curfew-demo down

.PHONY: uids
uids: ## 100,000 times accounts come and go, on a host and in the directory: no uid is given twice
	go test -timeout 60m -run TestNoUIDIsGivenTwice ./agent ./controlplane/store -uid-cycles=100000

FUZZTIME ?= 10m
.PHONY: fuzz
fuzz: build ## fuzz every target for FUZZTIME, one after the other, and keep what reaches new code
	@e2e/deps.sh clang-14 libclang-rt-14-dev
	@go run ./e2e/fuzz -time $(FUZZTIME) "$(ONLY)"

.PHONY: mutate
mutate: deps build ## apply each break of the MUTATIONS.md files and see its test fail
	@go run ./e2e/mutate "$(ONLY)"

.PHONY: bench
bench: deps build ## what Curfew costs beside what it cannot do without (ONLY=WORD… for some rows)
	@CGO_ENABLED=0 go build -o bin/curfew-bench ./e2e/bench
	@bin/curfew-bench $(ONLY)

.PHONY: faults
faults: deps build ## kill, cut the power and break the disk at every point; `make test` plays a seeded sample
	go test -count=1 -timeout 0 -v -run '^TestPowerLost' ./agent/store -every
	go test -count=1 -timeout 0 -v -run '^TestKilledAt|^TestPowerLost' ./controlplane -every
	go test -count=1 -timeout 0 -v ./e2e/faults -every

.PHONY: test-packages
test-packages: deps build bin/nfpm ## install, upgrade, remove and purge on Debian 11 to 13, killed at every command
	go test -count=1 -timeout 0 -v ./e2e/packages -every

.PHONY: soak
soak: deps build ## a long bad day on eight hosts (SOAK=1h), then everything compared
	CURFEW_HISTORIES=1000000 go test -count=1 -timeout 0 -v -run '^TestHistories$$' ./internal/grant
	SOAK=$(or $(SOAK),1h) go test -count=1 -timeout 0 -v -run '^TestSoak$$' ./e2e

.PHONY: kubernetes
kubernetes: ## hold the manifests against the API server's own types, validation and pod security
	@cd packaging/kubernetes/check && go test -count=1 ./...

.PHONY: boots
boots: deps build ## boot a host whose root half is down, dead or hung, BOOTS=100 times
	CURFEW_BOOTS=$(or $(BOOTS),100) go test -v -timeout 90m -run '^TestBootsWithoutTheRootHalf$$' ./e2e

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
	@$(MAKE) -s --no-print-directory -C pam clean
	@$(MAKE) -s --no-print-directory -C nss clean
