# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := chatmill dataset_svc factory_svc inference_svc eval_svc bridge samples benchmarks scripts tests
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
export GRADIO_ANALYTICS_ENABLED := False

.PHONY: help install demo test test-slow check format lint types imports protos protos-check system bench clean

help:           ## Show the targets.
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 16

$(VENV)/runtime: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-compile -c constraints.txt -e .
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/runtime

install: $(VENV)/runtime  ## Make .venv with the `chatmill` command.

demo: $(VENV)/runtime  ## From made-up conversations to a served, scored model, in a few minutes.
	$(BIN)/chatmill demo

test: $(VENV)/dev  ## The fast tests.
	$(BIN)/python -m pytest

test-slow: $(VENV)/dev  ## The tests that take longer: real training, killed processes, browsers.
	$(BIN)/python -m pytest -m 'slow and not gpu'

check: system format lint types imports protos-check  ## All that CI checks.
	$(BIN)/python -m pytest -m 'not gpu'

format: $(VENV)/dev
	$(BIN)/ruff format --check .

lint: $(VENV)/dev
	$(BIN)/ruff check .

types: $(VENV)/dev
	$(BIN)/mypy

imports: $(VENV)/dev
	$(BIN)/lint-imports

protos: $(VENV)/dev  ## Make the generated code anew from protos/.
	$(BIN)/python scripts/gen_protos.py

protos-check: $(VENV)/dev
	PYTHON=$(BIN)/python scripts/check_protos.sh

system:         ## Install the Debian packages that some tests need, where apt-get and the rights are there.
	scripts/install_system_packages.sh

bench: $(VENV)/dev  ## The benchmarks, at their quick settings.
	@set -e; for program in benchmarks/[a-z]*.py; do echo "== $$program"; $(BIN)/python $$program --quick; done

clean:
	rm -rf $(VENV) .tools .mypy_cache .ruff_cache .pytest_cache chatmill-home
