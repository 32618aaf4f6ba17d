# `make` shows this help. Everything is installed into .venv, from requirements.lock.
.DEFAULT_GOAL := help
.PHONY: help setup run jobs eval test smoke lint types unit format emulate lock audit clean bench profile soak docs

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What an interpreter may do in its own way: processes, event loops, SQLite, types at run time, the command line.
SMOKE := tests/test_spawn.py tests/test_endpoint.py tests/test_run.py tests/test_journal.py tests/test_execute.py \
	tests/test_schema.py tests/test_jobfile.py tests/test_dataset.py tests/test_traces.py

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with everything that is needed

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $(READY)

run: $(READY) ## Extract events from the sample rows, answered by the built-in emulator
	@$(BIN)/pipeline run jobs/extract_events.py --emulate

jobs: $(READY) ## Run every job in jobs/ against the emulator, a line for each
	@$(BIN)/python -m tests.run_jobs

eval: $(READY) ## Run both evaluations against the emulator, with errors made on purpose; exit 4 when a gate fails
	@$(BIN)/pipeline eval jobs/eval_events.py --emulate --quiet \
		--field-error name=0.01 --field-error date=0.01 --field-error participants=0.01
	@$(BIN)/pipeline eval jobs/eval_invoices.py --emulate --quiet \
		--field-error lines.quantity=0.05 --field-error lines.description=0.05 --field-error total=0.01

test: lint types jobs unit ## Lint, types, every job, tests

smoke: $(READY) ## What tells interpreters apart, in a minute: make smoke VENV=/tmp/venv PYTHON=python3.12
	@$(BIN)/pipeline run jobs/extract_events.py --emulate --quiet --fresh --output $(VENV)/out
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(SMOKE)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# Three workers on two cores: tests wait for their processes half of the time.
unit: $(READY)
	$(BIN)/python -m pytest -n 3 --dist loadgroup

format: $(READY) ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

soak: $(READY) ## The long run: thousands of kills, power cuts, failed calls and odd replies, with their figures
	@$(BIN)/python -m tests.crash.soak
	@$(BIN)/python -m tests.crash.frames
	@$(BIN)/python -m tests.crash.batches
	@$(BIN)/python -m tests.crash.emulated_batches
	@$(BIN)/python -m tests.test_mutations 100000
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m soak

bench: $(READY) ## Measure against aiohttp alone and the SDK by hand; figures in out/bench.json
	@$(BIN)/python -m tests.benchmarks

profile: $(READY) ## Where the time of a run goes: the 25 most expensive functions, and out/profile.pstats
	@$(BIN)/python -m tests.benchmarks.profile

emulate: $(READY) ## Run the local Vertex AI until Ctrl-C
	@$(BIN)/pipeline emulate

docs: $(VENV)/.docs-ready ## Build the documentation site into out/site: its links and anchors must lead somewhere
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo out/site/index.html

$(VENV)/.docs-ready: requirements-docs.lock $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.lock
	@touch $@

LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-strip-extras

lock: ## Bring requirements.lock, and those of the site and of the image, up to date (needs uv)
	$(LOCK) --group dev --upgrade --output-file requirements.lock
	$(LOCK) --group docs --constraint requirements.lock --upgrade --output-file requirements-docs.lock
	$(LOCK) --group image --extra cloud --extra eval --extra uvloop --constraint requirements.lock --upgrade \
		--output-file requirements-image.lock

audit: ## Look for known vulnerabilities in what is locked (needs uv and the network)
	uv tool run pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict

clean: ## Remove .venv and all caches (out/ stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist *.egg-info
