# One entry point for people and CI. `make help` lists the targets.
#
# Each target first installs what it needs and is missing (scripts/install), with sudo when not root.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

CARGO ?= cargo
# Where rustup puts cargo, in case it was installed a moment ago.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help build demo test lint fuzz soak simulate planted chaos reliability bench bench-mechanisms bench-seal bench-syscalls install-deps

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

build: ## Build the release binary, target/release/pgtenant
	@scripts/install build
	$(CARGO) build --release --locked

demo: ## Show every tier with servers of its own; ONCE=1 ends after the checks
	@scripts/install demo
	$(CARGO) run --release --locked -- demo $(if $(ONCE),--once)

lint: ## Formatting, clippy, licences and advisories
	@scripts/install dev
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo "cargo-deny is not installed: licences and advisories were left out (cargo install cargo-deny)"; fi

# The integration tests run twice: against the PostgreSQL of the system and against PostgreSQL 18. Random conversations
# are played against the first only: what is owed at each point is modelled as up to PostgreSQL 17, where a Query ends
# the messages before it that have no Sync.
# What does not depend on PostgreSQL's version runs once.
RUN_ONCE := chaos:: deploy:: crowd:: weights:: rates:: limits:: warm:: log:: dns:: console:: audit:: examples:: layers:: tidy:: workers:: documents::

test: lint ## Everything that CI runs
	@scripts/install test
	export PGTENANT_TEST_PYTHON="$$PWD/.deps/venv/bin/python" PGTENANT_TEST_NODE_PATH="$$PWD/.deps/node/node_modules"; \
	$(CARGO) test --locked; \
	export PGTENANT_PG_BINDIR="$$(scripts/postgres18)"; \
	echo "The integration tests against PostgreSQL 18:"; \
	$(CARGO) test --locked --test it -- --skip random_conversations $(addprefix --skip ,$(RUN_ONCE))

# cargo-fuzz asks for a nightly compiler; RUSTC_BOOTSTRAP lets the stable one do.
fuzz: ## Run each fuzz target for SECONDS=60, guided by coverage
	@scripts/install fuzz
	export PATH="$$PWD/.deps/cargo/bin:$$PATH" RUSTC_BOOTSTRAP=1; \
	for target in startup frames statements; do \
		mkdir -p ".deps/fuzz/$$target"; \
		$(CARGO) fuzz run "$$target" ".deps/fuzz/$$target" "fuzz/corpus/$$target" -- -max_total_time=$(or $(SECONDS),60) -max_len=4096; \
	done

# The same texts again with the same SEED. SQL_DIR: files of SQL to be mutated, too, such as src/test/regress/sql of
# PostgreSQL's sources.
soak: ## Compare the reader of SQL with PostgreSQL's grammar: SCANS=, PARSES=, SEED=, SECONDS=, SQL_DIR=
	@scripts/install dev
	export PGTENANT_ORACLE_SCANS=$(or $(SCANS),1000000) PGTENANT_ORACLE_PARSES=$(or $(PARSES),100000); \
	export PGTENANT_ORACLE_SECONDS=$(or $(SECONDS),3600); \
	$(if $(SEED),export PGTENANT_ORACLE_SEED=$(SEED);) $(if $(SQL_DIR),export PGTENANT_ORACLE_SQL='$(abspath $(SQL_DIR))';) \
	$(CARGO) test --release --locked --test oracle -- --ignored --nocapture soak

# CI plays 5000 seeds, unoptimized: `make test`.
simulate: ## Play the data plane over simulated clients, servers and clocks: SEEDS=100000, FROM=1
	@scripts/install dev
	export SIM_SEEDS=$(or $(SEEDS),100000) SIM_FROM=$(or $(FROM),1); \
	$(CARGO) test --locked --profile sim --test sim -- --nocapture

planted: ## Say after how many seeds the simulation finds each bug of tests/sim/planted
	@scripts/install dev
	tests/sim/planted/run $(ARGS)

chaos: ## Let everything fail under clients that check each reply, for SECONDS=600, SEED=16
	@scripts/install test
	export PGTENANT_CHAOS_SECONDS=$(or $(SECONDS),600) PGTENANT_CHAOS_SEED=$(or $(SEED),16); \
	$(CARGO) test --locked --test it -- --nocapture chaos::

reliability: ## Play a noisy tenant and faults with pgtenant and PgBouncer, ten minutes; ARGS="--only vanish"
	@scripts/install test bench
	$(CARGO) build --release --locked
	.deps/venv/bin/python scripts/reliability $(ARGS)

bench: ## Compare with direct PostgreSQL, haproxy and PgBouncer, in one run; ARGS="--quick"
	@scripts/install bench
	$(CARGO) bench --locked --bench load -- $(ARGS)

bench-mechanisms: ## Measure parts of a transaction's way alone
	@scripts/install dev
	$(CARGO) bench --locked --bench mechanisms -- $(ARGS)

bench-seal: ## Measure what a sealed context costs a PostgreSQL backend; ARGS="--rounds 11"
	@scripts/install bench
	benches/seal/run.py $(ARGS)

bench-syscalls: ## Count the system calls of haproxy, PgBouncer and pgtenant for a transaction
	@scripts/install bench
	$(CARGO) bench --locked --bench load -- --syscalls --targets haproxy,pgbouncer,pgtenant $(ARGS)

install-deps: ## Install everything that any target needs
	@scripts/install build demo test bench
