# `make` lists what there is. The first target that needs it makes .venv and installs into it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process for each core takes file after file, in their order: the longest ones are not the last.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## compare five activations on fifty clients (two minutes, installation included)
	$(BIN)/fedsim study configs/activations.toml

test: $(READY)  ## run every test, those with Ray, Flower's runtime, Chromium, containers and installation too
	$(PYTEST)

test-fast: $(READY)  ## run the unit tests alone
	$(PYTEST) -m "not slow and not ray and not flower and not install and not browser and not containers"

lint: $(READY)  ## ruff, mypy and hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

bench: $(READY)  ## measure fedsim against its peers; writes docs/performance.md (half an hour)
	$(BIN)/python -m benchmarks --document

clean:  ## remove the virtual environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The constraints make the installation the same everywhere; a change of them installs anew. Python
# compiles what is imported when it is: most of what is installed never is.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $(READY)
