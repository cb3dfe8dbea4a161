# `make run` is the whole thing: set-up, then the pipeline. Everything is kept in ./.venv and ./data.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Tests and commands start many processes; without compiled files each compiles the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install run ui test test-all test-random fuzz conformance scenario soak bench lint audit lock

install: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# The sample traffic where no store is configured, else the last 24 hours of the configured one.
run: $(READY)
	@$(BIN)/monitoring-pipeline make-run

ui: $(READY)
	@(umask 077 && mkdir -p data/dagster) && ln -sf ../../dagster.yaml data/dagster/dagster.yaml
	DAGSTER_HOME="$${DAGSTER_HOME:-$(CURDIR)/data/dagster}" $(BIN)/dagster dev --workspace workspace.yaml

PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The tests that need nothing but Python.
test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) --tier=python

# All tests, also those that need Chromium, PostgreSQL or Java (scripts/install-…), and the coverage of the package.
test-all: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report term:skip-covered

# The tests of `make test` in another order and with other random numbers each time; the output says how to repeat them.
test-random: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) --tier=python -p randomly --hypothesis-profile=default

# Hostile and random traces for the flattener, the filters and the sources, far longer than the short form in `make test`.
fuzz: $(READY)
	MONITORING_FUZZ_EXAMPLES=5000 $(BIN)/python -m pytest -p randomly --hypothesis-profile=default monitoring_pipeline_tests/sources/test_fuzzing.py

# The embedded engine and a Spark cluster side by side, on 200,000 made-up traces and with a worker lost.
conformance: $(READY)
	scripts/install-spark
	MONITORING_LONG_TESTS=1 MONITORING_CONFORMANCE_TRACES=200000 $(BIN)/python -m pytest monitoring_pipeline_tests/conformance

# Ten minutes of traffic, with daemon and code server killed midway: the production profile, and what `make ui` starts.
scenario: $(READY)
	scripts/install-postgresql
	MONITORING_LONG_TESTS=1 MONITORING_SCENARIO_SECONDS=600 $(BIN)/python -m pytest monitoring_pipeline_tests/deploy

# Random schedules under faults, for MINUTES or SEEDS of them, from seed FIRST on; SEED=n replays one, step by step.
soak: $(READY)
	$(BIN)/python -m monitoring_pipeline_tests.faults --minutes $(or $(MINUTES),30) --first $(or $(FIRST),1) \
		$(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--seed $(SEED))

# This pipeline beside what a user would use instead (docs/performance.md); SMALL=1 for fewer traces.
bench: $(READY)
	$(BIN)/python -m benchmarks $(if $(SMALL),--small)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive monitoring_pipeline deploy

# Known vulnerabilities of the locked packages, and build/sbom.json; needs the network, so it is no part of CI.
audit: $(READY)
	@$(BIN)/python scripts/audit

# Pins all dependencies anew, with hashes and without addresses; needs pip-tools.
lock:
	pip-compile --quiet --extra dev --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--no-strip-extras --no-header --allow-unsafe --output-file requirements.lock pyproject.toml
