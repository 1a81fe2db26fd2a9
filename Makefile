PYTHON ?= python3.11
PROFILE ?= tiny
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-long test-engines lint audit bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8

run: .venv/.ready ## train, evaluate, promote and serve the tiny model on this machine (PROFILE=tiny)
	$(BIN)/moonflow run --profile $(PROFILE)

# One process more than cores: tests often wait for a service to start.
test: .venv/.ready ## unit tests and one end-to-end run
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $$(($$(nproc) + 1)) --dist loadfile --no-loadscope-reorder

test-slow: .venv/.ready ## what `make test` leaves out: kills and outages of whole runs, ranks
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "slow and not long" -n auto --dist loadfile --no-loadscope-reorder

test-long: .venv/.ready ## whole runs of the ablations, installs of the images: before a release, and after a change of either
	$(BIN)/pytest -q -m long

test-engines: .venv/.ready build/engines/vllm/.ready build/engines/sglang/.ready ## stock vLLM and SGLang on an export (tests/engines)
	$(BIN)/pytest -q -m engines tests/engines

lint: .venv/.ready ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/mypy

audit: .venv/.ready ## known vulnerabilities of the pinned dependencies, if the database can be reached
	$(BIN)/python .ci/audit.py requirements.lock

bench: .venv/.ready ## the figures of tests/benchmarks/README.md, one JSON line per script
	@set -e; for script in $(filter-out tests/benchmarks/test_%,$(sort $(wildcard tests/benchmarks/*.py))); do echo "== $$script"; $(BIN)/python $$script --json; done

clean: ## stop services kept alive, delete runs and caches
	@test ! -x $(BIN)/moonflow || $(BIN)/moonflow clean
	rm -rf runs build .mypy_cache .pytest_cache .ruff_cache

# torch is installed first and alone: only a plain `pip install torch==VERSION` finds the CPU build.
.venv/.ready: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

build/engines/%/.ready: tests/engines/install tests/engines/requirements-%.txt
	PYTHON=$(PYTHON) tests/engines/install $* $(@D)
	touch $@
