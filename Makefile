# podwire: `make help` says what there is. Each target does its own set-up and is safe to repeat.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# Where `make install` puts things; DESTDIR goes before each of them.
PREFIX ?= /usr/local
CNI_BIN_DIR ?= /opt/cni/bin
UNIT_DIR ?= $(PREFIX)/lib/systemd/system
# How long `make fuzz` runs each target, in seconds.
FUZZ_SECONDS ?= 10
export FUZZ_SECONDS

# `--quick` measures little, in a minute, and writes nothing. `--only` names measurements.
BENCH_ARGS ?=

netns_tests := cargo test --quiet --locked -p podwire-netns-tests
programs := dist/podwire dist/podwire-ipam dist/podwired dist/podwirectl

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
	  printf '  make %-16s %s\n' "$$name" "$$what"; done

.PHONY: build
build: ## Build the release programs, static, into dist/
	@scripts/set-up build
	@scripts/build
	@ls -l $(programs) | awk '{ printf "%-20s %.1f MiB\n", $$NF, $$5 / 1048576 }'

.PHONY: image
image: build ## Make the container image for Kubernetes from dist/, dist/podwire-image.tar (IMAGE: its name)
	@scripts/build-image

.PHONY: demo
demo: ## Run pods on two nodes of their own (NODES=3, STORE=etcd or kubernetes), break things, show what happens
	@scripts/set-up demo
	@echo 'Building podwire (some minutes the first time) …'
	@scripts/build
	@cargo run --quiet --locked -p podwire-netns-tests --bin podwire-demo

.PHONY: test
test: ## Run everything that CI runs
	@scripts/set-up test
	@scripts/test

.PHONY: lint
lint: ## rustfmt, clippy with warnings denied, cargo-deny
	@scripts/set-up lint
	@scripts/lint

.PHONY: test-units
test-units: ## The tests of the crates themselves
	@scripts/set-up test
	@cargo test --quiet --locked --workspace --exclude podwire-netns-tests

.PHONY: test-docs
test-docs: ## The API documentation builds without a warning
	@RUSTDOCFLAGS='-D warnings' cargo doc --quiet --locked --workspace --no-deps --document-private-items

.PHONY: test-netns
test-netns: build ## The built programs against the kernel and real runtimes
	@scripts/set-up test
	@scripts/build-faults
	@$(netns_tests) --tests --no-fail-fast

.PHONY: test-reference
test-reference: ## The same cases against Debian's reference plugins
	@scripts/set-up test
	@PODWIRE_REFERENCE=1 $(netns_tests) --test 'cases_*' --test containerd --test podman --no-fail-fast

.PHONY: bench
bench: build ## Measure podwire beside Debian's plugins and the kernel's floor
	@scripts/set-up bench
	@scripts/bench $(BENCH_ARGS)

.PHONY: fuzz
fuzz: ## Drive every parser with garbage, FUZZ_SECONDS (10) for each
	@scripts/set-up fuzz
	@scripts/fuzz

.PHONY: install
install: $(if $(wildcard dist/podwired),,build) ## Install from dist/, below DESTDIR, with PREFIX (/usr/local)
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' CNI_BIN_DIR='$(CNI_BIN_DIR)' UNIT_DIR='$(UNIT_DIR)' scripts/install

.PHONY: uninstall
uninstall: ## Remove what `make install` with the same settings put there
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' CNI_BIN_DIR='$(CNI_BIN_DIR)' UNIT_DIR='$(UNIT_DIR)' scripts/install --remove

.PHONY: clean
clean: ## Remove everything that was built
	@cargo clean --quiet
	@rm -rf dist
