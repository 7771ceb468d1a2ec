# What people and CI run. Every target installs what it needs; running one twice costs seconds.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PROTO_TOOLS := .build/proto-tools
export XINF_AGENT_ENGINES_DIR ?= $(CURDIR)/.engines
# Tests start hundreds of processes; each would compile what it imports once more.
unexport PYTHONDONTWRITEBYTECODE

TYPES := $(wildcard xinf/gateway/*.pxd xinf/link/*.pxd)
COMPILED_SOURCES := $(wildcard xinf/_fast/*.pyx xinf/_fast/*.pxd) $(TYPES) $(TYPES:.pxd=.py)

# `make up`: what to serve and where; empty means xinf's own default.
MODEL ?=
ENGINE ?=
PORT ?=
DATA_DIR ?=
BENCH ?=

.PHONY: up build engine test lint fuzz bench bench-peers proto docs clean

up: build
	@test "$(ENGINE)" = sim || $(MAKE) --no-print-directory engine
	@exec $(VENV)/bin/xinf up $(MODEL) $(if $(ENGINE),--engine $(ENGINE)) $(if $(PORT),--port $(PORT)) \
	  $(if $(DATA_DIR),--data-dir $(DATA_DIR))

build: $(VENV)/.built $(PROTO_TOOLS)

$(VENV)/.installed: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q "setuptools>=78" "cython>=3.1" wheel
	$(PY) -m pip install -q --no-build-isolation -e ".[test]"
	touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(COMPILED_SOURCES)
	$(PY) setup.py -q build_ext --inplace
	touch $@

$(PROTO_TOOLS): | $(VENV)/.installed
	$(PY) -m pip install -q --no-deps --target $@ grpcio-tools==1.71.2 setuptools==78.1.1

# The engine environment that fits this machine, with xinf's wheel in it; done at once when nothing changed.
engine: build
	@$(PY) -m xinf.agent.environment install vllm --device auto --engines-dir "$(XINF_AGENT_ENGINES_DIR)"

proto: $(VENV)/.installed $(PROTO_TOOLS)
	protos/generate.sh $(PY) $(PROTO_TOOLS)

docs: build
	$(PY) docs/reference/render.py

lint: build
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# In as many processes as there are cores: what they share out is in tests/shares.py. WORKERS=0 runs all in one.
# HYPOTHESIS_PROFILE=explore: new cases for property tests; else they are the same in every run.
WORKERS ?= auto

test: build
	@$(MAKE) --no-print-directory -j2 engine lint
	$(PY) -m pytest -n $(WORKERS)

# Micro-benchmarks, then the gateway behind each of its fronts. BENCH="--quick" and others: see `--help`.
bench: build
	$(PY) -m pytest benchmarks --benchmark-only --override-ini="python_files=bench_*.py" \
	  --override-ini="addopts=--import-mode=importlib --strict-markers --strict-config"
	$(PY) -m benchmarks.bench_gateway $(BENCH)

# xinf and other gateways on the same work, interleaved, about 45 minutes; renders benchmarks/README.md.
bench-peers: build
	$(PY) -m benchmarks.bench_peers $(BENCH)

# Longer than the short run in `make test`: FUZZ_SECONDS=3600 make fuzz; FUZZ_SEED repeats a run.
FUZZ_SECONDS ?= 300
FUZZ_SEED ?=

fuzz: build
	$(PY) -m tests.fuzz --seconds $(FUZZ_SECONDS) $(if $(FUZZ_SEED),--seed $(FUZZ_SEED))

clean:
	rm -rf .build build dist *.egg-info xinf/_data xinf/_fast/*.c xinf/_fast/*.so xinf/gateway/*.c xinf/gateway/*.so xinf/link/*.c xinf/link/*.so
