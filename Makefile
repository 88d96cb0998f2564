# Everything runs in .venv, which is made on first use from Python 3.11 and the pinned constraints.txt.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all lint format type bench bench-paper clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

venv: $(STAMP) ## make .venv with everything installed

demo: $(STAMP) ## the whole story on this machine: data parallelism, model parallelism, MCMC
	$(BIN)/soaprl demo

test: $(STAMP) ## the default test suite, under 5 minutes on 2 cores
	$(BIN)/python -m pytest -n $(WORKERS)

test-all: $(STAMP) ## every test, those marked slow and dist too
	$(BIN)/python -m pytest -n $(WORKERS) -m ''

lint: $(STAMP) ## ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(STAMP) ## repair what ruff can repair
	$(BIN)/ruff check --fix .

type: $(STAMP) ## mypy, strict
	$(BIN)/mypy

bench: $(STAMP) ## measure the simulator
	$(BIN)/python benchmarks/simulator.py

bench-paper: $(STAMP) ## write the paper's tables from our simulator
	$(BIN)/python -m benchmarks.paper

clean: ## remove .venv, caches and outputs
	rm -rf $(VENV) build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
