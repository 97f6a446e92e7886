# Each target makes the environment it needs in .venv; a second call finds it ready.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT ?= demo
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

.PHONY: demo test test-slow mutants bench bench-check lint types format clean

demo: $(VENV)/.base
	$(BIN)/segproof demo --out $(OUT)

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.test
	$(PYTEST) -m slow

# wrong formulas, one at a time: the fast tests have to notice each
mutants: $(VENV)/.test
	$(BIN)/python tests/support/mutants.py

# every asked number of speed and memory, then the page; on a quiet machine, about an hour
bench: $(VENV)/.test
	for name in heatmaps floor scale memory rankings study; do $(BIN)/python benchmarks/$$name.py || exit; done
	$(BIN)/python docs/_make/benchmarks.py

# ratios now beside the committed ones
bench-check: $(VENV)/.test
	$(BIN)/python benchmarks/regression.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OUT) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Order-only: the interpreter's own time stamp must not cause a new installation.
$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) --editable ".[test]"
	$(PIP) --no-deps quantus cachetools # it asks for opencv-python, over the headless one
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) --editable ".[dev]"
	@touch $@
