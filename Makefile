# make demo    fit, evaluate and run the LMFP example (creates .venv on first use)
# make test    everything that CI runs
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Idle threads sleep instead of spinning: on a busy machine spinning costs several times the work.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test check bench clean

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) -e '.[dev,bench]'
	touch $@

demo: $(VENV)/.base
	$(BIN)/python examples/lmfp/demo.py --out out/lmfp

test: $(VENV)/.dev
	$(MAKE) check VENV=$(VENV)

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto  # a process for each core

bench: $(VENV)/.bench

clean:
	rm -rf $(VENV) out build *.egg-info
