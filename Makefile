# Everything starts from here; `make help` lists the targets.
SHELL := /bin/bash
VENV := .venv
# the first of these that is Python 3.11 or 3.12 (make PYTHON=… overrides)
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := tensorflow,keras,onnx,sklearn,embedded,dashboard,dev
PYTEST := $(BIN)/python -m pytest
# TensorFlow's start-up chatter says nothing about Forecache
export TF_CPP_MIN_LOG_LEVEL ?= 2
export TF_ENABLE_ONEDNN_OPTS ?= 0

.PHONY: help install install-all install-runtimes demo test test-full lint format bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## set everything up in .venv, but for large optional engines

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Forecache needs Python 3.11 or 3.12 on PATH (or make PYTHON=/path/to/python)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

install-all: install ## the same, with the CUDA build of TensorFlow
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS),gpu]"

install-runtimes: install ## the same, with PyTorch, JAX and PySpark (1.5 GB), whose tests are skipped without them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS),torch,jax,spark]"

demo: install ## the main job on an embedded Redis, shown step by step
	$(BIN)/forecache demo

test: install ## the tests, without those that take minutes
	$(PYTEST) -m "not slow and not gpu"

test-full: install ## all tests that this machine can run (ONLY=slow: just those that `make test` leaves out)
	$(PYTEST) -m "$(if $(ONLY),$(ONLY) and )not gpu"

lint: install ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples
	$(BIN)/lint-imports

format: install ## rewrite the files in house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## every benchmark, with its baselines (needs wrk)
	for name in memory batch hit miss mixed layers protocols; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean: ## remove what the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
