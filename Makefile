# `make help` lists what there is.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3 python3.11 python3.12# the first that is 3.11 or 3.12 and has a wheel of torch makes the environment
REQUIREMENTS ?= cpu# or cuda
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu# asked only if the indexes at hand lack the CPU build of torch
TORCH := $(shell grep '^torch==' requirements/$(REQUIREMENTS).txt)
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check install --no-deps --no-build-isolation --use-pep517
NO_WHEEL := pycosat# C source only, and only the zebra puzzles of reasoning-gym need it: left out where there is no compiler
# Two at a time: unpacking is bound by one core.
pip_list = @grep -v -e '^\#' -e '^$(NO_WHEEL)==' $(1) | xargs -P 2 -n 16 sh -c '$(PIP) "$$@" && echo "  $$\# packages, $$1 and others"' sh
ARGS ?=
TEST_JOBS ?= 2# test processes; some tests start a Ray cluster with vLLM and DeepSpeed, 3 GB

.PHONY: help install install-cuda quickstart test check format clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

quickstart: $(VENV)/.stamp ## train a tiny DeepSeek-V3 with SFT, then GRPO, on the CPU (ARGS="key=value ..." changes the run)
	$(BIN)/python -m recipes.sft_then_grpo output_dir=outputs/quickstart $(ARGS)

test: $(VENV)/.dev ## run the whole test suite (ARGS="-m 'not slow'" for the quick part)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=5 $(ARGS)

check: $(VENV)/.dev ## lint, formatting, types, import direction, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/architecture.py

format: $(VENV)/.dev ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.stamp ## make .venv with everything the CPU needs

install-cuda: ## make .venv anew with the CUDA builds of torch and vLLM
	rm -rf $(VENV)
	$(MAKE) install REQUIREMENTS=cuda

clean: ## remove .venv, caches and build products; outputs/ stays
	rm -rf $(VENV) build dist *.egg-info docs/example-plugin/build docs/example-plugin/*.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find rlkit rewards recipes configs tests -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.dev: $(VENV)/.stamp requirements/dev.txt
	$(call pip_list,requirements/dev.txt)
	@touch $@

$(VENV)/.stamp: $(VENV)/.torch requirements/$(REQUIREMENTS).txt pyproject.toml
	@echo 'Installing requirements/$(REQUIREMENTS).txt: two or three minutes'
	$(call pip_list,requirements/$(REQUIREMENTS).txt)
	@$(PIP) "$$(grep '^$(NO_WHEEL)==' requirements/$(REQUIREMENTS).txt)" 2>/dev/null \
	  || echo 'No C compiler: $(NO_WHEEL) is left out, and with it the zebra puzzles of reasoning-gym'
	$(PIP) -e .
	@touch $@

# The pinned setuptools comes first: deepspeed, antlr4, cellpylib and zss are built here from source packages (pure Python).
$(VENV)/.torch:
	@for index in '' '--index-url $(TORCH_CPU_INDEX)'; do \
	  for python in $(PYTHON); do \
	    $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || continue; \
	    $$python -c 'import ensurepip' 2>/dev/null || { echo "$$python cannot make a virtual environment: \
	it has no ensurepip (on Debian and Ubuntu: apt install python3-venv)"; continue; }; \
	    found=yes; \
	    echo "Installing $(TORCH) for $$python $$index"; \
	    $$python -m venv $(VENV) && $(PIP) "$$(grep '^setuptools==' requirements/$(REQUIREMENTS).txt)" \
	      && $(PIP) $$index '$(TORCH)' && touch $@ && exit 0; \
	    rm -rf $(VENV); \
	  done; \
	done; \
	[ "$$found" ] || echo 'rlkit needs Python 3.11 or 3.12, with venv: make PYTHON=/path/to/python3.11'; exit 1
