# Every target does its own set-up; all it needs is Python 3.11 or newer. `make help` lists them.

BIN   := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: demo test check lint types imports build clean help

demo: $(READY)  ## show plain and speculative decoding side by side, with the embedded models
	@$(BIN)/ouroboros demo

test: $(READY)  ## run the tests: on a CPU, offline, without those marked slow or gpu
	$(BIN)/pytest -n 2

check: lint types imports  ## lint, types and imports: what CI asks of the code

lint: $(READY)  ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## strict types
	$(BIN)/mypy

imports: $(READY)  ## imports point downward only
	$(BIN)/lint-imports --no-logo

build: $(READY)  ## wheel and source archive, in dist/
	@rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:  ## remove the environment, builds and caches
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

# The environment, made anew when what it is made of has changed. `make PYTHON=...` chooses the interpreter.
$(READY): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
		$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		python=; \
	done; \
	[ "$$python" ] || { echo 'error: no Python 3.11 or newer with venv and ensurepip found; give one: make PYTHON=...' >&2; exit 1; }; \
	echo "Setting up .venv with $$python: takes some minutes, once"; \
	$$python -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
