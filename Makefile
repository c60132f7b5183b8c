# The task list; `make` prints it. README.md and .ci/run call nothing else.
# With another interpreter, beside the first: make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON  ?= python3
VENV    ?= .venv
PYTHONS ?= 3.10 3.11 3.12 3.13
WORKERS ?= 3
SCALE   ?= 10
PROFILE ?= long
PROGRAMS ?= 200
# How often a loom model may take a thread's turn away. 3 finds most faults; 8 leaves out next to nothing.
PREEMPTIONS ?= 3

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
BIN         := $(VENV)/bin
RUST        := Cargo.toml Cargo.lock build.rs $(shell find src -name '*.rs')

# PyO3 and maturin take the interpreter of our environment, whichever is active outside.
export PYO3_PYTHON := $(abspath $(BIN)/python)
export VIRTUAL_ENV := $(abspath $(VENV))
export PIP_QUIET   := 1

# pytest on WORKERS processes, each file in one of them. A process that dies, as one that hangs does in the end, is a
# failure: a new one would run the same test again.
export SPREAD := -n $(WORKERS) --dist loadfile --max-worker-restart=0

.PHONY: help build demo test test-python test-pythons lint bench stress programs loom miri wheel clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(VENV)/.installed  ## The environment .venv, with a release build of the package in it

demo: $(VENV)/.installed  ## Ten runs at once, each with its own stream
	$(BIN)/llm-callback demo --runs 10

test: $(VENV)/.installed  ## Rust tests, doc tests, Python tests
	cargo test --locked
	$(BIN)/pytest $(SPREAD)

test-python: $(VENV)/.tools  ## The wheel of the newest CPython found beside the one of .venv
	.ci/test-pythons --one $(BIN) $(PYTHONS)

test-pythons: $(VENV)/.tools  ## The wheel of each CPython found here, then four threads; PYTHONS="3.10 3.13"
	.ci/test-pythons --all $(BIN) $(PYTHONS)

lint: $(VENV)/.linters  ## Formats, lints, types, docs, spelling, borders in src/
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --features python -- -D warnings
	cargo rustc --locked --lib --features python --profile check -- --cfg Py_GIL_DISABLED
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --features python --document-private-items
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/stubtest llm_callback._core --mypy-config-file pyproject.toml
	$(BIN)/python tests/python/typing/check.py
	$(BIN)/python tests/python/typing/hover.py
	$(BIN)/taplo fmt --check
	$(BIN)/typos
	$(BIN)/python .ci/rooms
	! grep -rl pyo3 src --include='*.rs' | grep -v '^src/python/'
	! grep -rnE 'parking_lot|std::sync::.*(atomic|Mutex|RwLock|Condvar|Once|Lazy)' src --include='*.rs' \
		| grep -vE '^src/sync.rs|: *//'
	tree=$$(cargo tree --locked -e normal --prefix none) && ! grep '^pyo3' <<<"$$tree"

bench: $(VENV)/.installed  ## Release build beside plain Python, then the Rust benches
	$(BIN)/python benches/python/bench_dropin.py
	$(BIN)/python benches/python/bench_runs.py
	$(BIN)/python benches/python/bench_hierarchy.py
	cargo bench

stress: $(VENV)/.installed  ## Many threads for a long time; SCALE=1 is a short one
	STRESS_SCALE=$(SCALE) cargo test --release --lib --test rust -- --ignored --test-threads 1
	STRESS_SCALE=$(SCALE) $(BIN)/python -X dev -m pytest -m stress
	# Thousands of examples take a test longer than the two minutes after which one is taken to hang.
	HYPOTHESIS_PROFILE=$(PROFILE) $(BIN)/pytest $(SPREAD) -o faulthandler_timeout=1800 $$(grep -l '^@given' tests/python/test_*.py)

programs: $(VENV)/.installed  ## 200 programs that end while everything is going on, under load; PROGRAMS=200
	$(BIN)/python tests/programs.py $(PROGRAMS)

loom:  ## The interleavings of the models in tests/loom; PREEMPTIONS=8
	RUSTFLAGS='--cfg loom' LOOM_MAX_PREEMPTIONS=$(PREEMPTIONS) \
		cargo test --profile loom --test loom --target-dir target/loom

miri:  ## Undefined behaviour and data races, if a nightly Rust is here
	@if RUSTUP_AUTO_INSTALL=0 cargo +nightly --version >/dev/null 2>&1; then \
		rustup component add --toolchain nightly miri rust-src; \
		export MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-permissive-provenance'; \
		cargo +nightly miri test --lib --test rust --no-run; \
		{ echo --lib; sed -n 's/^mod \(.*\);/--test rust \1::/p' tests/rust/main.rs; } \
			| xargs -P $$(nproc) -I MODULE bash -c 'cargo +nightly miri test MODULE'; \
	elif [[ ,$${LLM_CALLBACK_REQUIRE:-}, == *,miri,* ]]; then \
		echo 'miri: required, not found: no nightly Rust'; \
		exit 1; \
	else \
		echo 'miri: skipped, no nightly Rust'; \
	fi

wheel: $(VENV)/.tools  ## A release wheel in dist/
	$(BIN)/maturin build --release --interpreter $(BIN)/python --out dist

clean:  ## Everything that make made
	cargo clean
	rm -rf $(VENV) dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find python -name '*.so' -delete

# What the environment holds, in three layers; each file is the time of its last change.

$(VENV)/.tools: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo 'llm-callback needs CPython 3.10 or newer: make PYTHON=/path/to/python3'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --group build --group test
	@touch $@

$(VENV)/.installed: $(VENV)/.tools $(RUST)
	$(BIN)/maturin develop --release --extras strands
	@touch $@

$(VENV)/.linters: $(VENV)/.installed
	$(BIN)/python -m pip install --group lint
	@touch $@
