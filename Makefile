# Two commands do all their own set-up on a fresh machine with Python 3.11+ and Rust: `make demo`, `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
RUST := $(shell git ls-files '*.rs' 2>/dev/null || find rust -name '*.rs')
STAMP := .venv/.installed
# Both ends of the range of Triton that the kernels support, for the compile gate; Linux has wheels.
TRITONS := $(if $(filter Linux,$(shell uname -s)),.venv/triton-3.6.0 .venv/triton-3.9.0)

.PHONY: help demo test test-slow test-rust test-python lint format bench wheels docs clean
.DEFAULT_GOAL := help

help: ## print what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(STAMP) ## run the whole recipe at small scale; the result is runs/demo/report.html
	$(BIN)/hornbook demo

test: test-rust test-python ## run every test that takes under a minute

test-rust: ## run the Rust tests (same profile as the extension, so dependencies compile once)
	cargo test --release --workspace --exclude hornbook-py --quiet

test-python: $(STAMP) $(TRITONS) ## run the Python tests, the demo at a toy size among them
	$(BIN)/python -m pytest -m "not slow" -q

test-slow: $(STAMP) $(TRITONS) ## run the tests that take longer
	$(BIN)/python -m pytest -m slow -q

lint: $(STAMP) ## check formatting, lints, types and stubs
	cargo fmt --check
	cargo clippy --release --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest hornbook._core --allowlist tests/packaging/stubtest-allowlist.txt

format: $(STAMP) ## format everything
	cargo fmt
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure against the peers that are installed; writes benchmarks/results/
	$(BIN)/python benchmarks/data.py

wheels: $(STAMP) ## build both wheels into dist/
	rm -rf dist
	$(BIN)/maturin build --profile dist --out dist --quiet
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist ./kernels
	ls -l dist

docs: $(STAMP) ## print every command's help into docs/commands.md
	$(BIN)/python docs/make_commands.py

clean: ## remove everything that was built or run here
	rm -rf .venv target dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name '__pycache__' -type d -prune -exec rm -rf {} +
	rm -f python/hornbook/_core*.so

.venv/triton-%: | $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --target $@.part triton==$* && mv $@.part $@ \
	    || { rm -rf $@.part; echo "Triton $* can not be had here: the compile gate leaves it out"; }

# The editable install: again when Rust code, dependencies or metadata change.
$(STAMP): Cargo.toml Cargo.lock pyproject.toml kernels/pyproject.toml rust/core/Cargo.toml rust/py/Cargo.toml $(RUST)
	@command -v cargo >/dev/null || { echo "Rust is missing: install it with rustup (rustup.rs), then run this again"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(TORCH) -e ./kernels -e ".[generate,quality,train,eval,report]" --group dev
	touch $@
