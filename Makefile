# Every target does its own set-up; all it needs is Python 3.11 or newer. `make help` lists them.

BIN   := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: demo serve test docs bench bench-full bench-again sanitize check lint types imports build wheel clean help

demo: $(READY)  ## show plain and speculative decoding side by side, with the embedded models
	@$(BIN)/ouroboros demo

serve: $(READY)  ## serve OpenAI's API with the embedded models on http://127.0.0.1:8000
	@$(BIN)/ouroboros serve

test: $(READY)  ## run the tests: on a CPU, offline, without those marked slow, gpu or real
	$(BIN)/pytest -n 2

# Results, tables and plots go into $(RESULTS), and are gone on with when the same is asked for again.
RESULTS := bench-results
BENCH = $(BIN)/ouroboros bench --grow 0.35b/62m --dtype bfloat16 --peer all --plots $(RESULTS)/$@ \
	--out $(RESULTS)/$@.jsonl --report $(RESULTS)/$@.md

bench: $(READY)  ## measure every method and transformers on nine tasks: under 20 minutes on two cores
	@mkdir -p $(RESULTS)
	$(BENCH)
	@cat $(RESULTS)/$@.md

# Other programs, shuffled memories and the ablation on some of the prompts alone: the report says on which.
bench-full: $(READY)  ## 8 prompts a task, longer outputs, all states, ablation: 90 minutes; the table of docs/benchmark.md
	@mkdir -p $(RESULTS)
	$(BENCH) --prompts 8 --warm-prompts 8 --new-tokens 128 \
		--state cold --state warm --state shuffled --shuffled-prompts 1 \
		--ablation --ablation-prompts 4 \
		--ablation-task humaneval --ablation-task math_reasoning --ablation-task multi_turn
	@cat $(RESULTS)/$@.md

# Twice with the T(n) and the options of earlier results: the same counts, and speed-ups within 10 % of each other.
FROZEN := $(RESULTS)/bench.jsonl
AGAIN = $(BIN)/ouroboros bench --grow 0.35b/62m --dtype bfloat16 --frozen $(FROZEN) --state cold --prompts 4 \
	--method autoregressive --method speculative --method ouroboros --report $(RESULTS)/$@.md

bench-again: $(READY)  ## after bench: whether two runs with a frozen T(n) are the same, in 10 minutes
	@rm -f $(RESULTS)/$@-1.jsonl $(RESULTS)/$@-2.jsonl
	$(AGAIN) --out $(RESULTS)/$@-1.jsonl
	$(AGAIN) --out $(RESULTS)/$@-2.jsonl
	$(BIN)/ouroboros bench compare $(RESULTS)/$@-1.jsonl $(RESULTS)/$@-2.jsonl

# The kernels are compiled anew, with checks of every access, and loaded into a Python that has the checks' library.
SANITIZERS = LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
# SANITIZED=tests/test_stored_kernels.py for the kernels of GGUF files, which take as long as all of these.
SANITIZED = tests/test_kernels.py tests/test_kernel_arguments.py tests/test_likely.py tests/test_native_decoder.py \
	tests/test_sampling.py

sanitize: $(READY)  ## the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@CXX=$(CURDIR)/.ci/sanitizing-cxx $(BIN)/python -c 'from ouroboros.kernels.library import library; l = library(); assert not isinstance(l, str), l' 2>/dev/null || true
	CXX=$(CURDIR)/.ci/sanitizing-cxx $(SANITIZERS) $(BIN)/pytest -q -n 2 -p no:cacheprovider --timeout 600 $(SANITIZED)

check: lint types imports  ## lint, types and imports: what CI asks of the code

lint: $(READY)  ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## strict types
	$(BIN)/mypy

imports: $(READY)  ## imports point downward only
	$(BIN)/lint-imports --no-logo

# mkdocs and what it needs, in an environment of its own; of the library it reads the source alone.
DOCS := .venv-docs

docs: $(DOCS)/.ready  ## the documentation as a site, in site/; warnings and dead links are errors
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet
	@echo 'site/index.html'

$(DOCS)/.ready: .ci/docs.txt
	@for python in $(PYTHON) $(BIN)/python python3; do $$python -c 'import venv, ensurepip' 2>/dev/null && break; done; \
	$$python -m venv --clear $(DOCS)
	@$(DOCS)/bin/python -m pip install -qq --disable-pip-version-check -r .ci/docs.txt
	@touch $@

build: $(READY)  ## wheel and source archive, in dist/
	@rm -rf dist
	$(BIN)/python -m build --no-isolation

wheel: $(READY)  ## the wheel for this platform, with the kernels compiled ahead, in dist/; needs a C++ compiler
	OUROBOROS_BUILD_KERNELS=1 $(BIN)/python -m build --no-isolation --wheel

clean:  ## remove the environment, builds and caches
	rm -rf .venv .venv-docs site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

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
