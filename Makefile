# `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# No library that this project ships reports home.
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# What a stage starts by the name `python` is this project's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help
help:  ## List the targets
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## /  make \1\t/' | expand -t 18

.PHONY: setup
setup: .venv/.synced .prefect/prefect.db  ## Make .venv with the exact packages of requirements.lock

.venv/.synced: requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) found: install Python 3.11 to 3.13 (or name one: make setup PYTHON=/path/to/python3.12)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "make: $$($(PYTHON) --version) is not 3.11 to 3.13: name one that is, for example make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "make: $(PYTHON) cannot make a virtual environment: install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -oE '^uv==[^ ;]+' requirements.lock)"
	$(BIN)/uv pip sync --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	@touch $@

# Once: the database of Prefect's runs takes longer to make than a retrain to find nothing new.
.prefect/prefect.db: | .venv/.synced
	@env -u PREFECT_SERVER_DATABASE_CONNECTION_URL -u PREFECT_API_DATABASE_CONNECTION_URL \
		PREFECT_HOME="$(CURDIR)/.prefect" $(BIN)/prefect server database upgrade --yes >/dev/null

.PHONY: lock
lock: .venv/.synced  ## Compile requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --group demo --group dev --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --quiet -o requirements.lock
	sed -nE 's/^onnxruntime-gpu==([^ ;]+).*/onnxruntime==\1/p' requirements.lock \
		| $(BIN)/uv pip compile - --no-deps --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --quiet -o docker/onnxruntime.lock

.PHONY: demo
demo: setup  ## Retrain on real pictures, end to end (DEMO_IMAGES=all takes every picture)
	$(BIN)/python -m tasks.demo_data
	$(BIN)/dvc add --quiet data/raw
	$(BIN)/python -m flows.retrain

.PHONY: retrain
retrain: setup  ## Retrain on what is in data/raw: only what is new is computed
	$(BIN)/python -m flows.retrain

.PHONY: test
test: setup  ## Run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: test-stack
test-stack: setup  ## Run the tests that start real servers
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/stack

.PHONY: up
up: setup  ## Retrain on a schedule: start server, worker and deployments on this machine
	$(BIN)/python -m flows.up

.PHONY: down
down:  ## End what `make up` started
	$(BIN)/python -m flows.down

.PHONY: test-docker
test-docker: docker-tools setup  ## Build both images and use them (root, 15 minutes, 20 GB meanwhile)
	$(BIN)/python -m pytest tests/docker/images.py

.PHONY: docker-tools
docker-tools:
	@for tool in buildah debootstrap; do command -v $$tool >/dev/null || { echo "make: no $$tool here, which builds the images without an engine: install it (Debian, Ubuntu: apt install $$tool)" >&2; exit 1; }; done
	@test "$$(id -u)" = 0 || { echo "make: test-docker changes roots and mounts, which only root may: sudo make test-docker" >&2; exit 1; }

.PHONY: lint
lint: setup  ## Lint, check the format and the types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: ui
ui: setup  ## Open the MLflow and Prefect pages on this machine (Ctrl-C ends both)
	$(BIN)/python -m flows.ui

.PHONY: gc
gc: setup  ## Show what no kept version needs; APPLY=1 removes it, KEEP=5 keeps the newest five
	$(BIN)/python -m flows.gc $(if $(KEEP),--keep $(KEEP)) $(if $(APPLY),--apply)

.PHONY: clean
clean:  ## Remove .venv and the caches; data, runs and models stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find flows tasks tests -name __pycache__ -type d -prune -exec rm -rf {} +
