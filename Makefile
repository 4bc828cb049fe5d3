# make demo: a virtual environment with the core, and ten synthetic digits.   make test: everything installed, linted, typed, tested.
# make test-quick: the tests of small files only, for while you write.
# make run SCENARIO=NAME: one study, without activating .venv.
# make reproduce: run what kept/expected has no figures for, eight minutes at a time (REPRODUCE="--minutes 60 short-dm-cifar10-ipc10").
# make docs: the pages and the API reference as a site in build/site, with warnings as errors.
PYTHON ?= python3
BIN = .venv/bin

SCENARIO ?= quickstart

.PHONY: demo run test test-quick lint docs reproduce clean

demo: .venv/core
	$(BIN)/distill run quickstart
	@echo 'Done. The command is $(BIN)/distill: call it so, or once "source $(BIN)/activate", then "distill ...", or "make run SCENARIO=NAME".'

run: .venv/core
	$(BIN)/distill run $(SCENARIO)

test: .venv/all lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal --durations=10

test-quick: .venv/all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not long" -n 2 --dist worksteal

reproduce: .venv/core
	$(BIN)/python -m kept.reproduce $(REPRODUCE)

lint: .venv/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 demo") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/all: .venv/core
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	touch $@

.venv/docs: .venv/core
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
