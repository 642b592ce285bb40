# make demo   a first run on generated images, from nothing but Python and make
# make test   style, types and the whole test suite
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: setup demo test lint types unit wheel clean
.DEFAULT_GOAL := setup

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"dogmed needs Python 3.11 or newer, this is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/python -m uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/dogmed finetune --task breastmnist --data synthetic --size 64 --model dognext_atto \
	  --epochs 6 --batch-size 32 --optim.lr-base 8e-3 --out dogmed-runs/demo
	@echo
	@echo "The run is in dogmed-runs/demo; look at it in the browser with"
	@echo "  $(BIN)/dogmed ui --out dogmed-runs/demo"

test: lint types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

wheel: setup
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
