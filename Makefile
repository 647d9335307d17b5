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
test: deps build lint cli ## everything; this is what CI runs
	@$(MAKE) -s --no-print-directory -C pam asan
	@$(MAKE) -s --no-print-directory -C nss asan
	go test -timeout 20m $$(go list ./... | grep -v /e2e)
	@# The stories hold promises in seconds against the clock: nothing else runs beside them.
	go test -timeout 30m ./e2e/...

.PHONY: demo demo-up demo-down
demo: deps build ## the whole story on throw-away hosts, narrated; leaves nothing behind
	@go run ./e2e/demo
demo-up: deps build ## the same world, kept running, with the commands to try by hand
	@go build -o bin/curfew-demo ./e2e/demo && bin/curfew-demo up
demo-down: ## remove the world of demo-up
	@go build -o bin/curfew-demo ./e2e/demo && bin/curfew-demo down

.PHONY: mutate
mutate: deps build ## apply each break of the MUTATIONS.md files and see its test fail
	@go run ./e2e/mutate $(ONLY)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
	@$(MAKE) -s --no-print-directory -C pam clean
	@$(MAKE) -s --no-print-directory -C nss clean
