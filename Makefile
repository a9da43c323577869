# CellAI. `make help` lists the targets.
PYTHON ?= python3
DATA_DIR ?= demo
PORT ?= 8080
BACKEND_PORT ?= 9090
ARGS ?=
BIN := .venv/bin

.PHONY: help setup demo test test-faults test-soak test-image lint format reference bench bench-full requirements clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/installed ## install everything into .venv

# pip bootstraps uv, uv installs the pinned set; --no-deps because label-studio-ml's own pins
# of Flask 1 and Werkzeug 2 are overridden (see pyproject.toml). Compiled here once, on all cores: where
# PYTHONDONTWRITEBYTECODE is set, as in many containers, every process would do so anew, for seconds.
.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11-3.13 is needed, this is " + sys.version.split()[0]) if not (3, 11) <= sys.version_info < (3, 14) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep -E '^uv==' requirements.txt)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: setup ## start everything on generated cells; Ctrl+C stops it
	test -f $(DATA_DIR)/sample.seg || $(BIN)/cellai sample $(DATA_DIR)/sample.seg
	$(BIN)/cellai up $(DATA_DIR)/sample.seg --data-dir $(DATA_DIR) --port $(PORT) --backend-port $(BACKEND_PORT) $(ARGS)

# Each process has a Label Studio of its own (3 GB), hence as many as cores: a third made all slower
# (measured). A file's tests stay together, in the order of tests/module_order.py. Since all compete for
# the cores, torch's threads hardly wait awake for each other (backend/__init__.py).
test: setup lint ## lint, type check and all tests, a real Label Studio included
	GOMP_SPINCOUNT=1000 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: setup ## the long tests: kills, a failing Label Studio, full disks, fuzzing; writes the table of docs/reliability.md
	$(if $(ARGS),,FAULT_TABLE=docs/reliability.md) $(BIN)/pytest -m faults -n 3 --dist loadfile --no-loadscope-reorder $(or $(ARGS),tests/hostile tests/faults)

test-soak: setup ## half an hour of labelling, SOAK_MINUTES=N for less
	$(BIN)/pytest -m soak $(ARGS)

test-image: setup ## build the image with Docker (CONTAINER_ENGINE=podman: with Podman) and try it
	$(BIN)/pytest -m image $(ARGS)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: setup ## write the tables of settings and commands into docs
	$(BIN)/python -m backend.settings
	$(BIN)/python -m converters.command_reference

bench: setup ## measure; DATA=FILE[,FILE] measures learning on labelled files of your own
	$(BIN)/python -m benchmarks $(if $(DATA),--data $(DATA))

bench-full: setup ## measure with all seeds and strategies
	$(BIN)/python -m benchmarks --full

requirements: ## pin the newest versions that fit
	$(BIN)/uv pip compile --quiet --universal --no-annotate --no-header --group dev --group server pyproject.toml -o requirements.txt --upgrade

clean: ## remove what make setup and make demo made
	rm -rf .venv $(DATA_DIR)
