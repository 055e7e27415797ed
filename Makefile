# Every target works from a clean clone with python3.11, git, make and a C compiler.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
# Extra pytest arguments: make test PYTEST_ARGS="-k group --data DIR"
PYTEST_ARGS ?=
# Tests that start a run mostly wait for it. Files stay together: their fixtures are clusters and models.
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder
# One thread: on few cores the spinning OpenMP threads of several processes starve each other.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest

.PHONY: help install quickstart test test-long check format benchmark compare clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: ## .venv from locks/cpu.txt; does nothing when that is up to date
	@bash locks/install.sh cpu

quickstart: install ## train the small model of configs/quickstart.yaml
	.venv/bin/rlft run configs/quickstart.yaml

test: install ## everything but the tests marked long; gpu tests skip themselves without a GPU
	$(PYTEST) tests -m "not long" $(WORKERS) $(PYTEST_ARGS)

test-long: install ## the tests marked long
	$(PYTEST) tests -m long $(PYTEST_ARGS)

check: install ## lint, format, types and the fast tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PYTEST) tests/unit tests/oracles tests/contract -m "not long" $(PYTEST_ARGS)

format: install ## rewrite the sources as ruff wants them
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

benchmark: install ## GRPO here against TRL on the same task
	$(PY) -m pip install --quiet --disable-pip-version-check --retries 5 --no-deps -r locks/benchmark.txt
	$(PY) benchmarks/grpo_vs_trl.py

compare: install ## every method of configs/family on one task, side by side
	OMP_NUM_THREADS=1 $(PY) benchmarks/compare_methods.py

clean: ## caches and build output; keeps .venv and runs/
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find rlft envs algos tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
