# Everything starts from here; `make help` lists the targets.
SHELL := /bin/bash
VENV := .venv
# the first of these that is Python 3.11, 3.12 or 3.13 (make PYTHON=… overrides)
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
DEMO_EXTRAS := tensorflow,embedded,dashboard
EXTRAS := $(DEMO_EXTRAS),adbc,delta,duckdb,grpc,iceberg,kafka,keras,mlflow,onnx,otel,sklearn,sql,charts,dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# uv takes a quarter of pip's processor time; where it is missing or does not reach the packages, pip installs
UV := test -x $(BIN)/uv && $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt
PYTEST := $(BIN)/python -m pytest
# so many test processes side by side: most tests wait for processes of their own (make AT_ONCE=1 … for one by one)
AT_ONCE ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 7 ? n + 2 : 8)))
# files stay whole, since their tests share a deployment, and go in the order of their folders: the long ones first
SIDE_BY_SIDE = -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder
# the long tests keep several processes busy each
TWO_BY_TWO = -n 2 --dist loadfile --no-loadscope-reorder
# of `make fuzz`; SECONDS is a variable of bash's own, which make may have inherited
FUZZ_SECONDS = $(if $(filter command line,$(origin SECONDS)),$(SECONDS),600)
# TensorFlow's start-up chatter says nothing about Forecache
export TF_CPP_MIN_LOG_LEVEL ?= 2
export TF_ENABLE_ONEDNN_OPTS ?= 0
# uv leaves the compiling to the first import. Were nothing kept, each process would compile again: seconds of its start
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install install-all install-runtimes demo test test-full test-gpu test-docker mutants fuzz coverage lint docs audit protos format bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## set everything up in .venv, but for large optional engines

$(STAMP): $(DEMO_STAMP)
	@$(UV) -e ./client -e ".[$(EXTRAS)]" || $(PIP) -e ./client -e ".[$(EXTRAS)]"
	@touch $@

$(DEMO_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@test -x $(BIN)/uv || $(PIP) uv || true
	@echo "installing TensorFlow and what else the demo needs into $(VENV) (2.4 GB) ..."
	@$(UV) -e ./client -e ".[$(DEMO_EXTRAS)]" || $(PIP) -e ./client -e ".[$(DEMO_EXTRAS)]"
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Forecache needs Python 3.11, 3.12 or 3.13 on PATH (or make PYTHON=/path/to/python)" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

install-all: install ## the same, with the CUDA build of TensorFlow
	$(PIP) -e ./client -e ".[$(EXTRAS),gpu]"

install-runtimes: install ## the same, with PyTorch, JAX, PySpark and Ray (1.7 GB), whose tests are skipped without them
	$(PIP) -e ./client -e ".[$(EXTRAS),torch,jax,spark,ray]"

demo: $(DEMO_STAMP) ## the main job on an embedded Redis, shown step by step
	$(BIN)/forecache demo

test: install ## the tests, without those that take minutes
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not gpu"

test-full: install ## all tests that this machine can run (ONLY=slow: just those that `make test` leaves out)
	$(PYTEST) $(TWO_BY_TWO) -m "$(if $(ONLY),$(ONLY) and )not gpu"

test-gpu: install ## the tests that need an NVIDIA GPU, skipped without one
	$(PYTEST) tests/gpu

test-docker: install ## the images, built with buildah on a Debian and at work; compose files (root, minutes)
	$(PYTEST) tests/unit/test_docker_files.py tests/integration/test_docker_redis.py tests/integration/test_docker_images.py

mutants: install ## faults that no test notices: ROOM=inference/store or CHANGED=1 (COUNT=100 SEED=1 AGAIN=1; minutes)
	@$(UV) -e ./client -e ".[$(EXTRAS),mutants]" || $(PIP) -e ./client -e ".[$(EXTRAS),mutants]"
	$(BIN)/python .ci/mutants.py $(if $(CHANGED),--changed,--room $(or $(ROOM),$(error ROOM=inference/store, or CHANGED=1))) \
		$(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) $(if $(AGAIN),--again)

fuzz: install ## what breaks the parsers of what strangers send: all of them, or PARSER=bodies (SECONDS=600 for each; Linux)
	@$(UV) -e ./client -e ".[$(EXTRAS),fuzz]" || $(PIP) -e ./client -e ".[$(EXTRAS),fuzz]"
	$(BIN)/python .ci/fuzz.py $(if $(PARSER),--parser $(PARSER)) --seconds $(FUZZ_SECONDS)

coverage: install ## lines that the tests of `make test` run, by folder, other processes included (TESTS=tests/unit: those only)
	@mkdir -p build/coverage && $(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(SIDE_BY_SIDE) -m "not slow and not gpu" $(TESTS); code=$$?; \
		$(BIN)/coverage combine --quiet && $(BIN)/coverage html --quiet && $(BIN)/python .ci/coverage_by_folder.py; exit $$code

lint: install audit ## style, types, layers, and the audit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples
	$(BIN)/lint-imports

audit: install ## known vulnerabilities of the pinned libraries, where a service tells
	$(BIN)/python .ci/audit.py

docs: install ## a site of the pages, in build/site; fails on a link that leads nowhere
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env -j auto -c docs -d build/doctrees . build/site

protos: install ## compile the messages of the gRPC protocols after a change in inference/protocols/protos
	cd inference/protocols/protos && $(abspath $(BIN))/python -m grpc_tools.protoc -I. --include_imports \
		--descriptor_set_out=messages.binpb *.proto

format: install ## rewrite the files in house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## the benchmarks of one machine, some twenty minutes (needs wrk; benchmarks/README.md has those left out)
	for name in memory plan batch features hit miss mixed layers protocols runtimes reloads activation; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean: ## remove what the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
